"""GoogLeNet, Inception v1 (Szegedy et al. 2015, "Going Deeper with Convolutions"), for benchmarks.

Written from table 1 of the paper: local response normalisation, dropout, and the two auxiliary
classifiers, each of whose losses counts 0.3. The branches of a module are rectified after their
concatenation, which is the same function as rectifying each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["GoogLeNet", "googlenet_loss"]

_AUXILIARY_WEIGHT = 0.3
_POOLED = 4  # side of what an auxiliary classifier pools, from images of 224

# By module: channels in, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection (table 1).
_MODULES: dict[str, tuple[int, int, int, int, int, int, int]] = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Four branches, concatenated."""

    def __init__(self, channels: tuple[int, int, int, int, int, int, int]) -> None:
        super().__init__()
        before, one, reduce3, three, reduce5, five, pooled = channels
        self.conv1 = nn.Conv2d(before, one, 1)
        self.reduce3 = nn.Conv2d(before, reduce3, 1)
        self.conv3 = nn.Conv2d(reduce3, three, 3, padding=1)
        self.reduce5 = nn.Conv2d(before, reduce5, 1)
        self.conv5 = nn.Conv2d(reduce5, five, 5, padding=2)
        self.projection = nn.Conv2d(before, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) to the same height and width."""
        branches = (
            self.conv1(x),
            self.conv3(F.relu(self.reduce3(x))),
            self.conv5(F.relu(self.reduce5(x))),
            self.projection(F.max_pool2d(x, 3, stride=1, padding=1)),
        )
        return F.relu(torch.cat(branches, dim=1))


class Auxiliary(nn.Module):
    """A classifier on an inner feature map."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 128, 1)
        self.fc1 = nn.Linear(128 * _POOLED**2, 1024)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes)."""
        x = F.relu(self.conv(F.avg_pool2d(x, 5, stride=3)))
        return self.fc2(F.dropout(F.relu(self.fc1(x.flatten(1))), 0.7, self.training))


class GoogLeNet(nn.Module):
    """Inception v1 with auxiliary classifiers.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.reduce2 = nn.Conv2d(64, 64, 1)
        self.conv2 = nn.Conv2d(64, 192, 3, padding=1)
        self.modules_of = nn.ModuleDict({name: Inception(c) for name, c in _MODULES.items()})
        self.auxiliary1 = Auxiliary(512, classes)
        self.auxiliary2 = Auxiliary(528, classes)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (batch, classes) of the network and of both auxiliary classifiers.

        Args:
            x: images (batch, 3, 224, 224).
        """
        x = F.relu(self.conv1(x))
        x = F.local_response_norm(F.max_pool2d(x, 3, stride=2, ceil_mode=True), 5)
        x = F.relu(self.conv2(F.relu(self.reduce2(x))))
        x = F.max_pool2d(F.local_response_norm(x, 5), 3, stride=2, ceil_mode=True)
        found: list[torch.Tensor] = []
        for name, module in self.modules_of.items():
            x = module(x)
            if name in ("3b", "4e"):
                x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
            if name == "4a":
                found.append(self.auxiliary1(x))
            if name == "4d":
                found.append(self.auxiliary2(x))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits = self.fc(F.dropout(x, 0.4, self.training))
        return logits, found[0], found[1]


def googlenet_loss(
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], target: torch.Tensor
) -> torch.Tensor:
    """Cross entropy, that of each auxiliary classifier times 0.3."""
    logits, first, second = (F.cross_entropy(output, target) for output in outputs)
    return logits + _AUXILIARY_WEIGHT * (first + second)
