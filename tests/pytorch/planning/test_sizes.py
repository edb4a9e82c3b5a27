"""Several input shapes of one fitted module: plans ahead, taken over, kept on disk; limits."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.errors import CaptureError, InfeasibleBudgetError, UsageError
from memfit.graph.simulator import simulate
from memfit.pytorch.api.fitted import FittedModule
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.planning.sizes import (
    WARN_AT,
    WARN_AT_SAME,
    ShapeCount,
    in_planning_order,
    parse_shapes,
)

WIDTH, WORDS, BATCH = 32, 50, 4


class Reader(nn.Module):
    """Attention with dropout over a sequence, a batch norm, a running metric."""

    length: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.first = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)
        self.register_buffer("length", torch.zeros(()))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits for each token."""
        h = self.embed(ids).transpose(1, 2)
        h = torch.relu(self.norm(self.first(h))).transpose(1, 2)
        self.length += ids.shape[1]
        for _ in range(2):
            q, k, v = self.qkv(h).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
            weights = F.dropout(torch.softmax(q @ k.transpose(-1, -2), -1), 0.1, self.training)
            h = h + (weights @ v).transpose(1, 2).flatten(2)
            h = h + self.mix(h)
        return self.head(h)


class Deeper(nn.Module):
    """A network whose number of layers depends on its input's length: another structure."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As many layers as there are rows, over eight."""
        for _ in range(x.shape[0] // 8):
            x = torch.tanh(self.layer(x))
        return x


def token_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def square_loss(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (y - target).square().mean()


def batch(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, WORDS, (BATCH, length), generator=generator)
    return ids, ids.roll(1, 1).contiguous()


def described(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    one = torch.empty(BATCH, length, dtype=torch.int64, device="meta")
    return one, one.clone()


def reader() -> Reader:
    torch.manual_seed(0)
    return Reader()


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path / "cache"))


def budget_for(length: int, share: float) -> int:
    """Bytes between the least and the plain peak of the step of one length."""
    made = memfit.plan(reader(), batch(length), token_loss, budget=2**50, cost="analytic")
    low, high = made.smallest_feasible_budget_bytes, made.plain_peak_bytes
    return int(low + share * (high - low))


def how(fitted: FittedModule) -> str:
    assert fitted.plan is not None
    shape: Mapping[str, Any] = fitted.plan.provenance["shape"]
    return str(shape["how"])


def check_against_plain(
    fitted: FittedModule, twin: nn.Module, data: tuple[torch.Tensor, ...]
) -> None:
    """One step of both: equal gradients, buffers, and random state afterwards."""
    after = []
    for module, call in (
        (fitted, lambda: fitted(*data)),
        (twin, lambda: token_loss(twin(data[0]), data[1])),
    ):
        torch.manual_seed(5)
        module.zero_grad()
        call().backward()
        after.append(torch.rand(2))
    for ours, plain in zip(fitted.parameters(), twin.parameters(), strict=True):
        scale = float(plain.grad.abs().max())
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-6, atol=1e-6 * scale)
    for ours, plain in zip(fitted.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, plain)
    assert torch.equal(*after)


