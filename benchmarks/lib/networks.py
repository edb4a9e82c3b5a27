"""The real networks that benchmarks train or capture: random weights, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["CAPTURED", "NETWORKS", "Case", "classifier"]


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


def resnet152(batch: int = 8, size: int = 224) -> Case:
    """pytorchcv's ResNet152 with cross entropy."""
    from pytorchcv.models.resnet import resnet152 as build

    return classifier("ResNet152", build(in_size=(size, size)), batch, size)


def densenet161(batch: int = 8, size: int = 224) -> Case:
    """pytorchcv's DenseNet161 with cross entropy."""
    from pytorchcv.models.densenet import densenet161 as build

    return classifier("DenseNet161", build(in_size=(size, size)), batch, size)


def classifier(name: str, model: nn.Module, batch: int, size: int) -> Case:
    torch.manual_seed(0)
    x = torch.randn(batch, 3, size, size)
    target = torch.randint(0, 1000, (batch,))
    return Case(name, model.train(), (x, target), F.cross_entropy)


class UnrolledLSTM(nn.Module):
    """A language model over one LSTM cell, step by step in a Python loop."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Embedding(vocabulary, width)
        self.cell = nn.LSTMCell(width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (batch, steps, vocabulary) for tokens (batch, steps)."""
        embedded = self.embed(tokens)
        hidden = embedded.new_zeros(tokens.shape[0], self.width)
        memory = hidden
        found = []
        for step in range(tokens.shape[1]):
            hidden, memory = self.cell(embedded[:, step], (hidden, memory))
            found.append(hidden)
        return self.head(torch.stack(found, dim=1))


def lstm(steps: int = 512, width: int = 128, batch: int = 4, vocabulary: int = 1000) -> Case:
    """An LSTM unrolled over `steps` steps, with the loss of the next token."""
    torch.manual_seed(0)
    tokens = torch.randint(0, vocabulary, (batch, steps + 1))
    model = UnrolledLSTM(vocabulary, width).train()
    return Case("LSTM", model, (tokens[:, :-1], tokens[:, 1:]), _token_loss)


def _token_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))


NETWORKS: dict[str, Callable[[], Case]] = {"resnet50": resnet50, "unet": unet, "gpt2": gpt2}
"""Trained by `benchmarks.training.training_steps`."""

_SMALL_GPT2: dict[str, Any] = {"width": 128, "tokens": 64, "batch": 1, "vocabulary": 1000}

CAPTURED: dict[str, tuple[Callable[..., Case], dict[str, Any]]] = {
    "torch-resnet152": (resnet152, {"batch": 8, "size": 224}),
    "torch-densenet161": (densenet161, {"batch": 8, "size": 224}),
    "torch-gpt2-12": (gpt2, {"layers": 12, **_SMALL_GPT2}),
    "torch-gpt2-96": (gpt2, {"layers": 96, **_SMALL_GPT2}),
    "torch-lstm-512": (lstm, {"steps": 512, "width": 128, "batch": 4, "vocabulary": 1000}),
}
"""Captured and planned by `benchmarks.planning`; small, for what counts there is the graph."""
