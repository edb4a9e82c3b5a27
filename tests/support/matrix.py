"""The models of the matrix tests, and what a step of one leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memfit.pytorch.api.demo_model import demo_case
from memfit.pytorch.cost.measure import measure_step
from support.models import Logits, token_loss

__all__ = ["AMPLE", "MODELS", "PRECISIONS", "Seen", "built", "observe", "precision_of"]

PRECISIONS = ["fp32", "bf16"]
AMPLE = 2**50

Loss = Callable[[Any, torch.Tensor], torch.Tensor]
Case = tuple[nn.Module, tuple[torch.Tensor, ...], Loss]


class Cells(nn.Module):
    """A two-layer LSTM of `LSTMCell`s over a sequence, with dropout between the layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTMCell(width, width) for _ in range(2))
        self.head = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(time, batch, width) to the same shape."""
        states = [(torch.zeros_like(x[0]), torch.zeros_like(x[0])) for _ in self.cells]
        outputs = []
        for h in x:
            for i, cell in enumerate(self.cells):
                states[i] = cell(h, states[i])
                h = states[i][0]
                h = F.dropout(h, 0.1, self.training) if i == 0 else h
            outputs.append(self.head(h))
        return torch.stack(outputs)


class LoRA(nn.Module):
    """A frozen linear layer and a trained low-rank update of its input, with dropout."""

    def __init__(self, base: nn.Linear, rank: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output plus the update's."""
        return self.base(x) + self.up(self.down(self.dropout(x)))


class Block(nn.Module):
    """A transformer block whose projections are given."""

    def __init__(self, width: int, wrap: Callable[[nn.Linear], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = wrap(nn.Linear(width, 3 * width))
        self.out = wrap(nn.Linear(width, width))
        self.mlp = nn.Sequential(
            wrap(nn.Linear(width, 4 * width)), nn.GELU(), wrap(nn.Linear(4 * width, width))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(a)
        return x + self.mlp(self.norm2(x))


class LoRATransformer(nn.Module):
    """Frozen embedding, norms and head; only the low-rank updates are trained."""

    def __init__(self, width: int = 64, vocabulary: int = 100, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width).requires_grad_(False)
        self.blocks = nn.Sequential(*(Block(width, LoRA) for _ in range(blocks)))
        for module in self.blocks.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(False)
        self.head = nn.Linear(width, vocabulary).requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits for each token."""
        return self.head(self.blocks(self.embed(ids)))


class TwoHeads(nn.Module):
    """A convolutional trunk with batch norm and two outputs."""

    running: torch.Tensor

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(3 if i == 0 else width, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                )
                for i in range(4)
            )
        )
        self.classes = nn.Linear(width, 5)
        self.boxes = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(width, 4, 1))
        self.register_buffer("running", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Class scores of the image and four numbers for each pixel."""
        h = self.trunk(x)
        self.running.mul_(0.9).add_(0.1 * h.detach().float().mean())
        return {"classes": self.classes(h.mean((2, 3))), "boxes": self.boxes(h)}


def both_losses(output: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    boxes = output["boxes"].float().square().mean()
    return F.cross_entropy(output["classes"].float(), target) + 0.5 * boxes


def square_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output.float(), target)


def resnet18() -> Case:
    resnet = pytest.importorskip("pytorchcv.models.resnet")
    model = resnet.resnet18(num_classes=10)
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)  # its own wants 224 x 224 pixels
    return model, (torch.randn(4, 3, 64, 64), torch.randint(0, 10, (4,))), F.cross_entropy


def unet() -> Case:
    case = demo_case(batch=2, size=48, width=8)
    return case.model, (*case.inputs, case.target), case.loss_fn


def gpt2() -> Case:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=48, n_head=2, n_positions=64, vocab_size=100, use_cache=False
    )
    ids = torch.randint(0, 100, (4, 48))
    return Logits(transformers.GPT2LMHeadModel(config)), (ids, ids), token_loss


def lstm_cells() -> Case:
    return Cells(), (torch.randn(4, 64, 32), torch.randn(4, 64, 32)), square_loss


def lora() -> Case:
    ids = torch.randint(0, 100, (4, 32))
    return LoRATransformer(), (ids, ids), token_loss


def two_outputs() -> Case:
    return TwoHeads(), (torch.randn(4, 3, 24, 24), torch.randint(0, 5, (4,))), both_losses


@dataclass(frozen=True)
class Model:
    """How to build a model, and whether gradients of more than two readers are added in it."""

    build: Callable[[], Case]
    summed: bool = False


MODELS: dict[str, Model] = {
    "resnet18": Model(resnet18),
    "unet": Model(unet),
    "gpt2": Model(gpt2),
    "lstm-cells": Model(lstm_cells, summed=True),
    "lora": Model(lora),
    "two-outputs": Model(two_outputs),
}


def precision_of(name: str) -> AbstractContextManager[Any]:
    if name == "fp32":
        return nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step left behind, and its measured peak above what was there before."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    generator: torch.Tensor
    peak_bytes: int


def built(name: str) -> Case:
    torch.manual_seed(0)
    model, args, loss = MODELS[name].build()
    return model.train(), args, loss


def observe(model: nn.Module, step: Callable[[], torch.Tensor]) -> Seen:
    """Two steps from the same start: one looked at, one measured."""
    torch.manual_seed(7)
    model.zero_grad()
    loss = step()
    loss.backward()
    seen = Seen(
        loss.detach(),
        {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        {n: b.clone() for n, b in model.named_buffers()},
        torch.get_rng_state(),
        0,
    )
    del loss
    measured = measure_step(lambda: step().backward(), warmup=0, reset=model.zero_grad)
    return replace(seen, peak_bytes=measured.peak_bytes)