def measured_peak(fitted: FittedModule, data: tuple[torch.Tensor, ...]) -> int:
    """The step's peak with what is there all through it."""
    assert fitted.graph is not None
    found = measure_step(lambda: fitted(*data).backward(), reset=fitted.zero_grad)
    return found.peak_bytes + fitted.graph.resident_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cost", "lengths"),
    [
        ("analytic", (96, 40, 8, 88, 96)),
        pytest.param("measured", (96, 8, 96), marks=pytest.mark.slow),
    ],
)
def test_every_shape_trains_as_plain_within_the_budget(cost: str, lengths: tuple[int, ...]) -> None:
    limit = int(budget_for(96, 0.3) * 1.02)  # analytic workspaces are estimates
    model = reader()
    twin = copy.deepcopy(model)
    fitted = memfit.fit(model, token_loss, budget=limit, cost=cost)
    overheads = {}
    for length in lengths:
        data = batch(length)
        check_against_plain(fitted, twin, data)
        assert fitted.plan is not None
        assert fitted.graph is not None
        overheads[length] = fitted.plan.overhead_percent
        assert fitted.plan.peak_bytes <= limit
        assert simulate(fitted.graph, fitted.plan.schedule).peak_bytes == fitted.plan.peak_bytes
        with torch.random.fork_rng():
            state = copy.deepcopy(model.state_dict())
            assert measured_peak(fitted, data) <= limit
            model.load_state_dict(state)
    assert len(fitted.plans) == len(set(lengths))
    assert overheads[96] > 0
    assert overheads[8] == 0
    seconds = fitted.plans[1].provenance["shape"]["seconds"]
    assert set(seconds) == {"capture", "costs", "planning"}
    assert seconds["capture"] > 0


def test_shapes_are_planned_ahead_and_leave_no_trace() -> None:
    model = reader()
    twin = copy.deepcopy(model)
    said: list[tuple[str, float]] = []
    fitted = memfit.fit(
        model,
        token_loss,
        budget=budget_for(64, 0.5),
        cost="analytic",
        shapes=[described(16), batch(64), (described(32), {})],
        progress=lambda label, share: said.append((label, share)),
    )
    assert fitted.plans == []
    check_against_plain(fitted, twin, batch(32))
    lengths = [made.provenance["shape"]["inputs"] for made in fitted.plans]
    assert lengths == [f"{BATCH}x{n}, {BATCH}x{n}" for n in (64, 16, 32)]
    assert all(made.provenance["shape"]["ahead"] for made in fitted.plans)
    assert ("planning input shapes ahead", 1.0) in said
    assert fitted.plan is fitted.plans[2]
    for length, which in ((16, 1), (64, 0), (32, 2)):
        check_against_plain(fitted, twin, batch(length))
        assert fitted.plan is fitted.plans[which]
    assert len(fitted.plans) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_inductor_plans_shapes_ahead_and_takes_plans_over() -> None:
    def layers() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(4)))

    model = layers()
    fitted = memfit.fit(
        model,
        budget="100%",
        cost="analytic",
        executor="inductor",
        shapes=[torch.empty(n, 64, device="meta") for n in (64, 256)],
    )
    for rows, planned in ((256, 2), (64, 2), (128, 3)):
        x = torch.randn(rows, 64)
        model.zero_grad()
        fitted(x).square().sum().backward()
        twin = layers()
        twin(x).square().sum().backward()
        for ours, plain in zip(model.parameters(), twin.parameters(), strict=True):
            scale = float(plain.grad.abs().max())
            torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-5 * scale)
        assert len(fitted.plans) == planned
    assert [made.provenance["shape"]["how"] for made in fitted.plans] == [
        "planned",
        "taken over",
        "taken over",
    ]


def test_a_budget_that_one_shape_cannot_meet_shows_at_the_first_call() -> None:
    limit = budget_for(32, 0.5)
    fitted = memfit.fit(
        reader(), token_loss, budget=limit, cost="analytic", shapes=[batch(8), batch(128)]
    )
    with pytest.raises(InfeasibleBudgetError) as caught:
        fitted(*batch(8))
    assert caught.value.__notes__ == [
        f"while planning ahead for inputs of {BATCH}x128, {BATCH}x128"
    ]


def test_keyword_arguments_and_tensors_that_are_not_contiguous_are_planned_ahead() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, *, scale: float, y: torch.Tensor) -> torch.Tensor:
            return self.layer(x.t() + y) * scale

    fitted = memfit.fit(
        Adds(),
        budget="150%",
        cost="analytic",
        shapes=[
            (
                (torch.empty(6, 8, device="meta").t(),),
                {"y": torch.empty(6, 8, device="meta"), "scale": 2.0},
            )
        ],
    )
    fitted(torch.randn(6, 8).t(), y=torch.randn(6, 8), scale=2.0).sum().backward()
    assert len(fitted.plans) == 1
    assert how(fitted) == "planned"


