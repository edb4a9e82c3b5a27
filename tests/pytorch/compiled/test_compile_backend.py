"""`torch.compile(backend="memfit")`: options, errors, passes without a backward, second uses."""

from __future__ import annotations

import copy
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

import memfit
from memfit.errors import (
    CaptureError,
    ExecutionError,
    InfeasibleBudgetError,
    MemfitError,
    UsageError,
)
from memfit.pytorch.compat.inductor import CppCompileError
from memfit.pytorch.compiled.compile_backend import memfit_backend, plans
from memfit.pytorch.compiled.warnings import BudgetWarning
from memfit.pytorch.cost.measure import measure_step

ROOT = Path(__file__).parents[3]

# PyTorch's own: while Inductor is imported, and where Dynamo goes on after a graph break.
pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


class Tower(nn.Module):
    """Layers with dropout."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[self._layer(width) for _ in range(6)])

    @staticmethod
    def _layer(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The tower on its input."""
        return self.layers(x)


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
    model = Tower()
    x = torch.randn(512, 64)
    expected = _step(model, model, x)
    options = _options("70%")
    got = _step(_compiled(model, options), model, x)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    (plan,) = plans(options)
    assert plan.overhead > 0
    assert plan.peak_bytes <= plan.budget_bytes < plan.plain_peak_bytes


def test_no_grad_runs_plainly() -> None:
    model = Tower().eval()
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
        ({"budget": "1GiB", "accumulate": "yes"}, "accumulate is 'yes'; give True or False"),
        ({"budget": "1GiB", "accumulate": True, "executor": "inductor"}, "not supported by exec"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _compiled(Tower(), options)(torch.randn(4, 64))
    assert type(caught.value).__qualname__ == "UsageError"
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_options_the_budget_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"^backend memfit has no budget; write torch.compile"):
        torch.compile(Tower(), backend="memfit")(torch.randn(4, 64))


def test_inductors_modes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^backend memfit has no mode 'max-autotune'"):
        torch.compile(Tower(), backend="memfit", mode="max-autotune")(torch.randn(4, 64))


def test_an_infeasible_budget_is_an_error_with_the_smallest_one() -> None:
    x = torch.randn(512, 64)
    with pytest.raises(InfeasibleBudgetError, match=r"^budget 100\.?0* KiB") as caught:
        _compiled(Tower(), _options("100KiB"))(x)
    model = Tower()
    options = _options(str(caught.value.minimum_bytes))
    _step(_compiled(model, options), model, x)
    assert plans(options)[0].peak_bytes == caught.value.minimum_bytes


def test_what_cannot_be_captured_is_named() -> None:
    table = nn.Embedding(10, 4, sparse=True)
    with pytest.raises(CaptureError, match="sparse=False"):
        _compiled(table, _options("1GiB"))(torch.arange(3))


def test_fullgraph() -> None:
    model = Tower()
    x = torch.randn(512, 64)
    options = _options("70%")
    call = torch.compile(model, backend="memfit", options=options, fullgraph=True)
    got, expected = _step(call, model, x), _step(model, model, x)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert len(plans(options)) == 1


def test_fullgraph_refuses_a_break_as_ever() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x.sin()

    call = torch.compile(broken, backend="memfit", options=_options("1GiB"), fullgraph=True)
    with pytest.raises(Exception, match="graph_break") as caught:
        call(torch.randn(4, requires_grad=True))
    assert not isinstance(caught.value, MemfitError)


def test_evaluation_runs_untouched() -> None:
    model = Tower().eval()
    x = torch.randn(64, 64)
    options = _options("1B")
    call = _compiled(model, options)
    with torch.no_grad():
        assert torch.equal(call(x), model(x))
    model.train()
    with torch.no_grad():
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        assert torch.equal(call(x), expected)
    assert plans(options) == []


def test_a_second_backward_pass_is_refused_and_the_first_one_still_works() -> None:
    model = Tower()
    x = torch.randn(32, 64)
    expected = _step(model, model, x)
    call = _compiled(model, _options("90%"))
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    loss = call(x).square().mean()
    with pytest.raises(ExecutionError, match=r"^retain_graph=True is not supported"):
        loss.backward(retain_graph=True)
    torch.manual_seed(0)
    loss = call(x).square().mean()
    with pytest.raises(ExecutionError, match=r"^create_graph=True"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    call(x).square().mean().backward()
    got = [p.grad for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_autocast_around_the_forward_pass() -> None:
    """Traced backward passes run without autocast, as eager's do outside of its block."""
    model = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU())
    x = torch.randn(64, 32)

    def step(call: Any) -> list[torch.Tensor]:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = call(x).float().square().mean()
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    options = _options("95%", cost="measured")  # bounds of 16-bit products are loose
    got, expected = step(_compiled(model, options)), step(model)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert plans(options)[0].overhead > 0


def test_inductors_failure_is_told_from_a_failed_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.graph import GraphLowering

    def fail(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no such tile\nand more")

    monkeypatch.setattr(GraphLowering, "codegen", fail)
    message = (
        r"^Inductor cannot generate code for .*NotImplementedError: no such tile; use "
        r'executor="eager-graph"'
    )
    x = torch.randn(16, 64)
    with pytest.raises(ExecutionError, match=message) as caught:
        _compiled(Tower(), _options("1GiB", executor="inductor"))(x)
    assert "\n" not in str(caught.value)
    fitted = memfit.fit(Tower(), budget="1GiB", executor="inductor", cost="analytic")
    with pytest.raises(ExecutionError, match=message.replace(".*", "Tower: ")):
        fitted(x)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            ImportError("/tmp/cache/ab/cab.main.so: file too short"),
            r"/tmp/cache/ab/cab\.main\.so: file too short; .* delete it and run again",
        ),
        (
            CppCompileError(["g++"], "m.cpp: In function:\nm.cpp:8:3: error: no at::vec\nmore"),
            r'CppCompileError: m\.cpp:8:3: error: no at::vec; use executor="eager-graph"',
        ),
    ],
)
def test_failures_of_the_compiler_and_damaged_libraries_are_told(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str
) -> None:
    from torch._inductor.codecache import PyCodeCache

    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(PyCodeCache, "load_by_key_path", fail)
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    x = torch.randn(16, 64)
    options = _options("1GiB", executor="inductor")
    fitted = memfit.fit(Tower(), budget="1GiB", executor="inductor", cost="analytic")
    for call in (_compiled(Tower(), options), fitted):
        with pytest.raises(ExecutionError, match=message) as caught:
            call(x)
        assert "\n" not in str(caught.value)


