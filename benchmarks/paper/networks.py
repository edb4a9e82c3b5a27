"""The seven networks of Kusumoto et al. 2019, as PyTorch models with random weights.

ResNet50, ResNet152, VGG19, DenseNet161 and PSPNet (ResNet101 with a stem of three convolutions, two
losses, as the authors' graph has it) come from pytorchcv. U-Net is that of Ronneberger et al. 2015,
with convolutions that do not pad and crops, as the authors' graph has it; GoogLeNet is in
`googlenet.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.lib.googlenet import GoogLeNet, googlenet_loss

__all__ = ["NETWORKS", "Network", "TrainingCase"]

_PSPNET_CLASSES = 19
_AUXILIARY_WEIGHT = 0.4


@dataclass(frozen=True)
class TrainingCase:
    """A training step: `loss_fn(model(*inputs), target)`, with `args` = (*inputs, target)."""

    model: nn.Module
    args: tuple[torch.Tensor, ...]
    loss_fn: Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Network:
    """A network of the paper's table 1.

    Attributes:
        title: its name there.
        published: the name of its published graph.
        batch: the batch size there.
        size: height and width of its inputs there.
        run_batch, run_size: those of real steps: seconds and some GB on a CPU.
        build: makes a model in training mode.
        inputs: makes inputs and target of a batch and a size.
        loss_fn: the loss.
    """

    title: str
    published: str
    batch: int
    size: int
    run_batch: int
    run_size: int
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], tuple[torch.Tensor, ...]]
    loss_fn: Callable[[Any, torch.Tensor], torch.Tensor]

    def case(self, batch: int | None = None, size: int | None = None) -> TrainingCase:
        """A step of the paper's batch and size, or of others."""
        torch.manual_seed(0)
        args = self.inputs(batch or self.batch, size or self.size)
        return TrainingCase(self.build().train(), args, self.loss_fn)


class UNet(nn.Module):
    """U-Net for one channel, of convolutions that do not pad (Ronneberger et al. 2015, figure 1).

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        self.down = nn.ModuleList(
            _double(before, width) for before, width in zip((1, *widths), widths, strict=False)
        )
        upward = widths[-2::-1]
        self.open = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in upward)
        self.up = nn.ModuleList(_double(2 * width, width) for width in upward)
        self.score = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes, height - 184, width - 184).

        Args:
            x: images (batch, 1, height, width) of 572, or another side that halves four times.
        """
        skips: list[torch.Tensor] = []
        for depth, double in enumerate(self.down):
            x = double(F.max_pool2d(x, 2) if depth else x)
            if depth >= len(self.down) - 2:
                x = F.dropout(x, 0.5, self.training)
            skips.append(x)
        for opened, double, skip in zip(self.open, self.up, skips[-2::-1], strict=True):
            x = opened(x)
            edge = (skip.shape[-1] - x.shape[-1]) // 2
            x = double(torch.cat((skip[..., edge:-edge, edge:-edge], x), dim=1))
        return self.score(x)


def _double(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU()
    )


def _unet_inputs(batch: int, size: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(batch, 1, size, size), torch.randint(0, 2, (batch, size - 184, size - 184))


def _pspnet_inputs(batch: int, size: int) -> tuple[torch.Tensor, ...]:
    target = torch.randint(0, _PSPNET_CLASSES, (batch, size, size))
    return torch.randn(batch, 3, size, size), target


def _images(batch: int, size: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(batch, 3, size, size), torch.randint(0, 1000, (batch,))


def _pspnet_loss(outputs: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    logits, auxiliary = (F.cross_entropy(output, target) for output in outputs)
    return logits + _AUXILIARY_WEIGHT * auxiliary


def _library(module: str, name: str, **arguments: Any) -> Callable[[], nn.Module]:
    """A builder of a pytorchcv model."""

    def build() -> nn.Module:
        model: nn.Module = getattr(importlib.import_module(f"pytorchcv.models.{module}"), name)(
            **arguments
        )
        return model

    return build


def _classifier(
    title: str, published: str, batch: int, run_batch: int, build: Callable[[], nn.Module]
) -> Network:
    return Network(title, published, batch, 224, run_batch, 224, build, _images, F.cross_entropy)


_PSPNET = _library("pspnet", "pspnet_resnetd101b_cityscapes", fixed_size=False)

NETWORKS: dict[str, Network] = {
    "pspnet": Network("PSPNet", "pspnet", 2, 713, 2, 145, _PSPNET, _pspnet_inputs, _pspnet_loss),
    "unet": Network("U-Net", "unet", 8, 572, 1, 444, UNet, _unet_inputs, F.cross_entropy),
    "resnet50": _classifier("ResNet50", "resnet50", 96, 4, _library("resnet", "resnet50")),
    "resnet152": _classifier("ResNet152", "resnet152", 48, 4, _library("resnet", "resnet152")),
    "vgg19": _classifier("VGG19", "vgg19", 64, 8, _library("vgg", "vgg19")),
    "densenet161": _classifier(
        "DenseNet161", "densenet", 32, 2, _library("densenet", "densenet161")
    ),
    "googlenet": Network(
        "GoogLeNet", "googlenet", 256, 224, 16, 224, GoogLeNet, _images, googlenet_loss
    ),
}
"""By name on the command line, in the paper's order."""
