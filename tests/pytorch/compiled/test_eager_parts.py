"""What code outside of the graphs holds is counted, and the budget divided around it, or told."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from memfit.errors import InfeasibleBudgetError
from memfit.pytorch.compiled.compile_backend import plans
from memfit.pytorch.compiled.eager_parts import EagerParts, eager_parts
from memfit.pytorch.compiled.warnings import BudgetWarning
from memfit.pytorch.cost.measure import measure_step

# PyTorch's own, where Dynamo goes on after a graph break.
pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

ROWS, WIDTH = 512, 64
SIZE = ROWS * WIDTH * 4  # bytes of a value
PLAIN_ENGINE = torch.autograd._engine_run_backward

Inside = Callable[[torch.Tensor], torch.Tensor]


def _sines(x: torch.Tensor) -> torch.Tensor:
    """Three values are saved, each the input of a sine; the first is the caller's."""
    return x.sin().sin().sin()


def _nothing(x: torch.Tensor) -> torch.Tensor:
    return x


class Tower(nn.Module):
    """Layers that can be computed again."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(layers)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layers on their input."""
        return self.layers(x)


class Around(nn.Module):
    """Two towers, which are compiled, and code before, between and after them, which is not."""

    def __init__(self, before: Inside = _nothing, between: Inside = _nothing) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.first, self.second = Tower(10), Tower(10)
        self.before, self.between = before, between

    def forward(self, x: torch.Tensor, first: Any, second: Any) -> torch.Tensor:
        """The result of the second tower."""
        return second(self.between(first(self.before(x * self.scale))))


class ByChance(nn.Module):
    """Layers that a draw leaves out: Dynamo leaves all of it to PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
            for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The blocks that are drawn."""
        for block in self.blocks:
            if torch.rand(1).item() > 0.1:  # the draw
                x = x + block(x)
        return x


LINE = next(
    f"test_eager_parts.py:{number}"
    for number, line in enumerate(Path(__file__).read_text().splitlines(), 1)
    if line.endswith("# the draw")
)


def _options(budget: object, **more: Any) -> dict[str, Any]:
    return {"budget": budget, "cost": "analytic", "planner": "liveness", **more}