def test_another_budget_compiles_anew_and_the_same_one_does_not() -> None:
    model, x = Tower(), torch.randn(512, 64)
    made = []
    for budget in ("70%", "70%", "100%", "70%"):
        options = _options(budget)
        _step(_compiled(model, options), model, x)
        made.append([plan.overhead > 0 for plan in plans(options)])
    assert made == [[True], [], [False], []]


def test_a_dict_of_options_that_was_changed_is_read_anew() -> None:
    x = torch.randn(512, 64)
    options = _options("70%")
    first, second = Tower(), Halves(broken=False)
    _step(_compiled(first, options), first, x)
    options["budget"] = "1GiB"
    _compiled(second, options)(x).backward()
    (plan,) = plans(options)
    assert plan.budget_bytes == 2**30


class Halves(nn.Module):
    """Two towers, with a graph break between them if asked for."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.first, self.second, self.broken = Tower(), Tower(), broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A loss of both towers."""
        h = self.first(x)
        if self.broken:
            torch._dynamo.graph_break()
        return self.second(h).square().mean()


def _micro_step_peak(model: nn.Module, call: Any, x: torch.Tensor) -> int:
    """Memory of a pass that adds to gradients, with all that is there before."""
    held = [*model.parameters(), *(p.grad for p in model.parameters()), x]
    measured = measure_step(lambda: call(x).backward()).peak_bytes
    return measured + sum(t.numel() * t.element_size() for t in held if t is not None)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("broken", [False, True])
def test_gradients_that_are_accumulated_are_counted_where_that_is_asked_for(broken: bool) -> None:
    model, x = Halves(broken), torch.randn(512, 64)
    plain = copy.deepcopy(model)
    plain(x).backward()
    budget = _micro_step_peak(plain, plain, x) * 3 // 4
    plain.zero_grad()
    options = _options(f"{budget}B", accumulate=True, planner="liveness")
    compiled = _compiled(model, options)
    for _ in range(3):  # the graphs around a break are planned together in the second step
        for call in (plain, compiled):
            torch.manual_seed(0)
            call(x).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert len(plans(options)) == 1 + broken
    assert sum(plan.overhead for plan in plans(options)) > 0
    assert _micro_step_peak(model, compiled, x) <= budget


@pytest.mark.sampled(2)
@pytest.mark.parametrize("broken", [False, True])
def test_gradients_that_the_budget_has_no_room_for_are_told_once(broken: bool) -> None:
    model, x = Halves(broken), torch.randn(512, 64)
    compiled = _compiled(model, _options("60%", planner="liveness"))
    for _ in range(3):  # zeroed: nothing to tell
        model.zero_grad()
        compiled(x).backward()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", BudgetWarning)
        for _ in range(4):
            compiled(x).backward()
    (message,) = [str(w.message) for w in told if w.category is BudgetWarning]
    assert 'options "accumulate": True' in message


def test_buckets_of_ddp_are_named_and_counted_once() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model = Tower(width=512)
        plain, x = copy.deepcopy(model), torch.randn(64, 512)
        ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1)
        options = _options("50%", planner="liveness")
        compiled = _compiled(ddp, options)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", BudgetWarning)
            for _ in range(3):
                gradients = _step(compiled, ddp, x)
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(gradients, _step(plain, plain, x), strict=True))
    (message,) = [str(w.message) for w in told if w.category is BudgetWarning]
    assert len(plans(options)) > 1
    assert "DistributedDataParallel (torch._dynamo.config.optimize_ddp = False)" in message
    assert f"into {len(plans(options))} graphs" in message


def test_the_entry_point_is_the_backend() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry = project["entry-points"]["torch_dynamo_backends"]["memfit"]
    module, _, name = entry.partition(":")
    assert getattr(sys.modules[module], name) is memfit_backend


def test_importing_memfit_alone_does_not_import_torch() -> None:
    text = "import memfit, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", text], check=True)
