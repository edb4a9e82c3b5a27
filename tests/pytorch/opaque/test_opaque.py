"""Modules that cannot be traced run as one op, as in plain PyTorch, within the budget."""

from __future__ import annotations

import copy
import gc
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import memfit
from memfit.errors import CaptureError
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.opaque import record
from memfit.pytorch.opaque.notes import with_blocks_counted

WIDTH = 32
Step = Callable[["Part", torch.Tensor], torch.Tensor]


class Part(nn.Module):
    """Two layers, batch norm, and something between them that cannot be traced."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.norm = nn.BatchNorm1d(4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.step = step
        self.calls = 0
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape of its input."""
        return self.step(self, x)

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        """What can be traced."""
        return self.down(torch.tanh(self.norm(self.up(x))))


class Net(nn.Module):
    """Layers that are traced, before and after parts that are not."""

    def __init__(self, step: Step, parts: int = 2) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.parts = nn.ModuleList(Part(step) for _ in range(parts))
        self.last = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        x = self.first(x)
        for part in self.parts:
            x = x + part(x)
        return self.last(x).square().mean()


def _check(part: Part, x: torch.Tensor) -> torch.Tensor:
    y = part.mixed(x)
    if not torch.isfinite(y).all():
        y = y.clamp(-1, 1)
    return y


def _layer_drop(part: Part, x: torch.Tensor) -> torch.Tensor:
    return x if torch.rand([]) < 0.5 else F.dropout(part.mixed(x), 0.1)


def _pythons_random(part: Part, x: torch.Tensor) -> torch.Tensor:
    return part.mixed(x if random.random() < 0.5 else x.detach())


def _numpys_random(part: Part, x: torch.Tensor) -> torch.Tensor:
    return part.mixed(x * np.random.beta(1.0, 1.0))  # noqa: NPY002


def _transformed(part: Part, x: torch.Tensor) -> torch.Tensor:
    random.random()
    return part.mixed(torch.fft.irfft(torch.fft.rfft(x, dim=0) * (1 + 1j), n=len(x), dim=0))


def _masked(part: Part, x: torch.Tensor) -> torch.Tensor:
    y = part.mixed(x)
    return x * y[y > 0].mean()


def _experts(part: Part, x: torch.Tensor) -> torch.Tensor:
    chosen = part.up(x)[:, :2].argmax(1)
    made = torch.zeros_like(x)
    for expert in chosen.unique():
        (rows,) = torch.where(chosen == expert)
        made = made.index_add(0, rows, part.mixed(x[rows]) if len(rows) > 1 else x[rows])
    return made


def _packed(part: Part, x: torch.Tensor) -> torch.Tensor:
    packed = pack_padded_sequence(x.view(8, -1, WIDTH), torch.arange(32, 24, -1), batch_first=True)
    return pad_packed_sequence(part.lstm(packed)[0], batch_first=True)[0].reshape(x.shape)


def _force(part: Part, x: torch.Tensor) -> torch.Tensor:
    at = x.detach().requires_grad_()
    (force,) = torch.autograd.grad(torch.tanh(part.up(at)).sum(), at, create_graph=True)
    return x + force


def _counted(part: Part, x: torch.Tensor) -> torch.Tensor:
    part.calls += 1
    part.seen.append(part.calls)
    return part.mixed(x) if x.sum() != 0 else x


STEPS: dict[str, Step] = {
    "a check": _check,
    "layers left out": _layer_drop,
    "Python's random": _pythons_random,
    "NumPy's random": _numpys_random,
    "a Fourier transform": _transformed,  # its gradient is laid out in another way
    "a mask": _masked,
    "experts": _experts,
    "packed sequences": _packed,
    "a force": _force,
    "a counter": _counted,
}


SMALLEST_IS_PLAIN = {"a force"}  # nothing that is computed again lowers the peak


@dataclass
class Trained:
    """Some steps of a model: what they gave and left."""

    losses: list[float]
    gradients: dict[str, torch.Tensor | None]
    state: dict[str, torch.Tensor]
    numbers: tuple[float, float, float]


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002


def trained(call: Callable[..., torch.Tensor], model: nn.Module, x: torch.Tensor) -> Trained:
    """Three steps, gradients added up over the last two."""
    seed(1)
    losses = []
    for i in range(3):
        if i < 2:
            model.zero_grad(set_to_none=True)
        loss = call(x)
        loss.backward()
        losses.append(loss.item())
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    state = {n: t.clone() for n, t in model.state_dict().items()}
    numbers = (float(torch.rand([])), random.random(), float(np.random.rand()))  # noqa: NPY002
    return Trained(losses, gradients, state, numbers)


