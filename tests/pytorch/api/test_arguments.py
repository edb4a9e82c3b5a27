"""Wrong arguments, damaged files, odd surroundings: one line with the value and the way out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import memfit
from memfit.errors import CaptureError, MemfitError, PlanMismatchError, UsageError
from memfit.graph.plan import Plan
from memfit.pytorch.api.planned_method import PlannedMethod
from memfit.pytorch.capture.resident import optimizer_state_bytes


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


X = torch.ones(8, 4)


class Tensor(torch.Tensor):
    """A tensor of a class of its own."""


def fit(model: nn.Module | None = None, x: torch.Tensor = X, **options: Any) -> Any:
    fitted = memfit.fit(model or network(), **{"budget": "1GiB", "cost": "analytic", **options})
    fitted(x).sum().backward()
    return fitted


def plan(*given: Any, **options: Any) -> Plan:
    made = {"budget": "1GiB", "cost": "analytic", **options}
    return memfit.plan(network(), *(given or ((X,),)), **made)


def compiled(**options: Any) -> Any:
    torch._dynamo.reset()
    options = {"budget": "1GiB", "cost": "analytic", **options}
    return torch.compile(network(), backend="memfit", options=options)(X)


def verify(**options: Any) -> Any:
    made = {"budget": "1GiB", "cost": "analytic", **options}
    return memfit.verify(network(), (X,), **made)


def bound(**options: Any) -> Any:
    return memfit.bound(network(), (X,), budget="1GiB", cost="analytic", **options)


def blocks(**options: Any) -> Any:
    model = network()
    return memfit.fit_blocks(model, [model[0]], **{"budget": "50%", **options})


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no model": (lambda: memfit.fit(5, budget="1GiB"), "int"),  # type: ignore[arg-type]
    "loss": (lambda: fit(loss_fn="mse"), "'mse'"),
    "budget": (lambda: fit(budget=10**40), "2**62"),
    "budget of no kind": (lambda: fit(budget=[1]), "[1]"),
    "planner": (lambda: fit(planner=["liveness"]), "['liveness']"),
    "mode": (lambda: fit(mode="fast"), "auto, time, memory"),
    "executor": (lambda: fit(executor=None), "eager-graph"),
    "cost": (lambda: fit(cost={}), "analytic"),
    "loops": (lambda: fit(loops=[]), "unroll"),
    "optimizer": (lambda: fit(optimizer="adam"), "'adam'"),
    "plan": (lambda: fit(plan=5, budget=None), "Plan.load"),
    "a plan's path": (lambda: fit(plan="no/such/plan.json", budget=None), "no/such/plan.json"),
    "accumulate": (lambda: fit(accumulate="yes"), "'yes'"),
    "overlap": (lambda: fit(overlap="x"), "'x'"),
    "same_plan": (lambda: fit(same_plan=1.5), "1.5"),
    "shapes": (lambda: fit(shapes=5), "int"),
    "max_shapes": (lambda: fit(max_shapes="many"), "'many'"),
    "time limit": (lambda: fit(time_limit_s="long"), "'long'"),
    "time limit that is no number": (lambda: fit(time_limit_s=float("nan")), "nan"),
    "progress": (lambda: fit(progress=5), "5"),
    "a long value": (lambda: fit(progress="\n".join(["line"] * 99)), "line"),
    "inputs": (lambda: plan(X), "(x,)"),
    "inputs by name": (lambda: plan({"x": X}), "example_kwargs"),
    "keywords": (lambda: plan((X,), example_kwargs=[1]), "[1]"),
    "mode of a plan": (lambda: plan(mode=7), "7"),
    "planner of a curve": (lambda: memfit.trade_off(network(), (X,), planner={}), "{}"),
    "a budget of many digits": (lambda: fit(budget="9" * 5000 + "GiB"), "cannot be read"),
    "a budget of many bits": (lambda: fit(budget=10**5000), "bits"),
    "rounds of verify": (lambda: verify(rounds=0), "rounds is 0"),
    "rounds that are none": (lambda: verify(rounds=True), "True"),
    "model of verify": (lambda: memfit.verify(5, (X,), budget="1GiB"), "int"),  # type: ignore[arg-type]
    "inputs of verify": (lambda: memfit.verify(network(), X, budget="1GiB"), "(x,)"),
    "loss of verify": (lambda: verify(loss_fn="mse"), "'mse'"),
    "optimizer of verify": (lambda: verify(optimizer="adam"), "'adam'"),
    "progress of verify": (lambda: verify(progress=5), "5"),
    "model of a bound": (lambda: memfit.bound(5, (X,), budget="1GiB"), "int"),  # type: ignore[arg-type]
    "inputs of a bound": (lambda: memfit.bound(network(), X, budget="1GiB"), "(x,)"),
    "time limit of a bound": (lambda: bound(time_limit_s="x"), "'x'"),
    "model of blocks": (lambda: memfit.fit_blocks(5, [], budget="50%"), "int"),  # type: ignore[arg-type]
    "no blocks": (lambda: memfit.fit_blocks(network(), [], budget="50%"), "no block"),
    "blocks": (lambda: memfit.fit_blocks(network(), 5, budget="50%"), "list(model.layers)"),  # type: ignore[arg-type]
    "a block": (lambda: memfit.fit_blocks(network(), ["0"], budget="50%"), "'0'"),  # type: ignore[list-item]
    "option of blocks": (lambda: blocks(planers="liveness"), "'planers'"),
    "same_plan of blocks": (lambda: blocks(same_plan="x"), "'x'"),
    "budget of blocks": (lambda: blocks(budget="auto"), "auto"),
    "method": (lambda: PlannedMethod(network(), 5, budget="1GiB"), "5"),  # type: ignore[arg-type]
    "option of a method": (lambda: PlannedMethod(network(), planers="x"), "'planers'"),
    "size of a backend": (lambda: compiled(optimizer_bytes=-1), "optimizer_bytes is -1"),
    "no size of a backend": (lambda: compiled(optimizer_bytes=[]), "optimizer_bytes is []"),
    "budget of a backend": (lambda: compiled(budget=True), "True"),
    "executor of a backend": (lambda: compiled(executor=5), "eager-graph"),
    "accumulate of a backend": (lambda: compiled(accumulate="yes"), "'yes'"),
    "option of a backend": (lambda: compiled(budgets=5), "'budgets'"),
    "options of a backend": (lambda: compiled(mode="fast"), "'fast'"),
    "cost of a backend": (lambda: compiled(cost=[]), "[]"),
    "time limit of a backend": (lambda: compiled(time_limit_s="x"), "'x'"),
    "a lazy layer": (lambda: fit(nn.Sequential(nn.LazyLinear(4))), "call the plain model once"),
    "a tensor of another class": (lambda: fit(x=X.as_subclass(Tensor)), "as_subclass"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    call, part = WRONG[name]
    with pytest.raises(UsageError) as caught:
        call()
    text = str(caught.value)
    assert isinstance(caught.value, MemfitError)
    assert "\n" not in text
    assert part in text
    assert len(text) < 500


def test_a_plan_is_taken_from_its_file(tmp_path: Path) -> None:
    made = plan()
    made.save(tmp_path / "plan.json")
    for path in (tmp_path / "plan.json", str(tmp_path / "plan.json")):
        assert fit(plan=path, budget=None).plan == made


def _change(steps: list[Any], what: str) -> None:
    if what == "an op that is not there":
        steps[1][0] = 10**30
    elif what == "an op counted from the end":
        steps[1][0] = -1
    elif what == "too few reads":
        steps[2][2] = []
    elif what == "a step missing":
        steps.pop(2)
    elif what == "another order":
        steps.reverse()
    else:
        steps[0][1] = 7


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "what",
    [
        "an op that is not there",
        "an op counted from the end",
        "too few reads",
        "a step missing",
        "another order",
        "another copy",
    ],
)
def test_plans_that_were_changed(what: str) -> None:
    data = json.loads(plan().to_json())
    _change(data["schedule"]["steps"], what)
    with pytest.raises(PlanMismatchError, match="plan again") as caught:
        fit(plan=Plan.from_json(json.dumps(data)), budget=None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"schema_version": 1, "schedule": 5}',
        '{"schema_version": []}',
        "9" * 6000,
        "\x00",
        json.dumps({"schema_version": 1, "schedule": {"steps": [], "backward_start": 1e400}}),
    ],
)
def test_texts_that_are_no_plans(text: str) -> None:
    with pytest.raises(PlanMismatchError, match=r"memfit plan -o|plan again") as caught:
        Plan.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("planner", None),
        ("provenance", [1]),
        ("provenance", None),
        ("seconds", "x"),
        ("notes", "x"),
        ("notes", [1]),
        ("complete", 1),
        ("complete", None),
        ("stages", {}),
        ("peak_parts", {"inputs": -1}),
        ("lower_sets", 1.5),
        ("formula_overhead", True),
    ],
)
def test_plans_that_say_other_things(name: str, value: Any) -> None:
    data = {**json.loads(plan().to_json()), name: value}
    with pytest.raises(PlanMismatchError, match=f"{name}.*plan again") as caught:
        Plan.from_json(json.dumps(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["budget_bytes", "peak_bytes", "overhead", "total_cost"])
@pytest.mark.parametrize("value", ["much", None, -1, 1.5, [1]])
def test_plans_whose_figures_are_none(name: str, value: Any) -> None:
    data = {**json.loads(plan().to_json()), name: value}
    with pytest.raises(PlanMismatchError, match=name):
        Plan.from_json(json.dumps(data))


DAMAGE = ["[" * 100_000, "{", "[]", "null", '{"format_version": 1}', "\x00", "9" * 6000]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("text", DAMAGE)
def test_damaged_caches_are_ignored(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))
    before = fit(cost="measured").plan
    files = list(tmp_path.rglob("*.json"))
    assert len(files) == 2
    for file in files:
        file.write_text(text)
    with caplog.at_level(logging.WARNING):
        again = fit(cost="measured").plan
    assert again.schedule == before.schedule
    assert all(str(file) in caplog.text for file in files)


@pytest.mark.parametrize("kind", ["a file", "a folder in place of files", "nowhere"])
def test_cache_folders_that_cannot_be_used(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MEMFIT_CACHE_DIR", "/dev/null/x" if kind == "nowhere" else str(folder))
    if kind == "a file":
        folder.write_text("text")
    if kind == "a folder in place of files":
        fit(cost="measured")
        for file in list(folder.rglob("*.json")):
            file.unlink()
            file.mkdir()
    fit(cost="measured")


def test_a_cache_folder_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", "~nobodyhere/cache")
    with pytest.raises(UsageError, match=r"~nobodyhere/cache.*MEMFIT_CACHE=0"):
        fit(cost="measured")


def _stepped(kind: Any, **options: Any) -> tuple[int, int]:
    """Bytes of an optimizer's state as found before its first step, and after it."""
    model = network()
    optimizer = kind(model.parameters(), **options)
    found = optimizer_state_bytes(optimizer)
    model(X).sum().backward()
    optimizer.step(lambda: torch.ones(())) if kind is torch.optim.LBFGS else optimizer.step()
    return found, optimizer_state_bytes(optimizer)