class Step:
    """Steps of a model, plain or with its towers compiled."""

    def __init__(self, model: Around, loss: Inside = torch.sum) -> None:
        self.model, self.loss = model, loss
        self.x = torch.randn(ROWS, WIDTH)
        self.towers: tuple[Any, Any] = (model.first, model.second)

    def compiled(self, options: dict[str, Any]) -> Step:
        """From now on both towers are compiled."""
        self.towers = tuple(
            torch.compile(tower, backend="memfit", options=options)
            for tower in (self.model.first, self.model.second)
        )
        return self

    def __call__(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.loss(self.model(self.x, *self.towers)).backward()

    @property
    def gradients(self) -> list[torch.Tensor]:
        """Gradients of a step."""
        self()
        return [p.grad.clone() for p in self.model.parameters() if p.grad is not None]

    @property
    def peak_bytes(self) -> int:
        """Measured, with all that is there before."""
        held = sum(p.nbytes for p in self.model.parameters()) + self.x.nbytes
        return held + measure_step(self).peak_bytes


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[EagerParts]:
    """What is found of code outside of the graphs, each time that it is looked for."""
    found: list[EagerParts] = []
    look = eager_parts

    def looking(*args: Any, **kwargs: Any) -> EagerParts | None:
        parts = look(*args, **kwargs)
        if parts is not None:
            found.append(parts)
        return parts

    monkeypatch.setattr("memfit.pytorch.compiled.runs.eager_parts", looking)
    return found


def _told(step: Callable[[], object], times: int) -> list[str]:
    """What some steps are warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BudgetWarning)
        for _ in range(times):
            step()
    return [str(w.message) for w in caught if w.category is BudgetWarning]


def _own(found: list[EagerParts], runs: int) -> list[int]:
    """What each part holds that no graph knows."""
    (parts,) = found
    assert len(parts.parts) == runs + 1
    return [part.own_bytes if part is not None else 0 for part in parts.parts]


def test_what_is_kept_before_between_and_after_the_graphs_is_seen(seen: list[EagerParts]) -> None:
    step = Step(Around(_sines, _sines), lambda y: y.exp().sum()).compiled(_options("1GiB"))
    step()
    # The product saves x and the scale, a parameter; each sine what it is given; exp its result.
    assert _own(seen, 2) == [4 * SIZE, 3 * SIZE, SIZE]
    step()
    step()
    assert len(seen) == 1


def test_what_has_died_before_the_backward_pass_is_not_counted(seen: list[EagerParts]) -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        x.sin().sin().sum()  # nobody asks for its gradients
        return x + 1

    Step(Around(between=between)).compiled(_options("1GiB"))()
    assert _own(seen, 2)[1] == 0


def test_recomputed_values_are_not_counted(seen: list[EagerParts]) -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(_sines, x, use_reentrant=False)

    step = Step(Around(between=between))
    expected = step.gradients
    step.compiled(_options("1GiB"))
    for _ in range(3):
        assert all(map(torch.equal, step.gradients, expected))
    assert _own(seen, 2)[1] == 0


def test_what_the_users_own_hooks_packed_is_counted(seen: list[EagerParts]) -> None:
    packed = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal packed
        packed += 1
        return tensor.half()

    def between(x: torch.Tensor) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, torch.Tensor.float):
            return _sines(x)

    step = Step(Around(between=between))
    expected = step.gradients
    step.compiled(_options("1GiB"))
    before = packed
    assert all(map(torch.equal, step.gradients, expected))
    assert packed == before + 3  # as often as without
    assert _own(seen, 2)[1] == 3 * SIZE // 2


def test_an_input_written_in_place_is_told_as_ever() -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        z = y.sin()
        y.mul_(2)
        return z

    step = Step(Around(between=between)).compiled(_options("1GiB"))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        step()


def test_functional_gradients_between_graphs_work() -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        return x + torch.func.grad(lambda y: y.square().sum())(x.detach())

    step = Step(Around(between=between))
    expected = step.gradients
    step.compiled(_options("1GiB"))
    for _ in range(3):
        assert all(map(torch.equal, step.gradients, expected))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("before", "between", "loss"),
    [
        (_sines, _nothing, torch.sum),
        (_nothing, _sines, torch.sum),
        (_nothing, _nothing, lambda y: y.sin().exp().mean()),
        (_sines, _sines, lambda y: y.square().mean()),
    ],
)
@pytest.mark.parametrize("percent", [75, 90])
def test_the_budget_holds_with_eager_code_counted(
    before: Inside, between: Inside, loss: Inside, percent: int
) -> None:
    step = Step(Around(before, between), loss)
    expected, budget = step.gradients, step.peak_bytes * percent // 100
    options = _options(budget)
    step.compiled(options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BudgetWarning)  # of the first step
        step()
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        for _ in range(2):
            assert all(map(torch.equal, step.gradients, expected))
    assert step.peak_bytes <= budget
    assert sum(plan.overhead for plan in plans(options)) > 0


def test_a_share_is_one_of_the_step_with_its_eager_code() -> None:
    step = Step(Around(_sines, _sines), lambda y: y.square().mean())
    plain = step.peak_bytes
    step.compiled(_options("80%"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        for _ in range(3):
            step()
    assert 0.7 * plain < step.peak_bytes <= 0.8 * plain


def test_a_budget_that_eager_code_leaves_no_room_in_is_told_with_one_that_does() -> None:
    step = Step(Around(between=lambda x: _sines(_sines(_sines(x)))))
    budget = step.peak_bytes * 6 // 10
    options = _options(budget)
    step.compiled(options)
    (message,) = [text for text in _told(step, 3) if "kept by code outside of planned" in text]
    asked = re.search(r"raise the budget to (\d+) bytes$", message)
    assert asked is not None
    assert budget < step.peak_bytes <= int(asked[1])
    step.compiled(_options(int(asked[1])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BudgetWarning)
        step()
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        step()
        assert step.peak_bytes <= int(asked[1])


@pytest.mark.parametrize("share", [True, False])
def test_a_step_without_a_graph_is_told_once_with_the_line_and_a_remedy(share: bool) -> None:
    model, x = ByChance(), torch.randn(ROWS, WIDTH)
    held = sum(p.nbytes for p in model.parameters()) + x.nbytes

    def step(call: Any) -> None:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        call(x).square().mean().backward()

    plain = held + measure_step(lambda: step(model)).peak_bytes
    options = _options("60%" if share else 6 * plain // 10)
    call = torch.compile(model, backend="memfit", options=options)
    (message,) = _told(lambda: step(call), 3)
    assert LINE in message
    assert "fit the model with memfit.fit" in message
    asked = re.search(r"raise the budget to (\d+) bytes$", message)
    assert asked is not None
    assert 0.9 * plain <= int(asked[1]) <= 1.1 * plain
    assert torch.autograd._engine_run_backward is PLAIN_ENGINE


def test_a_step_without_a_graph_within_its_budget_is_not_told() -> None:
    model = ByChance()
    call = torch.compile(model, backend="memfit", options=_options("1GiB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        call(torch.randn(ROWS, WIDTH)).sum().backward()


def test_a_graph_that_is_a_small_part_is_not_refused_a_share() -> None:
    model = nn.Sequential(ByChance(), nn.LayerNorm(WIDTH))
    x = torch.randn(ROWS, WIDTH)
    loss = torch.compile(lambda y: y.square().mean(), backend="memfit", options=_options("60%"))
    (message,) = _told(lambda: loss(model(x)).backward(), 2)
    assert "kept by code outside of planned graphs, before the first of them" in message


def test_a_whole_step_that_no_plan_fits_a_share_of_is_refused() -> None:
    call = torch.compile(Tower(1), backend="memfit", options=_options("1%"))
    x = torch.randn(ROWS, WIDTH)
    call(x).sum().backward()  # it may be a small part
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible budget"):
        call(x)


def test_nothing_is_watched_after_the_backward_pass_has_begun() -> None:
    step = Step(Around(_sines, _sines)).compiled(_options("1GiB"))
    watched = []
    step.loss = lambda y: watched.append(torch.autograd._engine_run_backward) or y.sum()
    for _ in range(3):
        step()
        assert torch.autograd._engine_run_backward is PLAIN_ENGINE
    assert [engine is PLAIN_ENGINE for engine in watched] == [False, True, True]


def test_what_watches_goes_with_the_graphs() -> None:
    step = Step(Around()).compiled(_options("1GiB"))
    step.model(step.x, *step.towers)  # no backward pass
    assert torch.autograd._engine_run_backward is not PLAIN_ENGINE
    torch.compiler.reset()
    step.towers = (step.model.first, step.model.second)
    step()
    step()
    assert torch.autograd._engine_run_backward is PLAIN_ENGINE


def test_recurrent_layers_are_traced_and_other_backends_settings_left_alone() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(16, 16, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0].square().mean()

    torch.manual_seed(0)
    model, x = Recurrent(), torch.randn(8, 5, 16)
    model(x).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    options = _options("1GiB")
    torch.compile(model, backend="memfit", options=options)(x).backward()
    assert len(plans(options)) == 1
    got = [p.grad for p in model.parameters()]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, expected, strict=True))
    assert not torch._dynamo.config.allow_rnn
    traced: list[torch.fx.GraphModule] = []
    torch._dynamo.reset()
    torch.compile(model, backend=lambda module, _: traced.append(module) or module)(x)
    assert not traced


@pytest.mark.slow
def test_a_sequence_that_begins_like_a_longer_one_is_looked_at(seen: list[EagerParts]) -> None:
    step = Step(Around(between=_sines)).compiled(_options("1GiB"))
    step()
    step()
    for _ in range(3):  # the first time it is not known before that no second graph comes
        step.model.zero_grad()
        step.loss(step.towers[0](step.x).sin()).backward()
    step()
    assert [len(found.parts) for found in seen] == [3, 2]


def test_gradients_that_the_forward_pass_asks_for_are_no_end_of_the_step(
    seen: list[EagerParts],
) -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        y = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(y.sin().sum(), y)
        return _sines(x + gradient)

    step = Step(Around(between=between))
    expected = step.gradients
    step.compiled(_options("1GiB"))
    for _ in range(2):
        assert all(map(torch.equal, step.gradients, expected))
    assert _own(seen, 2)[1] == 3 * SIZE


def test_looking_keeps_nothing_alive() -> None:
    step = Step(Around(_sines, _sines)).compiled(_options("1GiB"))
    step()  # compiled
    torch._dynamo.reset()
    step.compiled(_options("2GiB"))
    step()
    ends = [measure_step(step, warmup=0).end_bytes for _ in range(3)]
    gradients = sum(p.nbytes for p in step.model.parameters())
    assert all(end <= gradients + 4096 for end in ends)


def test_the_parts_of_a_step_of_two_threads_are_left_alone() -> None:
    step = Step(Around(between=_sines)).compiled(_options("1GiB"))
    w = torch.ones(8, requires_grad=True)
    other = threading.Thread(target=lambda: w.sin().sum().backward())
    step.loss = lambda y: (other.start(), other.join(), y.sum())[2]
    step()
    assert w.grad is not None
    assert torch.autograd._engine_run_backward is PLAIN_ENGINE


def test_an_error_that_the_caller_handles_is_not_dynamos() -> None:
    model, x = Tower(), torch.randn(ROWS, WIDTH)
    call = torch.compile(model, backend="memfit", options=_options("90%"))
    try:
        raise ValueError("the caller's")
    except ValueError:
        told = _told(lambda: call(x).sum().backward(), 3)
    assert told == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_graph_inside_of_a_checkpoint_trains_as_ever(reentrant: bool) -> None:
    step = Step(Around())
    step.x.requires_grad_()
    plain = step.model.first

    def inside(tower: Any) -> Any:
        return lambda y: checkpoint(lambda z: tower(z).sin(), y, use_reentrant=reentrant)

    step.towers = (inside(plain), step.model.second)
    expected = step.gradients
    first, second = step.compiled(_options("1GiB")).towers
    step.towers = (inside(first), second)
    for _ in range(3):
        assert all(map(torch.equal, step.gradients, expected))
    assert torch.autograd._engine_run_backward is PLAIN_ENGINE


def test_gradients_of_edges_and_of_several_forward_passes_are_as_ever() -> None:
    step = Step(Around(between=_sines))

    def twice(y: torch.Tensor) -> torch.Tensor:
        other = step.model(step.x * 2, *step.towers)
        other.cos().sum().backward()
        edge = torch.autograd.graph.get_gradient_edge(y.exp())
        torch.autograd.backward([edge], [torch.ones_like(y)])
        return torch.zeros((), requires_grad=True)

    step.loss = twice
    expected = step.gradients
    step.compiled(_options("1GiB"))
    for _ in range(3):
        assert all(map(torch.equal, step.gradients, expected))
    assert torch.autograd._engine_run_backward is PLAIN_ENGINE


@pytest.mark.slow
def test_steps_that_differ_each_time_are_not_looked_at_for_ever(
    seen: list[EagerParts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memfit.pytorch.compiled.runs.MOST_SEQUENCES", 2)
    step = Step(Around()).compiled(_options("1GiB"))
    first, second = step.towers
    for inside in ((first, second), (second, first), (first, second, first), (second, second)):
        for _ in range(3):
            y = step.x
            for tower in inside:
                y = tower(y.sin())
            y.sum().backward()
    assert len(seen) == 2
