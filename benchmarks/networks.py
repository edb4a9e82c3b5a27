"""The real networks that benchmarks train: built from random weights, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["NETWORKS", "Case"]


@dataclass(frozen=True)
class Case:
    """One training step: `loss_fn(model(*inputs), target)`, or the model's own loss."""

    name: str
    model: nn.Module
    args: tuple[Any, ...]
    loss_fn: Callable[..., torch.Tensor] | None


def resnet50(batch: int = 8, size: int = 224) -> Case:
    """pytorchcv's ResNet50 with cross entropy."""
    from pytorchcv.models.resnet import resnet50 as build

    torch.manual_seed(0)
    x = torch.randn(batch, 3, size, size)
    target = torch.randint(0, 1000, (batch,))
    return Case("ResNet50", build().train(), (x, target), F.cross_entropy)


def unet(batch: int = 2, size: int = 256) -> Case:
    """pytorchcv's U-Net with cross entropy for each pixel."""
    from pytorchcv.models.unet import unet_cityscapes as build

    torch.manual_seed(0)
    x = torch.randn(batch, 3, size, size)
    model = build(in_size=(size, size)).train()
    target = torch.randint(0, 19, (batch, size, size))
    return Case("U-Net", model, (x, target), _pixel_loss)


def _pixel_loss(output: Any, target: torch.Tensor) -> torch.Tensor:
    logits = output[0] if isinstance(output, (tuple, list)) else output
    return F.cross_entropy(logits, target)


def gpt2(
    layers: int = 6,
    width: int = 384,
    tokens: int = 256,
    batch: int = 4,
    dropout: float = 0.1,
    vocabulary: int = 5000,
) -> Case:
    """GPT-2 of transformers with random weights and the language-modelling loss."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=tokens,
        n_embd=width,
        n_layer=layers,
        n_head=width // 64,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    ids = torch.randint(0, vocabulary, (batch, tokens))
    return Case("GPT-2", GPT2LMHeadModel(config).train(), (ids, ids), _next_token_loss)


def _next_token_loss(output: Any, target: torch.Tensor) -> torch.Tensor:
    logits = output.logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target[:, 1:].reshape(-1))


NETWORKS: dict[str, Callable[[], Case]] = {"resnet50": resnet50, "unet": unet, "gpt2": gpt2}