@pytest.mark.parametrize(
    "name", sorted(set(torch.optim.__all__) - {"Optimizer", "SparseAdam", "LBFGS", "Muon"})
)
def test_every_optimizers_state_is_known_before_its_first_step(name: str) -> None:
    kind = getattr(torch.optim, name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        pytest.skip("no optimizer")
    before, after = _stepped(kind)
    assert before == after


def test_the_state_of_lbfgs_is_counted_at_its_most() -> None:
    before, after = _stepped(torch.optim.LBFGS)
    parameters = sum(p.numel() * 4 for p in network().parameters())
    assert before >= 2 * 100 * parameters
    assert after <= before


def test_an_optimizer_that_cannot_be_sized() -> None:
    with pytest.raises(UsageError, match=r"SparseAdam.*leave optimizer out"):
        fit(optimizer=torch.optim.SparseAdam(list(network().parameters())))


def test_a_scheduler_steps_nothing_while_the_state_is_sized() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    calls: list[Any] = []
    optimizer.register_step_pre_hook(lambda *a: calls.append(a))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # puts a step of its own in place
    model(X).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    assert optimizer_state_bytes(optimizer) >= 2 * sum(p.numel() * 4 for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state
    assert not calls


def test_flops_of_a_fitted_module_are_those_of_the_model(caplog: pytest.LogCaptureFixture) -> None:
    plain, model = network(), network()
    counted = []
    fitted = memfit.fit(model, budget="1GiB", cost="analytic")
    fitted(X).sum().backward()
    model.zero_grad()
    with caplog.at_level(logging.WARNING, logger="memfit"):
        for module in (plain, fitted, fitted):
            module.zero_grad()
            with FlopCounterMode(display=False) as counter:
                module(X).sum().backward()
            counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] == counted[2] > 0
    pairs = zip(plain.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)
    assert sum("without a plan" in r.getMessage() for r in caplog.records) == 1
    with pytest.raises(UsageError, match="FlopCounterMode"), FlopCounterMode(display=False):
        plan()


def test_a_compiler_that_is_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    off = torch._dynamo.config.patch(disable=True)
    with off, caplog.at_level(logging.WARNING, logger="memfit"):
        assert fit().plan is None
    assert "TORCHDYNAMO_DISABLE" in caplog.text
    with off, pytest.raises(UsageError, match="TORCHDYNAMO_DISABLE"):
        plan()


class Jagged(nn.Module):
    """Works on sequences of several lengths without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))

    def forward(self, values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """A mean over all."""
        made = torch.nested.nested_tensor_from_jagged(values, offsets)
        return self.body(made).values().square().mean()


def test_nested_tensors_inside_of_forward() -> None:
    torch.manual_seed(0)
    plain = Jagged()
    model = Jagged()
    model.load_state_dict(plain.state_dict())
    values, ends = torch.randn(12, 4), torch.tensor([0, 3, 7, 12])
    least = memfit.plan(model, (values, ends), budget="1GiB", cost="analytic")
    fitted = memfit.fit(model, budget=least.smallest_feasible_budget_bytes, cost="analytic")
    for given in (ends, torch.tensor([0, 5, 6, 12]), torch.tensor([0, 12])):
        plain.zero_grad()
        model.zero_grad()
        losses = [call(values, given) for call in (plain, fitted)]
        for loss in losses:
            loss.backward()
        assert torch.equal(*losses)
        pairs = zip(plain.parameters(), model.parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs)
    torch._dynamo.reset()
    options = {"budget": "1GiB", "cost": "analytic"}
    with pytest.raises(CaptureError, match="nested tensors") as caught:
        torch.compile(Jagged(), backend="memfit", options=options)(values, ends)
    assert "\n" not in str(caught.value)
