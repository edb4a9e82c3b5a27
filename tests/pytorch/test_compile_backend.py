"""`torch.compile(backend="memfit")`: options, passes without a backward, graph breaks."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memfit.pytorch.compile_backend import memfit_backend, plans
from memfit.pytorch.measure import measure_step
from memfit.pytorch.step_budget import BudgetWarning

ROOT = Path(__file__).parents[2]

# PyTorch's own: while Inductor is imported, and where Dynamo goes on after a graph break.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


class Halves(nn.Module):
    """Two towers with dropout, and between them, if asked, a line that Dynamo cannot trace."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(*[self._layer() for _ in range(6)])
        self.second = nn.Sequential(*[self._layer() for _ in range(6)])
        self.broken = broken

    @staticmethod
    def _layer() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The second tower on the first one's result."""
        x = self.first(x)
        if self.broken:
            torch._dynamo.graph_break()  # the break
        return self.second(x)


BREAK = next(
    f"test_compile_backend.py:{number}"
    for number, line in enumerate(Path(__file__).read_text().splitlines(), 1)
    if line.endswith("# the break")
)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _step(call: Any, model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    call(x).square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _options(budget: str, **more: Any) -> dict[str, Any]:
    return {"budget": budget, "cost": "analytic", **more}


def _compiled(model: nn.Module, options: dict[str, Any]) -> Any:
    return torch.compile(model, backend="memfit", options=options)


def test_gradients_equal_eagers_within_the_budget() -> None:
    model = Halves(broken=False)
    x = torch.randn(512, 64)
    expected = _step(model, model, x)
    options = _options("70%")
    got = _step(_compiled(model, options), model, x)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    (plan,) = plans(options)
    assert plan.overhead > 0
    assert plan.peak_bytes <= plan.budget_bytes < plan.plain_peak_bytes


def test_no_grad_runs_plainly() -> None:
    model = Halves(broken=False).eval()
    x = torch.randn(8, 64)
    options = _options("1B")
    with torch.no_grad():
        result = _compiled(model, options)(x)
        assert torch.equal(result, model(x))
    assert plans(options) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgt": "1GiB"}, "unknown option 'budgt' of backend memfit; known options: budget, "),
        ({"planner": "auto"}, "has no budget"),
        ({"budget": "1GiB", "executor": "fast"}, "known executors: eager-graph, inductor"),
        ({"budget": "1GiB", "cost": "guess"}, "known costs: measured, analytic"),
        ({"budget": "1GiB", "time_limit_s": -1}, "time_limit_s is -1"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    model = Halves(broken=False)
    with pytest.raises(Exception, match="UsageError") as caught:
        _compiled(model, options)(torch.randn(4, 64))
    inner = caught.value.inner_exception  # type: ignore[attr-defined]
    assert message in str(inner)
    assert "\n" not in str(inner)


def test_two_graphs_share_one_budget() -> None:
    model = Halves(broken=True)
    x = torch.randn(512, 64)
    expected = _step(model, model, x)
    budget = 7 * 2**19
    options = _options(str(budget))
    call = _compiled(model, options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        got = _step(call, model, x)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    first, second = plans(options)
    assert first.plain_peak_bytes + second.plain_peak_bytes > budget  # sharing is needed
    assert first.budget_bytes + second.budget_bytes < 2 * budget
    held = sum(p.nbytes for p in model.parameters()) + x.nbytes

    def step() -> None:  # what the loss takes outside of the graphs is not in the budget
        model.zero_grad(set_to_none=True)
        call(x).sum().backward()

    step()
    measured = measure_step(step)
    assert held + measured.peak_bytes <= budget


def test_a_budget_that_two_graphs_cannot_share_names_the_break() -> None:
    model = Halves(broken=True)
    x = torch.randn(512, 64)
    expected = _step(model, model, x)
    with pytest.warns(BudgetWarning, match=f"{BREAK} splits the step into 2 graphs"):
        got = _step(_compiled(model, _options("1600KiB")), model, x)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_later_shape_takes_the_place_of_the_first() -> None:
    """Graphs of the same code at another shape are no further graphs of the step."""
    model = Halves(broken=True)
    options = _options("3584KiB")
    call = torch.compile(model, backend="memfit", options=options, dynamic=False)
    for batch in (512, 256, 128):
        _step(call, model, torch.randn(batch, 64))
    assert len(plans(options)) == 6
    sixth = plans(options)[5]
    assert sixth.budget_bytes > plans(options)[1].budget_bytes


def test_dynamic_shapes_run_without_a_plan_and_say_so() -> None:
    model = nn.Linear(8, 8)
    call = torch.compile(model, backend="memfit", options=_options("1MiB"), dynamic=True)
    with pytest.warns(BudgetWarning, match="dynamic=False"):
        call(torch.randn(4, 8)).sum().backward()


def test_the_entry_point_is_the_backend() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry = project["entry-points"]["torch_dynamo_backends"]["memfit"]
    module, _, name = entry.partition(":")
    assert getattr(sys.modules[module], name) is memfit_backend


def test_importing_memfit_alone_does_not_import_torch() -> None:
    text = "import memfit, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", text], check=True)
