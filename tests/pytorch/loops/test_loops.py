"""Loops: unrolled cells, `scan` and `while_loop` unrolled or rolled into one op, opaque layers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

import memfit
from memfit.errors import CaptureError, InfeasibleBudgetError, UsageError
from memfit.graph.plan import Plan
from memfit.pytorch.api.entry import capture
from memfit.pytorch.capture.progress import CAPTURING, TRACING
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.loops.opaque import opaque_notes
from memfit.strategies.binomial import advances
from memfit.strategies.loops import LoopPlan


class Recurrent(nn.Module):
    """A cell over the first dimension: by `scan`, or by a loop in Python as the reference."""

    def __init__(self, cell: nn.Module, width: int, states: int = 1) -> None:
        super().__init__()
        self.cell = cell
        self.head = nn.Linear(width, 3)
        self.states = states
        self.width = width
        self.in_python = False

    def step(self, state: tuple[torch.Tensor, ...], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The next state."""
        if self.states == 1:
            return (self.cell(x, state[0]),)
        return self.cell(x, state)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        """Of the last state and of all outputs."""
        state = tuple(xs.new_zeros(xs.shape[1], self.width) for _ in range(self.states))
        if self.in_python:
            outputs = []
            for x in xs.unbind(0):
                state = self.step(state, x)
                outputs.append(state[0])
            ys = torch.stack(outputs)
        else:

            def body(carry: Any, x: torch.Tensor) -> Any:
                carry = self.step(carry, x)
                return carry, carry[0].clone()

            state, ys = scan(body, state, xs)
        return self.head(ys.mean(0) + state[0])


class Noisy(nn.Module):
    """A cell of one's own that draws a dropout mask in every step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """The next state."""
        return torch.tanh(F.dropout(self.mix(torch.cat([x, h], 1)), 0.3, self.training))


CELLS: dict[str, Callable[[int], Recurrent]] = {
    "lstm": lambda w: Recurrent(nn.LSTMCell(w, w), w, 2),
    "gru": lambda w: Recurrent(nn.GRUCell(w, w), w),
    "noisy": lambda w: Recurrent(Noisy(w), w),
}


def gradients(model: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What one step gave, and no gradient is left."""
    tensors = [*model.parameters(), *(x for x in inputs if x.requires_grad)]
    found = []
    for tensor in tensors:
        assert tensor.grad is not None
        found.append(tensor.grad)
        tensor.grad = None
    return found


