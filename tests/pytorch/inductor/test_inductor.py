"""Executor "inductor": fused graphs, gradients as Inductor's saving everything, its cache."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

import memfit
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.inductor import executor as inductor
from memfit.pytorch.inductor.codegen_patch import laid_out_anew_bytes
from memfit.pytorch.inductor.executor import PlanPartitioner
from memfit.pytorch.inductor.fusion import FusedStep
from memfit.pytorch.inductor.kernel_fusion import PeakExceeded, PlanChoices, PlanOrder
from memfit.pytorch.planning.fresh import digest_of

# PyTorch's own, while Inductor is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Block(nn.Module):
    """A transformer's feed-forward block with dropout."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block on its input, added to it."""
        return x + F.dropout(self.down(F.gelu(self.up(self.norm(x)))), 0.1, self.training)


@pytest.fixture(autouse=True)
def _own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """One for all tests, empty at the start of the run."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean()


def _fit(model: nn.Module, budget: str | int) -> Any:
    return memfit.fit(model, _loss, budget=budget, executor="inductor", cost="analytic")


def _gradients(call: Any, model: nn.Module, x: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    call(x, x).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _fitting(
    model: nn.Module, x: torch.Tensor, loss: Any, budget: str | int, cost: str = "measured"
) -> Any:
    """A fitted module that has taken a step: at the budget, or at the smallest one above it.

    The first error names what plans need, the next one what Inductor's kernels need of them.
    """
    for _ in range(4):
        fitted = memfit.fit(model, loss, budget=budget, executor="inductor", cost=cost)
        try:
            fitted(x, x).backward()
        except memfit.InfeasibleBudgetError as error:
            budget = error.minimum_bytes
            continue
        return fitted
    raise AssertionError(f"{budget} bytes are the fourth smallest feasible budget")


def _minimum(model: nn.Module, x: torch.Tensor) -> int:
    plan = _fitting(model, x, _loss, 1, cost="analytic").plan
    assert plan is not None
    return int(plan.budget_bytes)


@pytest.mark.slow
def test_dropout_at_the_tightest_budget_has_the_gradients_of_saving_everything() -> None:
    """20 seeds, bit for bit: random numbers are made from kept seeds, never drawn twice."""
    torch.manual_seed(0)
    model = Block()
    x = torch.randn(64, 32)
    everything, tight = _fit(model, "100%"), _fit(model, _minimum(model, x))
    for seed in range(20):
        expected = _gradients(everything, model, x, seed)
        got = _gradients(tight, model, x, seed)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert everything.plan.overhead == 0 < tight.plan.overhead
    masks = [_gradients(tight, model, x, seed)[0] for seed in (0, 1)]
    assert not torch.equal(*masks)  # dropout is on


@pytest.mark.slow
def test_an_unchanged_budget_hits_inductors_cache_and_a_changed_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(Block(16))
    x = torch.randn(16, 16)
    hits = []
    for budget in ("100%", "100%", "101%"):
        torch._dynamo.reset()
        counters.clear()
        twin = copy.deepcopy(model)
        _gradients(_fit(twin, budget), twin, x)
        hits.append(counters["inductor"]["fxgraph_cache_hit"])
    assert hits == [0, 2, 0]


def test_fused_graph_has_no_values_inside_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """norm -> up -> gelu -> down -> dropout, add: what matrix products read, and reductions."""
    seen: list[FusedStep] = []
    fuse = inductor.fuse

    def spy(step: Any) -> FusedStep:
        seen.append(fuse(step))
        return seen[-1]

    monkeypatch.setattr(inductor, "fuse", spy)
    model = Block()
    with pytest.raises(memfit.InfeasibleBudgetError):
        _fit(model, 1)(torch.randn(64, 32), torch.randn(64, 32))
    (fused,) = seen
    targets = [op.target for op in fused.graph.forward_ops]
    assert len(fused.graph.ops) < len(fused.step.graph.ops) / 2
    assert not [t for t in targets if "erf" in t or "inductor_random" in t or "rsqrt" in t]
    sizes = [fused.graph.values[v].size_bytes for op in fused.graph.forward_ops for v in op.outputs]
    wide = 64 * 128 * 4
    assert sizes.count(wide) == 2  # up's output, and gelu's, which down reads


def test_expanded_schedule_keeps_no_virtual_value(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[FusedStep, Any]] = []
    expand = FusedStep.expand

    def spy(self: FusedStep, schedule: Any) -> Any:
        found.append((self, expand(self, schedule)))
        return found[-1][1]

    monkeypatch.setattr(FusedStep, "expand", spy)
    model = nn.Sequential(Block(16))
    x = torch.randn(16, 16)
    _gradients(_fit(model, "100%"), model, x)
    ((fused, schedule),) = found
    assert schedule.kept(fused.step.graph) <= set(fused.values)


def _image_net() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Conv2d(16 if i else 3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Conv2d(16, 3, 3, padding=1))


def _image_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target[:, :, ::2, ::2]).square().mean()


class Tied(nn.Module):
    """A language model whose head is its embedding: one gradient is made first and last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, 32)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return F.linear(self.blocks(self.embed(ids)), self.embed.weight)