def assert_same(ours: Trained, plain: Trained, rounding: float = 0.0) -> None:
    """Bit for bit, or within `rounding` where sums of gradients have another order."""
    assert ours.losses == plain.losses
    assert ours.numbers == plain.numbers
    torch.testing.assert_close(ours.state, plain.state, rtol=0, atol=0)
    for name, gradient in plain.gradients.items():
        found = ours.gradients[name]
        assert (found is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(found, gradient, rtol=rounding, atol=rounding)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.fixture
def x() -> torch.Tensor:
    seed(0)
    return torch.randn(256, WIDTH)


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("name", "tight"),
    [
        pytest.param(
            name,
            tight,
            id=f"{name}-{'tight' if tight else 'ample'}",
            marks=[] if tight or name == "a counter" else pytest.mark.slow,
        )
        for name in STEPS
        for tight in (False, True)
    ],
)
def test_trains_as_in_plain_pytorch(name: str, tight: bool, x: torch.Tensor) -> None:
    model = Net(STEPS[name])
    plain = copy.deepcopy(model)
    seed(1)  # what a part keeps may depend on what it draws
    made = memfit.plan(model, (x,), budget="1GiB", cost="analytic")
    budget = made.smallest_feasible_budget_bytes if tight else "100%"
    fitted = memfit.fit(model, budget=budget, cost="analytic")
    # What a part reads twice gets its gradients added up inside of it.
    rounding = 1e-6 if name == "a mask" else 0.0
    assert_same(trained(fitted, model, x), trained(plain, plain, x), rounding)
    assert fitted.plan is not None
    assert (fitted.plan.overhead > 0) == (tight and name not in SMALLEST_IS_PLAIN)
    for ours, theirs in zip(model.parts, plain.parts, strict=True):
        assert (ours.calls, ours.seen) == (theirs.calls, theirs.seen)
        assert "forward" not in vars(ours)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name",
    [
        "a check",
        "a Fourier transform",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("packed sequences", "a force")),
    ],
)
def test_the_measured_peak_is_the_planned_one(name: str, x: torch.Tensor) -> None:
    model = Net(STEPS[name], parts=3)
    least = memfit.plan(model, (x,), budget="1GiB").smallest_feasible_budget_bytes
    fitted = memfit.fit(model, budget=least)
    measured = measure_step(
        lambda: fitted(x).backward(), reset=lambda: model.zero_grad(set_to_none=True)
    )
    assert fitted.plan is not None
    assert fitted.graph is not None
    assert fitted.graph.resident_bytes + measured.peak_bytes <= fitted.plan.budget_bytes
    gc.collect()
    assert not record._owners  # nothing is kept beyond the step


def test_it_is_told_once_and_in_the_plan(x: torch.Tensor, caplog: pytest.LogCaptureFixture) -> None:
    fitted = memfit.fit(Net(_layer_drop), budget="100%", cost="analytic")
    with caplog.at_level(logging.WARNING, "memfit"):
        for _ in range(3):
            fitted.zero_grad()
            fitted(x).backward()
    (told,) = [r.getMessage() for r in caplog.records if "cannot be traced" in r.getMessage()]
    assert "test_opaque.py:" in told
    assert "_layer_drop()" in told
    assert "fullgraph=True" in told
    assert fitted.plan is not None
    assert any("_layer_drop() cannot be traced and" in note for note in fitted.plan.notes)


def test_fullgraph_refuses_it(x: torch.Tensor) -> None:
    with pytest.raises(CaptureError, match=r"test_opaque\.py:\d+"):
        memfit.fit(Net(_layer_drop), budget="100%", cost="analytic", fullgraph=True)(x)
    with pytest.raises(memfit.UsageError, match="fullgraph"):
        memfit.fit(Net(_layer_drop), budget="100%", fullgraph="yes")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_new_shape_is_seen_before_it_is_planned(x: torch.Tensor) -> None:
    model = Net(_check)
    plain = copy.deepcopy(model)
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    for rows in (256, 64, 256):
        assert_same(trained(fitted, model, x[:rows]), trained(plain, plain, x[:rows]))
    assert len(fitted.plans) == 2


@pytest.mark.slow
def test_verify_and_the_trade_off_take_it(x: torch.Tensor) -> None:
    assert memfit.verify(Net(_check), (x,), budget="100%", cost="analytic", rounds=1).ok
    assert len(memfit.trade_off(Net(_check), (x,), cost="analytic").points) > 1


