"""What the paper's experiments go through, in the order of every table and picture."""

from __future__ import annotations

__all__ = ["FAMILIES", "NAMES", "SHARES", "TITLES"]

TITLES = {
    "pspnet": ("PSPNet", 2),
    "unet": ("U-Net", 8),
    "resnet50": ("ResNet50", 96),
    "resnet152": ("ResNet152", 48),
    "vgg19": ("VGG19", 64),
    "densenet161": ("DenseNet161", 32),
    "googlenet": ("GoogLeNet", 256),
}
"""Title and batch size of each network in the paper's table 1."""

NAMES = tuple(TITLES)
FAMILIES = ("exact", "approximate")
"""The paper's planners."""

SHARES = (90, 80, 70, 60, 50, 40, 30, 20)
"""Budgets, in percent of the vanilla peak."""
