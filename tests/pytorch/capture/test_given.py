"""Inputs count into the budget whether the step reads them or not, with all of their memory."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import memfit
from memfit.graph.training_graph import ValueKind
from memfit.pytorch.api.unallocated import without_memory
from memfit.pytorch.capture.given import tensors_within
from memfit.pytorch.compiled.compile_backend import plans
from memfit.pytorch.cost.measure import measure_step

WIDTH = 8
ROW = 4 * WIDTH


class Reader(nn.Module):
    """Reads its first input, and of the others only their names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        return self.layer(x).tanh().sum()


@dataclass
class Batch:
    name: str
    mask: torch.Tensor


class Slotted:
    __slots__ = ("mask",)

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask


def _input_bytes(graph: memfit.TrainingGraph) -> int:
    return sum(v.size_bytes for v in graph.values if v.kind is ValueKind.INPUT)


def _counted(*args: Any, **kwargs: Any) -> int:
    fitted = memfit.fit(Reader(), budget="100%", cost="analytic")
    fitted(*args, **kwargs).backward()
    return _input_bytes(fitted.graph)


X = torch.ones(4, WIDTH)


def test_what_is_not_read_is_counted_wherever_it_is() -> None:
    argument, keyword, nested, attribute, slot = masks = [torch.ones(100 + i) for i in range(5)]
    found = _counted(
        X,
        argument,
        Batch("first", attribute),
        (Slotted(slot), argument),
        mask=keyword,
        batch={"masks": [nested, 3, None, nested[:2]]},
    )
    assert found == X.nbytes + sum(mask.nbytes for mask in masks)


def _loaded(big: torch.Tensor) -> torch.Tensor:
    """A part of a tensor as a file gives it: no view of anything, in the whole one's memory."""
    file = io.BytesIO()
    torch.save(big[:4], file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize(
    "parts",
    [
        lambda big: (_loaded(big),),
        lambda big: (big[:4], torch.empty(0).set_(big[4:])),
        lambda big: (big[:4], big),
    ],
    ids=["loaded", "two of one", "read, and the whole not"],
)
def test_a_part_holds_the_whole(
    parts: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
) -> None:
    big = torch.ones(50, WIDTH)
    assert _counted(*parts(big)) == big.nbytes


def test_memory_of_the_model_is_no_input() -> None:
    model = Reader()
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    fitted(X, model.layer.weight, model.layer.bias.detach()).backward()
    assert _input_bytes(fitted.graph) == X.nbytes


def test_an_unread_target_is_counted() -> None:
    target = torch.ones(30, 30)
    made = memfit.plan(
        Reader(), (X, target), lambda loss, target: loss, budget="100%", cost="analytic"
    )
    assert made.peak_parts["inputs"] == X.nbytes + target.nbytes


def test_plan_fit_and_graphs_without_memory_agree() -> None:
    mask = torch.ones(100, 7)
    made = memfit.plan(Reader(), (X, mask), budget="100%", cost="analytic")
    fitted = memfit.fit(Reader(), plan=made)
    fitted(X, mask).backward()
    assert fitted.plan is made

    place = without_memory()
    with place.building:
        model, inputs = Reader(), (torch.ones(4, WIDTH), torch.ones(100, 7))
    step = place.capture(model, inputs)
    assert step.graph.fingerprint == made.graph_fingerprint


def test_the_measured_step_is_within_a_budget_that_counts_them() -> None:
    model, mask = Reader(), torch.ones(1000)
    with pytest.raises(memfit.InfeasibleBudgetError) as error:
        memfit.plan(model, (X, mask), budget=mask.nbytes)
    fitted = memfit.fit(model, budget=error.value.minimum_bytes)
    fitted(X, mask).backward()
    found = measure_step(
        lambda: fitted(X, mask).backward(), reset=lambda: model.zero_grad(set_to_none=True)
    )
    resident = sum(t.nbytes for t in (X, mask, *model.parameters()))
    assert resident + found.peak_bytes == fitted.plan.peak_bytes == fitted.plan.budget_bytes


def test_inputs_that_grow_without_a_new_graph_are_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fitted = memfit.fit(Reader(), budget="100%", cost="analytic")
    with caplog.at_level(logging.WARNING, logger="memfit"):
        for rows in (10, 10, 5, 20, 30):
            fitted(X, torch.ones(rows, WIDTH)).backward()
            fitted.zero_grad(set_to_none=True)
            assert len(caplog.records) == (rows >= 20)
    (record,) = caplog.records
    assert f"take {10 * ROW} B more" in record.getMessage()
    assert len(fitted.plans) == 1


def test_objects_that_hold_themselves_are_searched_once() -> None:
    batch: dict[str, Any] = {"x": X}
    holder = Slotted(X)
    other = Batch("of all", holder)
    other.itself = [other, Reader(), len, "x"]
    assert [t is X for t in tensors_within((batch, other))] == [True, True]


def test_the_backend_counts_what_a_function_of_one_graph_does_not_read() -> None:
    model, mask = Reader(), torch.ones(1000)
    options = {"budget": "100%", "cost": "analytic"}
    compiled = torch.compile(model, backend="memfit", options=options)
    compiled(X, [mask, 3], weight=model.layer.weight).backward()
    (made,) = plans(options)
    assert made.peak_parts["inputs"] == X.nbytes + mask.nbytes
