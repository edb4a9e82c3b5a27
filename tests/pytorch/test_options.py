"""Every door takes the same options, as far as they make sense there, and refuses others alike."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.pytorch.api.entry import capture
from memfit.pytorch.api.planned_method import PlannedMethod
from memfit.pytorch.compiled import compile_backend
from memfit.pytorch.options import KEYWORDS, StepKeywords, step_options

X, Y = torch.randn(4, 6), torch.randn(4, 6)
Door = Callable[..., Any]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))


def compiled(**options: Any) -> Any:
    return torch.compile(network(), backend="memfit", options=options)(X)


def with_budget(door: Door) -> Door:
    return lambda **options: door(**{"budget": "100%", "cost": "analytic", **options})


def without_budget(door: Door) -> Door:
    return lambda **options: door(**{"cost": "analytic", **options})


DOORS: dict[str, Door] = {
    "memfit.fit": with_budget(lambda **o: memfit.fit(network(), F.mse_loss, **o)),
    "memfit.plan": with_budget(lambda **o: memfit.plan(network(), (X, Y), F.mse_loss, **o)),
    "memfit.verify": with_budget(lambda **o: memfit.verify(network(), (X, Y), F.mse_loss, **o)),
    "memfit.trade_off": without_budget(
        lambda **o: memfit.trade_off(network(), (X, Y), F.mse_loss, **o)
    ),
    "memfit.fit_blocks": with_budget(
        lambda **o: memfit.fit_blocks(model := network(), [model[0]], **o)
    ),
    "capture": without_budget(lambda **o: capture(network(), (X, Y), F.mse_loss, **o)),
    "backend memfit": with_budget(compiled),
    "PlannedMethod": with_budget(lambda **o: PlannedMethod(network(), **o)),
}


@pytest.mark.parametrize("door", DOORS)
def test_an_unknown_option_is_named_in_one_line(door: str) -> None:
    with pytest.raises(memfit.UsageError) as caught:
        DOORS[door](planers="auto")
    text = str(caught.value)
    assert text.startswith("unknown option 'planers' of ")
    assert "known options: " in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("door", "option", "value"),
    [
        ("memfit.plan", "shapes", [(X,)]),
        ("memfit.plan", "executor", "inductor"),
        ("memfit.trade_off", "budget", "1GiB"),
        ("memfit.verify", "overlap", True),
        ("memfit.fit_blocks", "plan", "plan.json"),
        ("capture", "time_limit_s", 1),
        ("backend memfit", "loops", "roll"),
    ],
)
def test_an_option_that_makes_no_sense_is_named_in_one_line(
    door: str, option: str, value: Any
) -> None:
    with pytest.raises(memfit.UsageError, match=f"^option '{option}' makes no sense for {door}; "):
        DOORS[door](**{option: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": True, "executor": "inductor"}, "accumulate=True is not supported"),
        ({"loops": "roll", "executor": "inductor"}, 'loops="roll" is not supported'),
        ({"optimizer_bytes": 8, "optimizer": "sgd"}, "optimizer and optimizer_bytes"),
        ({"optimizer_bytes": -1}, "optimizer_bytes is -1"),
        ({"max_shapes": 0}, "max_shapes is 0"),
        ({"budget": None}, "memfit.fit has no budget"),
    ],
)
def test_options_that_clash_are_named(options: dict[str, Any], message: str) -> None:
    model = network()
    if "optimizer" in options:
        options = {**options, "optimizer": torch.optim.SGD(model.parameters())}
    with pytest.raises(memfit.UsageError, match=message):
        memfit.fit(model, **{"budget": "1GiB", **options})


@pytest.mark.sampled(3)
@pytest.mark.parametrize("door", ["memfit.plan", "memfit.trade_off", "memfit.verify", "capture"])
@pytest.mark.parametrize(
    "options", [{"accumulate": True}, {"loops": "unroll"}, {"optimizer_bytes": "1MB"}]
)
def test_what_is_captured_can_be_said_at_every_door(door: str, options: dict[str, Any]) -> None:
    DOORS[door](**options)


def test_the_size_of_an_optimizers_state_counts_as_the_optimizer_does() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    size = 2 * sum(p.nbytes for p in model.parameters())
    given = memfit.plan(model, (X,), budget="100%", cost="analytic", optimizer=optimizer)
    parts = {"steps": 4 * len(optimizer.param_groups[0]["params"])}
    sized = memfit.plan(
        model, (X,), budget="100%", cost="analytic", optimizer_bytes=size + parts["steps"]
    )
    assert sized.peak_bytes == given.peak_bytes
    assert sized.peak_parts["optimizer_state"] == size + parts["steps"]


def test_verify_runs_what_fit_would() -> None:
    model = network()
    plan = memfit.plan(model, (X, Y), F.mse_loss, budget="100%", cost="analytic")
    result = memfit.verify(model, (X, Y), F.mse_loss, plan=plan, cost="analytic", rounds=1)
    assert result.ok
    assert result.plan.schedule == plan.schedule
    result = memfit.verify(model, (X, Y), F.mse_loss, budget="100%", accumulate=True, rounds=1)
    assert result.ok
    assert result.plan.peak_parts["parameter_gradients"] >= sum(
        p.nbytes for p in model.parameters()
    )


def test_keywords_are_in_one_group_each() -> None:
    made = step_options("memfit.fit", {"budget": "1GiB"})
    groups = [made.capture, made.planning, made.run]
    found = [name for group in groups for name in group.__dataclass_fields__]
    assert sorted([*found, "progress"]) == sorted(KEYWORDS)
    assert set(KEYWORDS) == set(StepKeywords.__annotations__)


def test_copies_of_a_fitted_module_take_no_optimizer_along() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    fitted = memfit.fit(model, budget="100%", cost="analytic", optimizer=optimizer)
    other = pickle.loads(pickle.dumps(fitted))
    other(X).sum().backward()
    fitted(X).sum().backward()
    assert other.plan.peak_bytes == fitted.plan.peak_bytes
    assert other._make_backend.fresh.options.capture.optimizer is None


def test_a_call_of_torch_compile_is_forgotten_with_its_graphs() -> None:
    torch.compiler.reset()
    options = {"budget": "100%", "cost": "analytic"}
    for _ in range(3):
        run = torch.compile(network(), backend="memfit", options=dict(options))
        run(X).sum().backward()
        torch.compiler.reset()
        del run
        gc.collect()
    assert not compile_backend._calls
