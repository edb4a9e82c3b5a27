"""Bad input to `fit` and `plan`: one line that names the value, the limit and the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.two_tensor import TwoTensor

import memfit
from memfit.errors import (
    CaptureError,
    ExecutionError,
    InfeasibleBudgetError,
    InvalidBudgetError,
    MemfitError,
    PlanMismatchError,
    UnknownPlannerError,
    UsageError,
)
from memfit.graph.plan import Plan


class Net(nn.Module):
    """Twelve layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """tanh after each layer."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Branch(Net):
    """Takes one way or another by chance."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice as much, half of the time."""
        y = super().forward(x)
        if torch.rand([]) > 0.5:
            return 2 * y
        return y


class DataShape(Net):
    """An output whose size depends on the data, without a bound."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each row as often as data say."""
        y = super().forward(x)
        return y.repeat_interleave(x[:, 0].abs().long(), dim=0)


class Picky(Net):
    """Raises an error of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Refuses all batches but one."""
        if x.shape[0] != 7:
            raise ValueError("the batch must be 7")
        return super().forward(x)


X = torch.randn(512, 32, generator=torch.Generator().manual_seed(0))


def _plan(model: nn.Module, **changes: Any) -> Plan:
    return memfit.plan(model, (X,), **{"budget": "90%", "cost": "analytic", **changes})


def _message(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """The error's message, checked to be one line of memfit's own."""
    assert isinstance(caught.value, MemfitError)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_a_budget_below_the_parameters() -> None:
    parameters = 12 * (32 * 32 + 32) * 4
    with pytest.raises(InfeasibleBudgetError) as caught:
        _plan(Net(), budget=parameters - 1)
    text = _message(caught)
    smallest = caught.value.minimum_bytes
    # Parameters and their gradients are alive at the end, whatever is recomputed.
    assert smallest > 2 * parameters
    assert f"{parameters - 1} bytes" in text
    assert f"{smallest} bytes" in text
    assert "raise the budget" in text
    assert _plan(Net(), budget=smallest).peak_bytes <= smallest
    with pytest.raises(InfeasibleBudgetError):
        _plan(Net(), budget=smallest - 1)


def test_fit_reports_an_infeasible_budget_at_the_first_call() -> None:
    fitted = memfit.fit(Net(), budget="20KiB", cost="analytic")
    with pytest.raises(InfeasibleBudgetError) as caught:
        fitted(X)
    assert "20.0 KiB" in _message(caught)
    assert all(p.grad is None for p in fitted.parameters())


def test_an_unknown_planner_lists_the_known_ones() -> None:
    for call in (
        lambda: _plan(Net(), planner="oracle"),
        lambda: memfit.fit(Net(), budget="90%", planner="oracle"),
    ):
        with pytest.raises(UnknownPlannerError) as caught:
            call()
        text = _message(caught)
        assert "'oracle'" in text
        assert all(name in text for name in ("liveness", "exact", "approximate", "chen"))


@pytest.mark.parametrize("budget", ["a lot", "60", -1, 0, "0%", "2000%", "3 GiBs", True, 1.5, None])
def test_a_budget_that_is_none(budget: Any) -> None:
    if budget == "60":
        with pytest.raises(InfeasibleBudgetError, match="60 B"):
            _plan(Net(), budget=budget)
        return
    with pytest.raises(UsageError) as caught:
        _plan(Net(), budget=budget)
    text = _message(caught)
    assert isinstance(caught.value, InvalidBudgetError) or budget is None
    assert "budget" in text or repr(budget) in text
    assert "GiB" in text or "%" in text


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"cost": "guessed"}, "known costs: measured, analytic"),
        ({"mode": "sideways", "planner": "exact"}, "sideways"),
    ],
)
def test_unknown_options(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError, match=part) as caught:
        _plan(Net(), **changes)
    _message(caught)


def test_an_unknown_executor() -> None:
    with pytest.raises(UsageError, match="known executors: eager-graph") as caught:
        memfit.fit(Net(), budget="90%", executor="abacus")
    _message(caught)


def test_what_is_no_module() -> None:
    with pytest.raises(UsageError, match=r"a function, not a torch\.nn\.Module") as caught:
        memfit.fit(lambda x: x, budget="90%")  # type: ignore[arg-type]
    _message(caught)


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_fitted_already(inside: bool) -> None:
    fitted = memfit.fit(Net(), budget="90%", cost="analytic")
    with pytest.raises(UsageError, match=r"fitted already.*fit the plain model once") as caught:
        memfit.fit(nn.Sequential(fitted) if inside else fitted, budget="90%")
    _message(caught)


def test_what_is_sharded_already() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(Net())
        fully_shard(model[0])
        for call in (
            lambda: memfit.fit(model, budget="90%"),
            lambda: memfit.fit_blocks(model, [model[0]], budget="90%"),
        ):
            with pytest.raises(UsageError, match=r"sharded already; .*fit_blocks") as caught:
                call()
            _message(caught)
    finally:
        dist.destroy_process_group()


def test_tensors_that_are_made_of_others() -> None:
    model = Net()
    layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
    layer.weight = nn.Parameter(TwoTensor(layer.weight.detach(), layer.weight.detach().clone()))
    with pytest.raises(CaptureError, match=r"has a TwoTensor of shape \(32, 32\)") as caught:
        _plan(model)
    _message(caught)


