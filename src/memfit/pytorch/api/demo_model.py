"""A small U-Net with batch norm and dropout: what `memfit demo` trains, no download needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["DemoCase", "UNet", "demo_case"]


def _convolve(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class _Up(nn.Module):
    """Double the resolution, join the skip connection, convolve."""

    def __init__(self, inputs: int, outputs: int, dropout: float, *, bilinear: bool) -> None:
        super().__init__()
        self.enlarge: nn.Module
        if bilinear:
            self.enlarge = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Conv2d(inputs, outputs, kernel_size=1),
            )
        else:
            self.enlarge = nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2)
        self.convolve = _convolve(2 * outputs, outputs, dropout)

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.convolve(torch.cat([skip, self.enlarge(below)], dim=1))


class UNet(nn.Module):
    """A U-Net: levels that halve the resolution, a bottom, levels that double it, with skips.

    Args:
        channels: channels of the input image.
        classes: classes told apart in each pixel.
        width: channels of the first level; each further one has twice as many.
        levels: number of times the resolution is halved.
        dropout: dropout probability in each double convolution.
        bilinear: enlarge by bilinear interpolation, otherwise by transposed convolution.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 4,
        width: int = 16,
        levels: int = 3,
        dropout: float = 0.1,
        *,
        bilinear: bool = True,
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(
            _convolve(before, after, dropout)
            for before, after in zip([channels, *widths[:-2]], widths[:-1], strict=True)
        )
        self.bottom = _convolve(widths[-2], widths[-1], dropout)
        self.up = nn.ModuleList(
            _Up(widths[level + 1], widths[level], dropout, bilinear=bilinear)
            for level in reversed(range(levels))
        )
        self.head = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of each pixel; height and width must be multiples of 2**levels."""
        skips = []
        x = images
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, kernel_size=2)
        x = self.bottom(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(x, skip)
        return self.head(x)


class DemoCase(NamedTuple):
    """A training step to try memfit on.

    Attributes:
        model: the model, in training mode.
        inputs: example inputs.
        target: what `loss_fn` compares with.
        loss_fn: `loss_fn(output, target)` gives the loss.
    """

    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    target: torch.Tensor
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def demo_case(
    *, batch: int = 4, size: int = 160, width: int = 16, bilinear: bool = True, seed: int = 0
) -> DemoCase:
    """The U-Net, images and a target, the same at every call with the same arguments.

    With the defaults a plain step takes about a second on two cores and about 210 MiB above the
    parameters. The global random state is left as it was.
    """
    classes = 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNet(classes=classes, width=width, bilinear=bilinear).train()
        images = torch.randn(batch, 3, size, size)
        target = torch.randint(0, classes, (batch, size, size))
    return DemoCase(model, (images,), target, nn.CrossEntropyLoss())
