"""`torch.compile(backend="memfit")`: several graphs in one step share one budget."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memfit.graph.plan import Plan
from memfit.pytorch.compiled.compile_backend import plans
from memfit.pytorch.compiled.warnings import BudgetWarning
from memfit.pytorch.cost.measure import measure_step

# PyTorch's own: while Inductor is imported, and where Dynamo goes on after a graph break.
pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


class Halves(nn.Module):
    """Two towers with dropout, and between them a line that Dynamo cannot trace."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.first = nn.Sequential(*[self._layer() for _ in range(layers)])
        self.second = nn.Sequential(*[self._layer() for _ in range(layers)])

    @staticmethod
    def _layer() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The second tower on the first one's result."""
        x = self.first(x)
        torch._dynamo.graph_break()  # the break
        return self.second(x)


BREAK = next(
    f"test_graph_breaks.py:{number}"
    for number, line in enumerate(Path(__file__).read_text().splitlines(), 1)
    if line.endswith("# the break")
)


class Block(nn.Module):
    """Two layers with a break between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block on its input, added to it."""
        y = nn.functional.dropout(self.up(x).tanh(), 0.1)
        torch._dynamo.graph_break()
        return nn.functional.dropout(self.down(y).tanh(), 0.1) + x


class Stack(nn.Module):
    """Blocks of one class, so that all run the same graphs; the head has the first one's weight."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(64, 64)
        self.head.weight = self.blocks[0].up.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The blocks, one after the other, and the head."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def _mean_square(y: torch.Tensor) -> torch.Tensor:
    return y.square().mean()


def _step(call: Any, model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    _mean_square(call(x)).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _options(budget: object, **more: Any) -> dict[str, Any]:
    return {"budget": budget, "cost": "analytic", **more}


def _compiled(model: nn.Module, options: dict[str, Any], **more: Any) -> Any:
    return torch.compile(model, backend="memfit", options=options, **more)


def _measured(
    call: Callable[..., Any],
    model: nn.Module,
    x: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor] = torch.sum,
) -> int:
    """Peak of a step in bytes; by itself the loss, outside of the graphs, takes next to nothing."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss(call(x)).backward()

    step()
    held = sum(p.nbytes for p in model.parameters()) + x.nbytes
    return held + measure_step(step).peak_bytes