@pytest.mark.slow
def test_copies_and_pickles_keep_the_shapes() -> None:
    model = reader()
    fitted = memfit.fit(model, token_loss, budget="100%", cost="analytic", shapes=[described(8)])
    for twin in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        twin(*batch(8)).backward()
        assert len(twin.plans) == 1
        assert twin.plans[0].provenance["shape"]["ahead"]


def test_another_structure_is_planned_by_itself() -> None:
    fitted = memfit.fit(Deeper(), square_loss, budget="120%", cost="analytic")
    for rows in (64, 40, 16):
        data = torch.randn(rows, 64), torch.randn(rows, 64)
        fitted(*data).backward()
        assert how(fitted) == "planned"
        assert fitted.graph is not None
        assert fitted.graph.forward_count > rows // 8


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (torch.empty(3), "shapes is a Tensor"),
        ("8x16", "shapes is a str"),
        ([3], "shapes\\[0\\] is 3, which has no tensors"),
        ([(torch.empty(3),), ()], "shapes\\[1\\] is \\(\\), which has no tensors"),
        ([{1: torch.empty(3)}], "shapes\\[0\\]"),
        ([torch.empty(3)] * 65, "65 entries, and at most 64"),
    ],
)
def test_wrong_shapes_are_refused_at_once(shapes: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        memfit.fit(nn.Linear(3, 3), budget="90%", shapes=shapes)


def test_wrong_limits_and_a_plan_beside_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="max_shapes is 0"):
        memfit.fit(nn.Linear(3, 3), budget="90%", max_shapes=0)
    model = nn.Linear(3, 3)
    plan = memfit.plan(model, (torch.randn(2, 3),), budget="150%", cost="analytic")
    with pytest.raises(UsageError, match="leave one out"):
        memfit.fit(model, plan=plan, shapes=[torch.empty(2, 3)])


def test_the_largest_comes_first_then_the_smallest() -> None:
    examples = parse_shapes([torch.empty(n) for n in (4, 9, 1, 6)], 64)
    assert [e.tensors[0].numel() for e in in_planning_order(examples)] == [9, 1, 6, 4]
    assert len(in_planning_order(examples[:1])) == 1
    equal = parse_shapes([torch.empty(8, 4), torch.empty(1, 32), torch.empty(4, 8)], 64)
    assert in_planning_order(equal)[0].tensors[0].shape == (1, 32)


def run_rows(fitted: FittedModule, rows: int) -> None:
    fitted(torch.randn(rows, 3)).sum().backward()


@pytest.mark.slow
def test_many_shapes_warn_once_and_too_many_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    fitted = memfit.fit(nn.Linear(3, 3), budget="200%", cost="analytic", max_shapes=WARN_AT + 2)
    with caplog.at_level(logging.WARNING, logger="memfit"):
        for rows in range(2, WARN_AT + 1):
            run_rows(fitted, rows)
        assert not caplog.records
        for rows in range(WARN_AT + 1, WARN_AT + 4):
            run_rows(fitted, rows)
    (record,) = caplog.records
    message = record.getMessage()
    assert "Linear has been called with 16 different input shapes" in message
    assert "pad the inputs" in message
    assert "shapes=[...]" in message
    with pytest.raises(CaptureError, match=r"number 19 \(40x3\), and the limit is 18") as caught:
        run_rows(fitted, 40)
    assert "pad the inputs" in str(caught.value)
    assert "max_shapes" in str(caught.value)
    run_rows(fitted, 5)  # what is known goes on
    assert len(fitted.plans) == WARN_AT + 2


class Counting(nn.Module):
    """Scales by how often it was called, a Python number that PyTorch takes for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A layer, scaled."""
        self.calls += 1
        return self.layer(x) / self.calls


