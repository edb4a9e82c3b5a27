"""`torch.compile(backend="memfit")`: graphs of symbolic sizes are specialised and planned."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from memfit.errors import ExecutionError, InfeasibleBudgetError
from memfit.pytorch.compiled import planned_graph
from memfit.pytorch.compiled.compile_backend import plans
from memfit.pytorch.compiled.warnings import BudgetWarning
from memfit.pytorch.cost.measure import measure_step

# PyTorch's own: while Inductor is imported, and where Dynamo goes on after a graph break.
pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


class Tower(nn.Module):
    """Layers with dropout and batch norm, scaled by the number of samples."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Dropout(0.1)) for _ in range(6)
        )
        self.norm = nn.BatchNorm1d(64)
        self.broken = broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The tower on its input."""
        count = x.shape[0] * 2
        for layer in self.layers[:3]:
            x = layer(x)
        if self.broken:
            torch._dynamo.graph_break()
        for layer in self.layers[3:]:
            x = layer(x)
        return self.norm(x).view(-1, 32) / count


def _options(budget: object, **more: Any) -> dict[str, Any]:
    return {"budget": budget, "cost": "analytic", **more}


def _compiled(model: Any, options: dict[str, Any], **more: Any) -> Any:
    return torch.compile(model, backend="memfit", options=options, **more)


def _step(call: Any, model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Gradients and buffers after a step from the same buffers."""
    model.zero_grad(set_to_none=True)
    for buffer in model.buffers():
        buffer.zero_()
    torch.manual_seed(0)
    call(x).square().mean().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [*grads, *(b.clone() for b in model.buffers())]