CASES: dict[str, tuple[Any, Any, Any]] = {
    "images": (_image_net, lambda: torch.randn(4, 3, 32, 32), _image_loss),
    "tied": (Tied, lambda: torch.randint(0, 200, (128,)), F.cross_entropy),
}


@pytest.mark.slow  # of compiling
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("budget", ["tight", "75%"])
def test_measured_peak_is_within_the_budget(name: str, budget: str) -> None:
    """Convolutions that copy their weights; sums of products far apart; kernels in the way."""
    build, inputs, loss = CASES[name]
    model, x = build(), inputs()
    fitted = _fitting(model, x, loss, 1 if budget == "tight" else budget)
    measured = measure_step(
        lambda: fitted(x, x).backward(), reset=lambda: model.zero_grad(set_to_none=True)
    )
    assert fitted.plan is not None
    assert fitted.graph is not None
    peak = fitted.graph.resident_bytes + measured.peak_bytes
    assert peak <= fitted.plan.budget_bytes
    kernels = fitted.plan.provenance["kernels_peak_bytes"]
    assert peak <= kernels <= fitted.plan.budget_bytes
    if budget == "tight":
        assert peak > 0.97 * fitted.plan.budget_bytes


@pytest.mark.slow
def test_fusions_are_held_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the tightest budget some fusions are refused; without refusals the peak is higher."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*[Block(16) for _ in range(4)]), torch.randn(256, 16)
    minimum = _minimum(model, x)
    refused: list[bool] = []
    fits = PlanChoices._fits

    def count(self: PlanChoices, *args: Any) -> bool:
        refused.append(not fits(self, *args))
        return not refused[-1]

    monkeypatch.setattr(PlanChoices, "_fits", count)
    _gradients(_fit(model, minimum), model, x)
    assert any(refused)
    monkeypatch.setattr(PlanChoices, "_fits", lambda *_: True)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing compiled before
    with pytest.raises(memfit.InfeasibleBudgetError, match="Inductor generates"):
        _gradients(_fit(model, minimum), model, x)


@pytest.mark.slow
def test_kernels_over_the_budget_are_planned_again_with_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first attempt is refused as if its kernels took 1,000 bytes more than they may."""
    model, x = nn.Sequential(Block(16), Block(16)), torch.randn(64, 16)
    order = PlanOrder.__call__
    attempts: list[int] = []

    def refuse_once(self: PlanOrder, nodes: Any) -> Any:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise PeakExceeded(1_000)
        return order(self, nodes)

    monkeypatch.setattr(PlanOrder, "__call__", refuse_once)
    fitted = _fit(model, "80%")
    _gradients(fitted, model, x)
    assert len(attempts) == 3
    assert fitted.plan.peak_bytes <= fitted.plan.budget_bytes - 1_000


def test_partitioner_is_its_digest_in_a_pickle() -> None:
    partitioner = PlanPartitioner(digest_of("1GiB", 1), lambda *_: None)  # type: ignore[arg-type]
    twin = pickle.loads(pickle.dumps(partitioner))
    assert twin == partitioner
    assert twin.uuid() == partitioner.uuid()
    assert PlanPartitioner(digest_of("2GiB", 1)).uuid() != partitioner.uuid()
    with pytest.raises(RuntimeError, match="cache key"):
        twin(None, [])


class Pooled(nn.Module):
    """Convolutions, of which a pooling reads a part of the values."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to scores."""
        h = F.max_pool2d(F.relu(self.norm(self.first(x))), 2, 2)
        return self.head(F.relu(self.second(h)).mean((2, 3)))


@pytest.mark.slow
def test_the_peak_read_off_the_generated_code_is_the_measured_one() -> None:
    """Casts of weights, kept values that are read in part, gradients with their channels last."""
    torch.manual_seed(0)
    model = Pooled()
    x, target = torch.randn(4, 3, 32, 32), torch.randint(0, 4, (4,))

    def loss(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scores.float(), target)

    fitted = memfit.fit(model, loss, budget="100%", executor="inductor")

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            value = fitted(x, target)
        value.backward()

    measured = measure_step(step, warmup=1, reset=lambda: model.zero_grad(set_to_none=True))
    assert fitted.plan is not None
    assert fitted.graph is not None
    found = fitted.plan.provenance["kernels_peak_bytes"] - fitted.graph.resident_bytes
    assert measured.peak_bytes == found
    step()
    assert all(p.grad is None or p.grad.stride() == p.stride() for p in model.parameters())


LAST = torch.channels_last


@pytest.mark.parametrize("formats", [*itertools.product([torch.contiguous_format, LAST], repeat=3)])
def test_copies_of_a_convolutions_backward_are_counted(formats: Any) -> None:
    """What it takes more than with operands that have its format already."""
    shapes = ((2, 8, 12, 12), (2, 4, 12, 12), (8, 4, 3, 3))
    given = [torch.randn(s).to(memory_format=f) for s, f in zip(shapes, formats, strict=True)]
    own = LAST if LAST in formats[1:] else torch.contiguous_format
    ready = [t.to(memory_format=own) for t in given]

    def peak(operands: list[torch.Tensor]) -> int:
        def step() -> None:
            torch.ops.aten.convolution_backward(
                *operands, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
            )

        return measure_step(step).peak_bytes

    assert peak(given) - peak(ready) == laid_out_anew_bytes(given)