def test_copies_of_data_parallel() -> None:
    fitted = memfit.fit(Net(), budget="90%", cost="analytic")
    with pytest.raises(UsageError, match="DistributedDataParallel"):
        fitted._replicate_for_data_parallel()  # what nn.DataParallel does for each device


def test_hooks_of_modules_for_their_backward_pass() -> None:
    model = Net()
    model.register_full_backward_hook(lambda *_: None)
    with pytest.raises(CaptureError, match=r"register_full_backward_hook.*Tensor\.register_hook"):
        _plan(model)


def test_a_plan_of_another_graph(tmp_path: Path) -> None:
    plan = _plan(Net(), budget="95%")
    plan.save(tmp_path / "plan.json")
    fitted = memfit.fit(Net(64), plan=Plan.load(tmp_path / "plan.json"), cost="analytic")
    with pytest.raises(PlanMismatchError) as caught:
        fitted(torch.randn(512, 64))
    text = _message(caught)
    assert plan.graph_fingerprint in text
    assert "plan again" in text
    # The same plan is good for the model that it was made for.
    again = memfit.fit(Net(), plan=Plan.load(tmp_path / "plan.json"), cost="analytic")
    again(X).sum().backward()
    assert again.plan == plan


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda d: d.update(schema_version=99), "schema version 99"),
        (lambda d: d.update(schema_version=1), "schema version 1, this memfit reads version 2"),
        (lambda d: d.pop("schema_version"), "no schema_version"),
        (lambda d: d.pop("schedule"), "no whole plan"),
        (lambda d: d.pop("peak_bytes"), "no whole plan"),
        (lambda d: d.update(status="PERFECT"), "no whole plan"),
    ],
)
def test_plan_files_of_another_schema(change: Any, part: str, tmp_path: Path) -> None:
    data = json.loads(_plan(Net()).to_json())
    change(data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(PlanMismatchError, match=re.escape(part)) as caught:
        Plan.load(path)
    text = _message(caught)
    assert str(path) in text
    assert "plan again" in text or "memfit plan -o" in text


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema_version": 1}'])
def test_plan_files_that_are_cut_off(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanMismatchError) as caught:
        Plan.load(path)
    assert str(path) in _message(caught)


def test_a_plan_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(PlanMismatchError) as caught:
        Plan.load(tmp_path / "none.json")
    assert "none.json" in _message(caught)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: _plan(model, fullgraph=True),
        lambda model: memfit.fit(model, budget="90%", cost="analytic", fullgraph=True)(X),
    ],
)
def test_a_branch_on_data(call: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(CaptureError) as caught:
        call(Branch())
    text = _message(caught)
    assert re.search(r"Branch cannot be captured .* at .*test_bad_input\.py:\d+", text)
    assert "choose by torch.where" in text


def test_a_shape_that_depends_on_data() -> None:
    with pytest.raises(CaptureError) as caught:
        _plan(DataShape(), fullgraph=True)
    assert "independent of its data" in _message(caught)


def test_inputs_of_the_wrong_shape() -> None:
    with pytest.raises(CaptureError) as caught:
        memfit.plan(Net(), (torch.randn(16, 5),), budget="90%", cost="analytic")
    text = _message(caught)
    assert "Net fails on these inputs at" in text
    assert "check number, shapes and dtypes" in text


def test_an_error_of_the_model_itself() -> None:
    with pytest.raises(CaptureError, match="ValueError: the batch must be 7") as caught:
        _plan(Picky())
    _message(caught)


def test_missing_and_surplus_inputs() -> None:
    for inputs in ((), (X, X)):
        with pytest.raises(CaptureError, match="forward takes") as caught:
            memfit.plan(Net(), inputs, budget="90%", cost="analytic")
        _message(caught)


def test_a_missing_target() -> None:
    fitted = memfit.fit(Net(), nn.MSELoss(), budget="90%", cost="analytic")
    with pytest.raises(UsageError, match=re.escape("fitted(*inputs, target)")) as caught:
        fitted(X)
    _message(caught)


def test_nothing_to_train() -> None:
    with pytest.raises(CaptureError, match="requires_grad") as caught:
        _plan(Net().requires_grad_(False))
    _message(caught)


@pytest.fixture(scope="module")
def fitted() -> nn.Module:
    """A fitted network, planned and run once."""
    made = memfit.fit(Net(), budget="95%", cost="analytic")
    made(X).sum().backward()
    return made


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"retain_graph": True}, "retain_graph=True"),
        ({"create_graph": True}, "create_graph=True"),
        ({"retain_graph": True, "create_graph": True}, "create_graph=True"),
    ],
)
def test_backward_passes_that_no_plan_serves(
    fitted: nn.Module, options: dict[str, bool], part: str
) -> None:
    fitted.zero_grad()
    loss = fitted(X).sum()
    with pytest.raises(ExecutionError, match=re.escape(part)) as caught:
        loss.backward(**options)
    text = _message(caught)
    assert "plain model" in text
    assert all(p.grad is None for p in fitted.parameters())
    # It is refused before anything is freed: the plain backward pass still works.
    loss.backward()
    assert all(p.grad is not None for p in fitted.parameters())


def test_double_backward_through_autograd_grad(fitted: nn.Module) -> None:
    loss = fitted(X).sum()
    with pytest.raises(ExecutionError, match="double backward") as caught:
        torch.autograd.grad(loss, list(fitted.parameters()), create_graph=True)
    _message(caught)