def test_captures_of_the_same_shapes_are_told_from_new_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fitted = memfit.fit(Counting(), budget="200%", cost="analytic", max_shapes=WARN_AT_SAME + 1)
    with caplog.at_level(logging.WARNING, logger="memfit"):
        for _ in range(WARN_AT_SAME - 1):
            fitted.zero_grad()
            run_rows(fitted, 8)
        assert not caplog.records
        for _ in range(2):
            fitted.zero_grad()
            run_rows(fitted, 8)
    (record,) = caplog.records
    message = record.getMessage()
    assert "4 times for inputs of the same shapes (8x3)" in message
    assert "Python number" in message
    with pytest.raises(CaptureError, match=r"5 times for the same shapes \(8x3\)") as caught:
        run_rows(fitted, 8)
    assert "Python number" in str(caught.value)
    assert "pad the inputs" not in str(caught.value)


@pytest.mark.slow
def test_shapes_planned_ahead_do_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    rows = range(2, WARN_AT + 4)
    shapes = [torch.empty(n, 3, device="meta") for n in rows]
    fitted = memfit.fit(nn.Linear(3, 3), budget="200%", cost="analytic", shapes=shapes)
    with caplog.at_level(logging.WARNING, logger="memfit"):
        for n in rows:
            run_rows(fitted, n)
    assert not caplog.records
    assert len(fitted.plans) == len(rows)


def test_the_time_of_a_step_is_the_median_of_calls_without_compilation() -> None:
    count = ShapeCount("net")
    assert count.step_s is None
    count.call()
    count.compilation("8x3")
    count.call()  # after a compilation: not a step's time
    assert count.step_s is None
    count.call()
    assert count.step_s is not None


SCRIPT = """
import json, sys, torch, memfit
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)))
fitted = memfit.fit(model, budget="90%")
fitted(torch.randn(2048, 64)).sum().backward()
plan = fitted.plan
shape = plan.provenance["shape"]
print(json.dumps([shape["how"], shape["seconds"], plan.schedule.recomputed_ops, plan.peak_bytes]))
"""


def run_script(cache: Path, **environment: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "MEMFIT_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.slow
def test_a_second_process_does_not_plan_again(tmp_path: Path) -> None:
    first = run_script(tmp_path)
    second = run_script(tmp_path)
    assert (first[0], second[0]) == ("planned", "cached")
    assert second[1]["costs"] == 0
    assert second[2:] == first[2:]
    assert len(list((tmp_path / "plans").iterdir())) == 1


def how_planned() -> str:
    fitted = memfit.fit(nn.Linear(3, 3), budget="200%", cost="analytic")
    run_rows(fitted, 4)
    return how(fitted)


def test_plans_on_disk_can_be_turned_off_and_damaged_ones_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert (how_planned(), how_planned()) == ("planned", "cached")
    monkeypatch.setenv("MEMFIT_CACHE", "0")
    assert how_planned() == "planned"
    monkeypatch.delenv("MEMFIT_CACHE")
    (file,) = (tmp_path / "cache" / "plans").iterdir()
    file.write_text("{")
    with caplog.at_level(logging.WARNING):
        assert how_planned() == "planned"
    assert str(file) in caplog.text
    assert how_planned() == "cached"


def test_another_budget_planner_or_cost_is_another_plan() -> None:
    for options in (
        {"budget": "200%"},
        {"budget": "210%"},
        {"budget": "200%", "planner": "chen"},
        {"budget": "200%", "time_limit_s": 60.0},
    ):
        fitted = memfit.fit(nn.Linear(3, 3), cost="analytic", **options)
        run_rows(fitted, 4)
        assert how(fitted) == "planned"
    assert how_planned() == "cached"


def test_plans_for_what_is_free_are_not_kept(tmp_path: Path) -> None:
    for _ in range(2):
        fitted = memfit.fit(nn.Linear(3, 3), budget="auto", cost="analytic")
        run_rows(fitted, 4)
        assert how(fitted) == "planned"
    assert not (tmp_path / "cache" / "plans").exists()