def _regularised(
    model: nn.Linear, limit: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def loss(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if target.max() > limit:
            raise ValueError(f"labels over {limit}")
        return F.mse_loss(y, target) + model.weight.square().sum()

    return loss


def test_a_loss_function_that_checks_its_labels(x: torch.Tensor) -> None:
    model = nn.Linear(WIDTH, WIDTH)
    plain = copy.deepcopy(model)
    fitted = memfit.fit(model, _regularised(model, 100.0), budget="100%", cost="analytic")
    fitted(x, x).backward()
    _regularised(plain, 100.0)(plain(x), x).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    with pytest.raises(ValueError, match="labels over"):
        fitted(x, 1000 + x)


class Dropping(nn.Module):
    """A stack of blocks, of which some are left out by chance."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(WIDTH, 8 * WIDTH),
                nn.BatchNorm1d(8 * WIDTH),
                nn.GELU(),
                nn.Dropout(0.1),
                nn.Linear(8 * WIDTH, WIDTH),
            )
            for _ in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        for block in self.blocks:
            if torch.rand([]).item() > 0.2:
                x = x + block(x)
        return x.square().mean()


def test_blocks_between_code_that_cannot_be_traced_are_computed_again(
    x: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    model = Dropping()
    plain = copy.deepcopy(model)
    fitted = memfit.fit(model, budget="60%", cost="analytic")
    with caplog.at_level(logging.WARNING, "memfit"):
        assert_same(trained(fitted, model, x), trained(plain, plain, x))
    assert any("computed again, one by one" in r.getMessage() for r in caplog.records)
    assert fitted.plan is not None
    assert memfit.plan(Dropping(), (x,), budget="60%", cost="analytic").peak_bytes > 0


def test_what_blocks_compute_again_is_overhead_of_the_plan(x: torch.Tensor) -> None:
    plan = memfit.plan(Dropping(), (x,), budget="60%", cost="analytic")
    assert plan.overhead_percent > 10  # of a forward pass, which is a third of the step
    assert not plan.schedule.recomputed_ops
    (note,) = [note for note in plan.notes if "as one op" in note]
    assert "with blocks computed again one by one" in note
    ample = memfit.plan(Dropping(), (x,), budget="100%", cost="analytic")
    assert ample.overhead == 0


def test_a_plan_that_is_given_counts_blocks_once(x: torch.Tensor) -> None:
    model = Dropping()
    fitted = memfit.fit(model, budget="60%", cost="analytic")
    fitted(x).backward()
    plan = fitted.plan
    assert plan is not None
    assert with_blocks_counted(plan, 5) is plan


def _own_generator(part: Part, x: torch.Tensor) -> torch.Tensor:
    return part.mixed(x * torch.rand(WIDTH, generator=GENERATOR))


def _writes(part: Part, x: torch.Tensor) -> torch.Tensor:
    y = part.mixed(x)
    return x.mul_(2) if y.sum() > -1e9 else y


GENERATOR = torch.Generator()


def test_what_an_op_cannot_stand_for_is_refused(x: torch.Tensor) -> None:
    model = Net(_own_generator)
    with pytest.raises(CaptureError) as caught:
        memfit.fit(model, budget="100%", cost="analytic")(x)
    assert "\n" not in str(caught.value)
    assert "forward" not in vars(model.parts[0])


def test_a_part_that_writes_to_its_input_is_taken_with_what_is_around_it(x: torch.Tensor) -> None:
    model = Net(_writes)
    plain = copy.deepcopy(model)
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    assert_same(trained(fitted, model, x), trained(plain, plain, x))


@pytest.mark.parametrize("traced", [True, False])
def test_gradients_inside_are_a_part_of_the_graph_or_of_what_is_opaque(
    traced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Penalty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(WIDTH, 64), nn.Softplus(), nn.Linear(64, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not traced and torch.rand([]) > 2:
                return x.sum()
            (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
            return (slope.norm(dim=1) - 1).square().mean()

    model = Penalty()
    plain = copy.deepcopy(model)
    given = torch.randn(64, WIDTH, requires_grad=True)
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    with caplog.at_level(logging.WARNING, "memfit"):
        fitted(given).backward()
    plain(given).backward()
    assert traced is not bool([r for r in caplog.records if "traced" in r.getMessage()])
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        if theirs.grad is None or ours.grad is None:
            assert ours.grad is theirs.grad
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_autocast_is_as_it_is_around_the_call(x: torch.Tensor) -> None:
    model = Net(_check)
    plain = copy.deepcopy(model)
    fitted = memfit.fit(model, budget="100%", cost="analytic")

    def under(call: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(given: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                made: torch.Tensor = call(given)
                return made

        return run

    assert_same(trained(under(fitted), model, x), trained(under(plain), plain, x))


class Penalty(nn.Module):
    """A critic's loss: batch norm without gradients, then gradients of something made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(8, WIDTH), nn.BatchNorm1d(WIDTH))
        self.critic = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))

    def forward(self, real: torch.Tensor) -> torch.Tensor:
        """The loss."""
        with torch.no_grad():
            made = self.generator(torch.randn(len(real), 8))
        between = (0.5 * real + 0.5 * made).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        return self.critic(made).mean() + (slope.norm(2, 1) - 1).square().mean()


def test_a_plain_run_that_fails_leaves_nothing(x: torch.Tensor) -> None:
    plain = Penalty()
    model = copy.deepcopy(plain)
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    assert_same(trained(fitted, model, x), trained(plain, plain, x))


class Reversed(nn.Module):
    """Numbers are drawn for parts in one order, and used in another."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Part(_pythons_scale) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        made = [part(x) for part in self.parts]
        for y in reversed(made):
            x = torch.tanh(x * y)
        return x.square().mean()


def _pythons_scale(part: Part, x: torch.Tensor) -> torch.Tensor:
    return part.down(part.up(x)) * random.random()


@pytest.mark.slow
def test_what_draws_elsewhere_keeps_its_order(x: torch.Tensor) -> None:
    plain = Reversed()
    model = copy.deepcopy(plain)
    least = memfit.plan(model, (x,), budget="1GiB").smallest_feasible_budget_bytes
    fitted = memfit.fit(model, budget=least)
    assert_same(trained(fitted, model, x), trained(plain, plain, x), rounding=1e-6)