def _equal(got: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def _overhead(made: list[Plan]) -> int:
    return sum(plan.overhead for plan in made)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kib", [2560, 5120])
def test_two_graphs_share_one_budget(kib: int) -> None:
    model, x = Halves(), torch.randn(512, 64)
    expected = _step(model, model, x)
    options = _options(kib * 1024)
    call = _compiled(model, options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        assert _equal(_step(call, model, x), expected)
        before = plans(options)
        assert _equal(_step(call, model, x), expected)
        assert _equal(_step(call, model, x), expected)
    after = plans(options)
    assert len(before) == len(after) == 2
    assert sum(p.plain_peak_bytes for p in after) > kib * 1024  # sharing is needed
    assert 0 < _overhead(after) < _overhead(before)
    assert _measured(call, model, x) <= kib * 1024


@pytest.mark.slow
def test_the_first_step_is_within_the_budget_too() -> None:
    model, x = Halves(), torch.randn(512, 64)
    warm = Halves()  # the libraries that the first step would load
    _measured(_compiled(warm, _options("1GiB")), warm, x)
    torch._dynamo.reset()
    budget = 2560 * 1024
    call = _compiled(model, _options(budget))

    def forward() -> Any:
        return call(x)

    held = sum(p.nbytes for p in model.parameters()) + x.nbytes
    forward()  # compiled, and its graphs freed without a backward pass
    measured = measure_step(lambda: forward().sum().backward(), warmup=0)
    assert held + measured.peak_bytes <= budget


def test_an_ample_budget_recomputes_nothing() -> None:
    model, x = Halves(), torch.randn(512, 64)
    options = _options("1GiB")
    call = _compiled(model, options)
    for _ in range(2):
        _step(call, model, x)
    assert _overhead(plans(options)) == 0


def test_a_share_is_one_of_the_whole_steps_plain_peak() -> None:
    model, x = Halves(), torch.randn(512, 64)
    plain = _measured(model, model, x, _mean_square)
    options = _options("60%")
    call = _compiled(model, options)
    expected = _step(model, model, x)
    for _ in range(3):
        assert _equal(_step(call, model, x), expected)
    measured = _measured(call, model, x, _mean_square)
    assert 0.5 * plain < measured <= 0.6 * plain


@pytest.mark.slow
def test_a_budget_that_two_graphs_cannot_share_names_the_break() -> None:
    model, x = Halves(), torch.randn(512, 64)
    expected = _step(model, model, x)
    call = _compiled(model, _options("1300KiB"))
    with pytest.warns(BudgetWarning, match=f"the first step takes .*{BREAK}"):
        assert _equal(_step(call, model, x), expected)
    with pytest.warns(BudgetWarning, match=f"{BREAK} splits the step into 2 graphs") as caught:
        assert _equal(_step(call, model, x), expected)
    asked = re.search(r"raise the budget to (\d+) bytes", str(caught[0].message))
    assert asked is not None
    # With that much, it can.
    call = _compiled(model, _options(int(asked[1])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BudgetWarning)  # the first step's graphs are not known yet
        _step(call, model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        assert _equal(_step(call, model, x), expected)
    assert _measured(call, model, x) <= int(asked[1])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("budget", [2048 * 1024, "70%", "100%"])
def test_graphs_that_run_several_times_in_a_step(budget: object) -> None:
    model, x = Stack(), torch.randn(512, 64)
    plain = _measured(model, model, x)
    expected = _step(model, model, x)
    options = _options(budget)
    call = _compiled(model, options)
    for _ in range(3):
        assert _equal(_step(call, model, x), expected)
    assert len(plans(options)) < 9  # the runs of a step: two of each block, and the head
    limit = budget if isinstance(budget, int) else plain * int(str(budget)[:-1]) // 100
    assert _measured(call, model, x) <= limit
    # A weight of two graphs is counted once: else not even the plain step would fit into 100%.
    assert (_overhead(plans(options)) == 0) == (budget == "100%")


def test_a_backward_pass_that_is_still_to_come_keeps_its_own_code() -> None:
    model, x, y = Halves(), torch.randn(512, 64), torch.randn(512, 64)
    expected = _step(model, model, y)
    options = _options(3584 * 1024)
    call = _compiled(model, options)
    first = call(x).square().mean()
    torch.manual_seed(0)
    second = call(y).square().mean()
    first.backward()
    before = plans(options)
    third = call(x)  # a new step: plans are exchanged
    assert [p.schedule for p in plans(options)] != [p.schedule for p in before]
    model.zero_grad(set_to_none=True)
    second.backward()
    assert _equal([p.grad for p in model.parameters() if p.grad is not None], expected)
    del third


@pytest.mark.slow
def test_forward_passes_without_a_backward_pass_are_no_part_of_a_step() -> None:
    model, x = Halves(), torch.randn(512, 64)
    options = _options(3584 * 1024)
    call = _compiled(model, options)
    for _ in range(5):
        call(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BudgetWarning)
        for _ in range(3):
            _step(call, model, x)
    assert _measured(call, model, x) <= 3584 * 1024


@pytest.mark.slow
def test_modules_compiled_apart_with_the_same_options_share_the_budget() -> None:
    first, second, x = Halves().first, Halves().second, torch.randn(512, 64)
    model = nn.Sequential(first, second)
    expected = _step(model, model, x)
    options = _options(3584 * 1024)
    parts = [_compiled(part, options) for part in (first, second)]

    def call(x: torch.Tensor) -> torch.Tensor:
        return parts[1](parts[0](x))

    with pytest.warns(BudgetWarning, match="the first step takes"):  # no break tells of the second
        assert _equal(_step(call, model, x), expected)
    for _ in range(2):
        assert _equal(_step(call, model, x), expected)
    assert _measured(call, model, x) <= 3584 * 1024


@pytest.mark.slow
def test_each_shape_has_its_own_plans() -> None:
    model = Halves()
    options = _options(3584 * 1024)
    call = _compiled(model, options, dynamic=False)
    for batch in (512, 256, 512, 256):
        x = torch.randn(batch, 64)
        expected = _step(model, model, x)
        assert _equal(_step(call, model, x), expected)
    assert len(plans(options)) == 4
    assert all(p.overhead == 0 for p in plans(options)[2:])
    x = torch.randn(512, 64)
    assert _measured(call, model, x) <= 3584 * 1024


@pytest.mark.slow
def test_inductors_code_is_exchanged_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = Halves(layers=3)
    x = torch.randn(512, 64)
    options = _options("90%", executor="inductor")
    ample = _options("1GiB", executor="inductor")
    expected = _step(_compiled(model, ample), model, x)
    torch._dynamo.reset()
    call = _compiled(model, options)
    steps = []
    for _ in range(2):
        assert _equal(_step(call, model, x), expected)
        steps.append([p.schedule for p in plans(options)])
    assert steps[0] != steps[1]