def run(module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(7)
    loss = module(*inputs)
    loss.backward()
    return loss


def both(
    model: Recurrent, fitted: nn.Module, xs: torch.Tensor, target: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Loss and gradients of the fitted module, and of the loop in Python."""
    mine = [run(fitted, xs, target).detach()]
    mine += gradients(model, [xs])
    model.in_python = True
    torch.manual_seed(7)
    loss = F.mse_loss(model(xs), target)
    loss.backward()
    plain = [loss.detach(), *gradients(model, [xs])]
    model.in_python = False
    return mine, plain


def data(steps: int, batch: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(steps, batch, width, requires_grad=True), torch.randn(batch, 3)


def notes(plan: Plan | None) -> str:
    assert plan is not None
    return "\n".join(plan.notes)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("cell", "room"),
    [
        ("lstm", 8192),
        ("gru", 8192),
        ("noisy", 2**14),
        pytest.param("lstm", 2**24, marks=pytest.mark.slow),
    ],
)
def test_rolled_gradients_are_eagers_within_the_budget(cell: str, room: int) -> None:
    """To the bit where the next step reads a carried tensor once.

    Where it reads one twice, as a GRU cell does, the loop in Python adds the gradient of the
    output before the second of these two, and a rolled loop after both.
    """
    steps, batch, width = 40, 4, 32
    model = CELLS[cell](width)
    xs, target = data(steps, batch, width)
    with pytest.raises(InfeasibleBudgetError) as least:
        memfit.fit(model, F.mse_loss, budget=1, loops="roll", cost="analytic")(xs, target)
    budget = int(least.value.minimum_bytes) + room
    fitted = memfit.fit(model, F.mse_loss, budget=budget, loops="roll", cost="analytic")
    mine, plain = both(model, fitted, xs, target)
    for a, b in zip(mine, plain, strict=True):
        assert torch.equal(a, b) if cell != "gru" else torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert fitted.plan is not None
    assert fitted.graph is not None
    made = LoopPlan(*fitted.plan.provenance["loops"][0])
    assert (made.forward_steps > steps) == (room < 2**24)

    def reset() -> None:
        for tensor in (*model.parameters(), xs):
            tensor.grad = None

    measured = measure_step(lambda: run(fitted, xs, target), reset=reset).peak_bytes
    resident = fitted.graph.resident_bytes
    assert measured <= fitted.plan.peak_bytes - resident <= budget - resident
    assert measured >= 0.8 * (fitted.plan.peak_bytes - resident)


@pytest.mark.slow
def test_rolled_gradients_are_those_of_torchs_own_scan() -> None:
    model = CELLS["gru"](16)
    xs, target = data(20, 2, 16)
    fitted = memfit.fit(model, F.mse_loss, budget="90%", loops="roll", cost="analytic")
    run(fitted, xs, target)
    mine = gradients(model, [xs])
    F.mse_loss(model(xs), target).backward()
    for a, b in zip(mine, gradients(model, [xs]), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_rolled_loop_is_two_ops_whatever_its_length() -> None:
    model = CELLS["lstm"](8)
    counts = set()
    for steps in (50, 400):
        xs, target = data(steps, 2, 8)
        step = capture(model, (xs, target), F.mse_loss, cost="analytic")
        counts.add(len(step.graph.ops))
        assert sum("loop_" in op.target for op in step.graph.ops) == 2
    assert len(counts) == 1


def test_a_short_scan_is_unrolled() -> None:
    model = CELLS["lstm"](8)
    xs, target = data(6, 2, 8)
    fitted = memfit.fit(model, F.mse_loss, budget="95%", cost="analytic")
    mine, plain = both(model, fitted, xs, target)
    assert all(torch.equal(a, b) for a, b in zip(mine, plain, strict=True))
    assert fitted.graph is not None
    assert not any("loop_" in op.target for op in fitted.graph.ops)


def test_a_plan_made_before_is_used() -> None:
    model = CELLS["lstm"](16)
    xs, target = data(40, 2, 16)
    plan = memfit.plan(model, (xs, target), F.mse_loss, budget="70%", cost="analytic", loops="roll")
    assert plan.overhead > 0
    again = memfit.fit(
        model, F.mse_loss, plan=Plan.from_json(plan.to_json()), loops="roll", cost="analytic"
    )
    mine, plain = both(model, again, xs, target)
    assert all(torch.equal(a, b) for a, b in zip(mine, plain, strict=True))
    assert again.plan is not None
    assert again.plan.schedule == plan.schedule
    assert "rolled, 40 steps" in notes(again.plan)


@pytest.mark.slow
def test_a_rolled_loop_needs_no_more_steps_than_revolve_at_equal_memory() -> None:
    model = CELLS["lstm"](16)
    xs, target = data(200, 2, 16)
    found = []
    for budget in ("60%", "50%"):
        fitted = memfit.fit(model, F.mse_loss, budget=budget, loops="roll", cost="analytic")
        run(fitted, xs, target)
        assert fitted.plan is not None
        made = LoopPlan(*fitted.plan.provenance["loops"][0])
        state = 2 * 2 * 16 * 4  # bytes: h and c of two sequences
        record = 6 * 2 * 16 * 4  # at least: four gates, c and tanh of the next c
        slots = made.slots + (made.leaf - 1) * record // state
        assert made.forward_steps <= 200 + advances(200, slots + 1)
        found.append(made.forward_steps)
    assert 200 < found[0] < found[1]


def test_a_loop_outlives_its_fitted_module_until_the_backward_pass() -> None:
    model = CELLS["lstm"](8)
    xs, target = data(40, 2, 8)
    fitted = memfit.fit(model, F.mse_loss, budget="80%", loops="roll", cost="analytic")
    loss = fitted(xs, target)
    del fitted
    gc.collect()
    loss.backward()
    mine = gradients(model, [xs])
    model.in_python = True
    F.mse_loss(model(xs), target).backward()
    assert all(torch.equal(a, b) for a, b in zip(mine, gradients(model, [xs]), strict=True))


class Counted(nn.Module):
    """A `while_loop` with a counter, or with a condition on data."""

    def __init__(self, trips: int, on_data: bool = False) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)
        self.trips = trips
        self.on_data = on_data
        self.in_python = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The state after the loop."""

        def condition(i: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return h.sum() < 100 if self.on_data else i < 2 * self.trips

        def body(i: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return i + 2, torch.tanh(self.mix(h)) + 0.01 * i

        state = (torch.zeros((), dtype=torch.long), x)
        if self.in_python:
            for _ in range(self.trips):
                state = body(*state)
        else:
            state = while_loop(condition, body, state)
        return state[1]


@pytest.mark.parametrize("loops", ["roll", "unroll"])
def test_while_loop_with_a_counter(loops: str) -> None:
    model, x = Counted(12), torch.randn(4, 8, requires_grad=True)
    fitted = memfit.fit(model, budget="90%", loops=loops, cost="analytic")
    fitted(x).square().sum().backward()
    mine = gradients(model, [x])
    model.in_python = True
    model(x).square().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(mine, gradients(model, [x]), strict=True))
    assert ("12 steps" in notes(fitted.plan)) == (loops == "roll")


def test_while_loop_on_data_is_an_error_that_says_so() -> None:
    fitted = memfit.fit(Counted(3, on_data=True), budget="90%", cost="analytic")
    with pytest.raises(CaptureError, match=r"trip count of while_loop is not fixed.*scan"):
        fitted(torch.randn(4, 8))


def test_unknown_loops() -> None:
    with pytest.raises(UsageError, match="auto, roll, unroll"):
        memfit.fit(nn.Linear(2, 2), budget="1MB", loops="fold")
    with pytest.raises(UsageError, match="inductor"):
        memfit.fit(nn.Linear(2, 2), budget="1MB", loops="roll", executor="inductor")


class Layer(nn.Module):
    """`nn.LSTM`, which PyTorch runs step by step without cuDNN."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        """Of the last output."""
        return self.head(self.layer(xs)[0][-1])


@pytest.mark.slow
def test_a_recurrent_layer_keeps_its_budget() -> None:
    model = Layer()
    torch.manual_seed(0)
    xs, target = torch.randn(12, 4, 16), torch.randn(4, 3)
    fitted = memfit.fit(model, F.mse_loss, budget="98%", cost="analytic")
    loss = run(fitted, xs, target)
    mine = gradients(model, [])
    plain = F.mse_loss(model(xs), target)
    plain.backward()
    assert torch.allclose(loss, plain, rtol=1e-6)
    for a, b in zip(mine, gradients(model, []), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)  # eager runs oneDNN's layer
    assert fitted.plan is not None
    assert fitted.graph is not None

    def reset() -> None:
        for tensor in model.parameters():
            tensor.grad = None

    measured = measure_step(lambda: run(fitted, xs, target), reset=reset).peak_bytes
    assert measured <= fitted.plan.budget_bytes - fitted.graph.resident_bytes


def test_what_unrolling_an_opaque_layer_would_gain() -> None:
    steps, batch, width = 100, 8, 16
    graph = fx.Graph()
    given = graph.placeholder("xs")
    given.meta["val"] = torch.empty(steps, batch, width)
    node = graph.call_function(torch.ops.aten._cudnn_rnn.default, (given,))
    state = torch.empty(1, batch, width)
    reserve = torch.empty(steps * batch * width * 24, dtype=torch.uint8)
    node.meta["val"] = (torch.empty(steps, batch, width), state, state, reserve, torch.empty(0))
    (note,) = opaque_notes([given, node])
    assert "runs 100 steps as one op and keeps 300.0 KiB" in note
    assert "nn.LSTMCell" in note
    assert f"{10 * (1024 + 3072) / 1024:.1f} KiB with every step run twice" in note


@pytest.mark.slow
def test_progress_of_a_long_capture() -> None:
    cell, told = nn.Linear(4, 4), []

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            h = self.cell(h)
            for _ in range(210):
                h = h.neg()
            return h.sum()

    fitted = memfit.fit(
        Unrolled(),
        budget="100%",
        planner="store-all",
        cost="analytic",
        progress=lambda *x: told.append(x),
    )
    fitted(torch.randn(2, 4)).backward()
    shares = [share for label, share in told if label == TRACING]
    assert told[0] == (CAPTURING, 0.0)
    assert shares == sorted(shares)
    assert len(shares) > 50
    assert shares[-1] == 1.0


@pytest.mark.slow
def test_an_lstm_of_512_unrolled_steps_keeps_a_tight_budget() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(256, 256)
            self.head = nn.Linear(256, 3)

        def forward(self, xs: torch.Tensor) -> torch.Tensor:
            h = xs.new_zeros(32, 256)
            c = torch.zeros_like(h)
            for x in xs.unbind(0):
                h, c = self.cell(x, (h, c))
            return self.head(h)

    model = Cells()
    torch.manual_seed(0)
    xs, target = torch.randn(512, 32, 256), torch.randn(32, 3)
    fitted = memfit.fit(model, F.mse_loss, budget="30%")
    run(fitted, xs, target)
    mine = gradients(model, [])
    F.mse_loss(model(xs), target).backward()
    assert all(torch.equal(a, b) for a, b in zip(mine, gradients(model, []), strict=True))
    assert fitted.plan is not None
    assert fitted.graph is not None

    def reset() -> None:
        for tensor in model.parameters():
            tensor.grad = None

    measured = measure_step(lambda: run(fitted, xs, target), reset=reset).peak_bytes
    assert measured <= fitted.plan.budget_bytes - fitted.graph.resident_bytes


@pytest.mark.slow
def test_two_thousand_rolled_steps_in_two_percent_of_plain() -> None:
    model = CELLS["lstm"](32)
    torch.manual_seed(0)
    xs, target = torch.randn(2000, 16, 32), torch.randn(16, 3)

    def reset() -> None:
        for tensor in model.parameters():
            tensor.grad = None

    model.in_python = True
    plain = measure_step(lambda: F.mse_loss(model(xs), target).backward(), reset=reset).peak_bytes
    model.in_python = False
    outputs = 2 * xs.numel() * 4  # the stacked outputs and their gradient, whatever the plan
    resident = 4 * (xs.numel() + target.numel() + sum(p.numel() for p in model.parameters()))
    budget = resident + outputs + plain // 50
    fitted = memfit.fit(model, F.mse_loss, budget=budget, loops="roll", cost="analytic")
    reset()
    mine, eager = both(model, fitted, xs.requires_grad_(False), target)
    assert all(torch.equal(a, b) for a, b in zip(mine, eager, strict=True))
    assert fitted.plan is not None
    made = LoopPlan(*fitted.plan.provenance["loops"][0])
    assert made.forward_steps <= 4 * 2000
    measured = measure_step(lambda: run(fitted, xs, target), reset=reset).peak_bytes
    assert measured <= budget - resident
