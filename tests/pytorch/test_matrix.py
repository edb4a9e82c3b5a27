"""Executors x precisions x models x budgets: gradients, buffers, generator, peak within budget.

What is compared, with what tolerance, and why:

- With the same captured graph that keeps everything: bit for bit, in both precisions. A recomputed
  op is the same kernel on the same inputs.
- With plain eager in float32: bit for bit, where each value has at most two readers (the sum of two
  gradients does not depend on their order). Where it has more (`SUMMED`), the captured graph may
  add their gradients in another order; each addition rounds by 2^-24 of the sum, and a gradient
  passes some tens of such sums on its way: 1e-5 of the gradient's largest entry.
- With plain eager in bfloat16 autocast: the same with a rounding of 2^-9, for the gradients of
  activations are added in bfloat16: 2^-5 of the largest entry where order may differ. Eager runs
  with `cache_enabled=False`: its cache of cast weights adds up the gradients of a weight that is
  used more than once in bfloat16, while tracing casts for each use and adds them in float32.
- Buffers and the generator's state: bit for bit with eager.
- The measured peak of the step, and with it that of a loose budget: at most the budget, without
  tolerance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.pytorch.demo_model import demo_case
from memfit.pytorch.measure import measure_step
from support.models import Logits, token_loss

EXECUTORS = ["eager-graph"]
PRECISIONS = ["fp32", "bf16"]
AMPLE = 2**50
SUMMED = {"fp32": 1e-5, "bf16": 2.0**-5}

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


@cache
def references(executor: str, precision: str, name: str) -> tuple[Seen, Seen, int, int]:
    """Eager, the captured graph that keeps everything, its peak and the smallest budget."""
    model, args, loss = built(name)
    with precision_of(precision):
        plan = memfit.plan(model, args, loss, budget=AMPLE)
    twin = copy.deepcopy(model)
    saving = memfit.fit(twin, loss, budget=AMPLE, planner="store-all", executor=executor)

    def plain_step() -> torch.Tensor:
        with precision_of(precision):
            return loss(model(*args[:-1]), args[-1])

    def saving_step() -> torch.Tensor:
        with precision_of(precision):
            return saving(*args)

    eager, captured = observe(model, plain_step), observe(twin, saving_step)
    return eager, captured, plan.plain_peak_bytes, plan.smallest_feasible_budget_bytes


@pytest.fixture(autouse=True)
def fresh_compiler(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    torch._dynamo.reset()
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "costs"))
    yield
    torch._dynamo.reset()


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    different = [n for n in want if not torch.equal(got[n], want[n])]
    assert not different


def assert_near(
    got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float
) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        gap = float((got[name] - value).abs().max())
        assert gap <= tolerance * float(value.abs().max()), name


# The others run with `make test-slow`.
QUICK = {("fp32", name) for name in ("unet", "lstm-cells")}
QUICK |= {("bf16", "two-outputs")}
CELLS = [
    pytest.param(
        executor,
        precision,
        name,
        budget,
        id=f"{executor}-{precision}-{name}-{budget}",
        marks=[] if budget == "tight" and (precision, name) in QUICK else [pytest.mark.slow],
    )
    for executor in EXECUTORS
    for precision in PRECISIONS
    for name in MODELS
    for budget in ("tight", "loose")
]


@pytest.mark.parametrize(("executor", "precision", "name", "budget"), CELLS)
def test_trains_as_without_memfit(executor: str, precision: str, name: str, budget: str) -> None:
    eager, captured, plain_peak, smallest = references(executor, precision, name)
    budget_bytes = plain_peak if budget == "loose" else smallest
    model, args, loss = built(name)
    fitted = memfit.fit(model, loss, budget=budget_bytes, executor=executor)

    def step() -> torch.Tensor:
        with precision_of(precision):
            return fitted(*args)

    seen = observe(model, step)
    assert torch.equal(seen.loss, captured.loss)
    assert_same(seen.gradients, captured.gradients)
    if MODELS[name].summed:
        assert_near(seen.gradients, eager.gradients, SUMMED[precision])
    else:
        assert_same(seen.gradients, eager.gradients)
    assert_same(seen.buffers, eager.buffers)
    assert torch.equal(seen.generator, eager.generator)
    assert fitted.graph is not None
    assert fitted.plan is not None
    resident = fitted.graph.resident_bytes
    assert resident + seen.peak_bytes <= budget_bytes
    if budget == "tight":
        assert seen.peak_bytes < captured.peak_bytes
        assert fitted.plan.overhead > 0