def _equal(got: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("broken", [False, True])
def test_each_combination_of_sizes_is_planned(broken: bool) -> None:
    model = Tower(broken)
    budget = 2048 * 1024
    options = _options(budget)
    call = _compiled(model, options)  # dynamic=None: the second shape gives a symbolic graph
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        for batch in (512, 384, 448, 384, 384):
            x = torch.randn(batch, 64)
            assert _equal(_step(call, model, x), _step(model, model, x))
    assert len(plans(options)) == 3 * (1 + broken)
    x = torch.randn(448, 64)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        call(x).sum().backward()

    step()
    step()
    held = sum(p.nbytes for p in (*model.parameters(), *model.buffers())) + x.nbytes
    assert held + measure_step(step).peak_bytes <= budget
    assert sum(p.overhead for p in plans(options)) > 0


def test_a_size_is_planned_once() -> None:
    model = Tower()
    options = _options("1GiB")
    call = _compiled(model, options, dynamic=True)
    for batch in (8, 16, 8, 16, 8):
        _step(call, model, torch.randn(batch, 64))
    assert len(plans(options)) == 2


def test_an_infeasible_size_is_an_error_when_it_is_met() -> None:
    model = Tower()
    options = _options("600KiB")
    call = _compiled(model, options, dynamic=True)
    _step(call, model, torch.randn(128, 64))
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible budget"):
        call(torch.randn(4096, 64))
    _step(call, model, torch.randn(128, 64))


def test_evaluation_at_any_size_compiles_nothing() -> None:
    model = Tower().eval()
    options = _options("1B")
    call = _compiled(model, options, dynamic=True)
    with torch.no_grad():
        for batch in range(2, 90, 4):
            x = torch.randn(batch, 64)
            assert torch.equal(call(x), model(x))
    assert plans(options) == []


def test_many_sizes_are_warned_of_and_then_run_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned_graph, "MANY_SHAPES", 3)
    monkeypatch.setattr(planned_graph, "MAX_SHAPES", 5)
    monkeypatch.setattr(planned_graph, "FEW_SHAPES", 64)
    model = nn.Linear(8, 8)
    options = _options("1MiB")
    call = _compiled(model, options, dynamic=True)
    said = []
    for batch in range(2, 11):
        x = torch.randn(batch, 8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", BudgetWarning)
            got = _step(call, model, x)
        said.extend((batch, str(w.message)) for w in caught)
        assert _equal(got, _step(model, model, x))
    assert [batch for batch, _ in said] == [4, 7]
    assert (
        "for 3 combinations of input sizes; each takes its time, and there may be 5" in said[0][1]
    )
    assert "others run without a plan" in said[1][1]
    assert len(plans(options)) == 5


class Layers(nn.Module):
    """Layers with dropout, that can be computed again."""

    def __init__(self, writes: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Dropout(0.1)) for _ in range(8))
        )
        self.register_buffer("count", torch.zeros(64))
        self.writes = writes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layers on their input."""
        if self.writes:
            self.count.add_(x.detach().sum(0))
        return self.layers(x)


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("budget", ["1GiB", "70%"])
def test_sizes_that_are_others_in_each_step_are_not_all_planned(budget: str, writes: bool) -> None:
    model = Layers(writes)
    options = _options(budget, planner="liveness")
    call = _compiled(model, options, dynamic=True)
    for rows in range(300, 330):
        x = torch.randn(rows, 64)
        assert _equal(_step(call, model, x), _step(model, model, x))
    assert len(plans(options)) == 4


def test_without_a_plan_a_graph_gives_up_what_it_keeps_where_plans_do() -> None:
    model = nn.Sequential(Layers(), Layers(), Layers())
    held = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
    parts = list(model)

    def call(x: torch.Tensor) -> torch.Tensor:
        for part in parts:
            x = part(x)
        return x

    def peak(x: torch.Tensor) -> int:
        def step() -> None:
            model.zero_grad(set_to_none=True)
            call(x).sum().backward()

        return held + x.nbytes + measure_step(step).peak_bytes

    most = torch.randn(600, 64)
    budget = peak(most) * 3 // 4
    options = _options(budget, planner="liveness")
    parts = [_compiled(part, options, dynamic=True) for part in model]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BudgetWarning)  # of the first step
        for rows in range(590, 600):
            x = torch.randn(rows, 64)
            assert _equal(_step(call, model, x), _step(model, model, x))
    assert len(plans(options)) <= 12
    assert peak(most) <= budget


def test_sizes_that_come_back_are_planned() -> None:
    model = Layers()
    options = _options("1GiB", planner="liveness")
    call = _compiled(model, options, dynamic=True)
    found = []
    for _ in range(7):
        for rows in (8, 16, 24, 32, 40, 48):
            _step(call, model, torch.randn(rows, 64))
        found.append(len(plans(options)))
    assert found == [4, 5, 5, 5, 6, 6, 6]


def test_a_second_backward_pass_is_refused() -> None:
    call = _compiled(Tower(), _options("1GiB"), dynamic=True)
    with pytest.raises(ExecutionError, match=r"^retain_graph=True"):
        call(torch.randn(8, 64)).sum().backward(retain_graph=True)


def test_a_float_that_changes_is_one_of_the_sizes() -> None:
    def work(x: torch.Tensor, scale: float) -> torch.Tensor:
        return (x * scale).tanh().sum()

    options = _options("1MiB")
    call = _compiled(work, options)
    x = torch.randn(4, 8, requires_grad=True)
    for scale in (0.5, 0.25, 0.125, 0.25):
        (got,) = torch.autograd.grad(call(x, scale), [x])
        (expected,) = torch.autograd.grad(work(x, scale), [x])
        assert torch.equal(got, expected)
    assert len(plans(options)) == 3


def test_strides_and_shared_memory_are_part_of_the_key() -> None:
    """The same sizes in another layout, and two inputs in one storage of which one is written."""

    def work(w: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a.mul_(2)
        return (w * b * a).sum()

    options = _options("1MiB")
    call = _compiled(work, options, dynamic=True)
    for shared in (False, True, False):
        for transposed in (False, True):
            given = []
            for _ in range(2):
                torch.manual_seed(1)
                w = torch.randn(6, 6, requires_grad=True)
                a = torch.randn(6, 6)
                a = a.t() if transposed else a
                b = a[:] if shared else torch.randn(6, 6)
                given.append((w, a, b))
            call(*given[0]).backward()
            work(*given[1]).backward()
            assert torch.equal(given[0][0].grad, given[1][0].grad)
            assert torch.equal(given[0][1], given[1][1])


@pytest.mark.slow
def test_inductor_generates_code_for_each_size(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    options = _options("1MiB", executor="inductor")
    call = _compiled(model, options, dynamic=True)
    for batch in (32, 16):
        x = torch.randn(batch, 8)
        got, expected = _step(call, model, x), _step(model, model, x)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert len(plans(options)) == 2
