"""Precisions x models x budgets, op by op: gradients, buffers, generator, peak within budget.

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
from collections.abc import Iterator
from functools import cache

import pytest
import torch

import memfit
from support.matrix import AMPLE, MODELS, PRECISIONS, Seen, built, observe, precision_of

SUMMED = {"fp32": 1e-5, "bf16": 2.0**-5}


@cache
def references(precision: str, name: str) -> tuple[Seen, Seen, int, int]:
    """Eager, the captured graph that keeps everything, its peak and the smallest budget."""
    model, args, loss = built(name)
    with precision_of(precision):
        plan = memfit.plan(model, args, loss, budget=AMPLE)
    twin = copy.deepcopy(model)
    saving = memfit.fit(twin, loss, budget=AMPLE, planner="store-all")

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
QUICK = {("fp32", "lstm-cells"), ("bf16", "two-outputs")}
CELLS = [
    pytest.param(
        precision,
        name,
        budget,
        id=f"{precision}-{name}-{budget}",
        marks=[] if budget == "tight" and (precision, name) in QUICK else [pytest.mark.slow],
    )
    for precision in PRECISIONS
    for name in MODELS
    for budget in ("tight", "loose")
]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "name", "budget"), CELLS)
def test_trains_as_without_memfit(precision: str, name: str, budget: str) -> None:
    eager, captured, plain_peak, smallest = references(precision, name)
    budget_bytes = plain_peak if budget == "loose" else smallest
    model, args, loss = built(name)
    fitted = memfit.fit(model, loss, budget=budget_bytes)

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
