"""Several input shapes of one fitted module: plans ahead, taken over, kept on disk; limits."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.errors import CaptureError, InfeasibleBudgetError, UsageError
from memfit.graph import TrainingGraph
from memfit.liveness import simulate
from memfit.plan import Plan
from memfit.planners.base import PlannerOptions
from memfit.planners.registry import get_planner
from memfit.pytorch.fitted import FittedModule
from memfit.pytorch.measure import measure_step
from memfit.pytorch.op_calls import OpCall, TensorSpec
from memfit.pytorch.plan_cache import FORMAT_VERSION, CachedPlan, PlanCache, plan_key, with_costs
from memfit.pytorch.shape_plans import Occasion, ShapePlans, structure_of
from memfit.pytorch.shape_times import estimated_times
from memfit.pytorch.shapes import WARN_AT, ShapeCount, in_planning_order, parse_shapes

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


@pytest.mark.parametrize("cost", ["analytic", "measured"])
def test_every_shape_trains_as_plain_within_the_budget(cost: str) -> None:
    limit = int(budget_for(96, 0.3) * 1.02)  # analytic workspaces are estimates
    model = reader()
    twin = copy.deepcopy(model)
    fitted = memfit.fit(model, token_loss, budget=limit, cost=cost)
    overheads = {}
    for length in (96, 40, 8, 88, 96):
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
    assert len(fitted.plans) == 4
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


# The parts, on graphs made up.

MakeGraph = Callable[[Random, int], TrainingGraph]
CALL = OpCall(
    torch.ops.aten.neg.default, (TensorSpec((4,), (1,), torch.float32, torch.device("cpu")),)
)


@dataclass(frozen=True)
class Step:
    """A captured step that is its graph."""

    graph: TrainingGraph

    def with_costs(self, costs: Sequence[tuple[int, int]]) -> Step:
        return Step(with_costs(self.graph, costs))


@dataclass
class Rules:
    """Plans with the default planner, says how long it took, and remembers limits."""

    budget_bytes: int
    took_s: float = 0.0
    fails_within_limit: bool = False
    planner: str = "auto"
    limits: list[float | None] = field(default_factory=list)

    def resolve(self, graph: TrainingGraph) -> int:
        return self.budget_bytes

    def decide_within(
        self, graph: TrainingGraph, budget_bytes: int, time_limit_s: float | None = None
    ) -> Plan:
        self.limits.append(time_limit_s)
        if self.fails_within_limit and time_limit_s is not None:
            raise InfeasibleBudgetError(
                budget_bytes=budget_bytes, minimum_bytes=budget_bytes + 1, binding_op=None
            )
        made = get_planner("auto")(graph, budget_bytes, PlannerOptions())
        return replace(made, seconds=self.took_s)

    def origin(self, graph: TrainingGraph) -> Mapping[str, Any]:
        return {"device": "none"}


def scaled(graph: TrainingGraph, share: float, workspace: int = 0) -> TrainingGraph:
    """The same structure at another size."""
    values = tuple(replace(v, size_bytes=int(v.size_bytes * share)) for v in graph.values)
    ops = tuple(replace(op, workspace_bytes=int(op.workspace_bytes * share)) for op in graph.ops)
    first = replace(ops[0], workspace_bytes=ops[0].workspace_bytes + workspace)
    return replace(graph, values=values, ops=(first, *ops[1:]))


def example_graph(joint_graph: MakeGraph) -> tuple[TrainingGraph, int]:
    """A graph and a budget at which some of it has to be recomputed."""
    for seed in range(100):
        graph = joint_graph(Random(seed), 14)
        made = get_planner("auto")(graph, 2**50, PlannerOptions())
        low, high = made.smallest_feasible_budget_bytes, made.plain_peak_bytes
        if high > 1.3 * low and high > 10_000:
            budget = (low + high) // 2
            if get_planner("auto")(graph, budget, PlannerOptions()).overhead > 0:
                return graph, budget
    raise AssertionError("no graph of a hundred has anything to recompute")


def make(plans: ShapePlans, graph: TrainingGraph, occasion: Occasion | None = None) -> Plan:
    step, plan = plans.plan(
        Step(graph), [CALL] * len(graph.ops), lambda step, _: step, occasion or Occasion()
    )
    plan.check_graph(step.graph)
    assert simulate(step.graph, plan.schedule).peak_bytes == plan.peak_bytes <= plan.budget_bytes
    return plan


def test_where_planning_is_slow_the_larger_shapes_plan_is_taken_over(
    joint_graph: MakeGraph,
) -> None:
    graph, budget = example_graph(joint_graph)
    rules = Rules(budget, took_s=3.0)
    plans = ShapePlans(rules, None, measures=False)
    large = make(plans, graph, Occasion(inputs="8x128"))
    smaller = make(plans, scaled(graph, 0.97), Occasion(step_s=0.01))
    assert smaller.schedule == large.schedule
    assert smaller.provenance["shape"]["how"] == "taken over"
    assert "taken over from a plan for inputs of 8x128" in smaller.provenance["notes"][0]
    assert rules.limits == [None]
    assert smaller.peak_bytes < large.peak_bytes


def test_a_step_that_takes_long_leaves_time_to_plan(joint_graph: MakeGraph) -> None:
    graph, budget = example_graph(joint_graph)
    rules = Rules(budget, took_s=3.0)
    plans = ShapePlans(rules, None, measures=False)
    make(plans, graph)
    made = make(plans, scaled(graph, 0.97), Occasion(step_s=5.0))
    assert rules.limits == [None, 5.0]
    assert made.provenance["shape"]["how"] in ("planned", "taken over")
    quick = Rules(budget, took_s=0.05)
    plans = ShapePlans(quick, None, measures=False)
    make(plans, graph)
    make(plans, scaled(graph, 0.97), Occasion(step_s=0.001))
    assert quick.limits == [None, 0.1]


def test_a_schedule_whose_simulated_peak_is_too_high_is_not_taken_over(
    joint_graph: MakeGraph,
) -> None:
    graph, budget = example_graph(joint_graph)
    rules = Rules(budget, took_s=100.0)
    plans = ShapePlans(rules, None, measures=False)
    large = make(plans, graph)
    # A smaller step, one op of which needs much more workspace: the old schedule peaks there.
    hungry = scaled(graph, 0.97)
    spare = budget - simulate(hungry, large.schedule).live_bytes[0]
    hungry = scaled(graph, 0.97, workspace=spare + 1)
    assert structure_of(hungry) == structure_of(graph)
    assert simulate(hungry, large.schedule).peak_bytes > budget
    try:
        made = make(plans, hungry, Occasion(step_s=0.01))
        assert made.provenance["shape"]["how"] == "planned"
    except InfeasibleBudgetError:
        pass
    assert rules.limits[:2] == [None, 0.1]


def test_nothing_fits_within_the_limit_and_planning_goes_on_without_one(
    joint_graph: MakeGraph,
) -> None:
    graph, budget = example_graph(joint_graph)
    rules = Rules(budget)
    plans = ShapePlans(rules, None, measures=False)
    make(plans, scaled(graph, 0.5))
    rules.fails_within_limit = True
    made = make(plans, graph, Occasion(step_s=0.01))
    assert rules.limits == [None, 0.1, None]
    assert made.provenance["shape"]["how"] == "planned"
    rules.budget_bytes = 10
    with pytest.raises(InfeasibleBudgetError):
        make(plans, scaled(graph, 0.9), Occasion(step_s=0.01))


def test_where_everything_fits_nothing_is_searched(joint_graph: MakeGraph) -> None:
    graph, budget = example_graph(joint_graph)
    rules = Rules(budget)
    plans = ShapePlans(rules, None, measures=False)
    make(plans, graph)
    small = make(plans, scaled(graph, 0.1))
    assert small.overhead == 0
    assert small.planner == "store-all"
    assert rules.limits == [None]
    other = joint_graph(Random(5), 9)
    rules.budget_bytes = 2**40
    make(plans, other)
    assert len(rules.limits) == 2


def test_times_are_estimated_between_two_measured_shapes(joint_graph: MakeGraph) -> None:
    graph, budget = example_graph(joint_graph)
    plans = ShapePlans(Rules(2 * budget), None, measures=True)
    given: list[Mapping[int, int] | None] = []

    def cost(step: Step, times: Mapping[int, int] | None) -> Step:
        given.append(times)
        return step

    for share, ahead in ((1.0, True), (0.1, True), (0.5, True), (0.6, False)):
        one = scaled(graph, share)
        plans.plan(Step(one), [CALL] * len(one.ops), cost, Occasion(ahead=ahead))
    assert given[:2] == [None, None]
    assert given[2] is not None
    assert set(given[2]) == set(range(len(graph.ops)))
    assert given[3] is not None
    met = ShapePlans(Rules(2 * budget), None, measures=True)
    given.clear()
    for share in (1.0, 0.6):
        one = scaled(graph, share)
        met.plan(Step(one), [CALL] * len(one.ops), cost, Occasion())
    assert [times is None for times in given] == [True, False]


def test_estimated_times() -> None:
    low, high = ([10, 10, 0], [100, 7, 0]), ([30, 10, 0], [500, 9, 0])
    assert estimated_times([low, high], [20, 10, 0]) == [300, 8, 0]
    assert estimated_times([low, high], [30, 10, 5]) == [500, 8, 0]
    assert estimated_times([low, high], [60, 20, 5]) == [1000, 18, 0]
    assert estimated_times([low], [5, 5, 0]) == [50, 3, 0]


@pytest.fixture
def kept(
    tmp_path: Path, joint_graph: MakeGraph
) -> tuple[PlanCache, Path, TrainingGraph, CachedPlan]:
    graph, budget = example_graph(joint_graph)
    plan = get_planner("auto")(graph, budget, PlannerOptions())
    made = CachedPlan(plan, [(op.cost, op.workspace_bytes) for op in graph.ops], True)
    cache = PlanCache(tmp_path / "plans")
    cache.put("key", made)
    return cache, tmp_path / "plans" / "key.json", graph, made


def test_a_kept_plan_is_found_again(
    kept: tuple[PlanCache, Path, TrainingGraph, CachedPlan],
) -> None:
    cache, _, graph, made = kept
    found = cache.get("key", with_costs(graph, [(0, 0)] * len(graph.ops)))
    assert found is not None
    assert found.plan.schedule == made.plan.schedule
    assert list(found.costs) == list(made.costs)
    assert cache.get("other", graph) is None


def _less(data: dict[str, Any]) -> None:
    data["costs"] = data["costs"][:-1]


def _negative(data: dict[str, Any]) -> None:
    data["costs"][0] = [-1, 0]


def _hungry(data: dict[str, Any]) -> None:
    data["costs"][0] = [1, 2**40]


def _reads_too_early(data: dict[str, Any]) -> None:
    plan = json.loads(data["plan"])
    plan["schedule"]["steps"].reverse()
    data["plan"] = json.dumps(plan)


def _unknown_op(data: dict[str, Any]) -> None:
    plan = json.loads(data["plan"])
    plan["schedule"]["steps"][0][0] = 10**6
    data["plan"] = json.dumps(plan)


def _other_graph(data: dict[str, Any]) -> None:
    data["plan"] = data["plan"].replace('"graph_fingerprint": "', '"graph_fingerprint": "0')


def _other_version(data: dict[str, Any]) -> None:
    data["format_version"] = FORMAT_VERSION + 1


DAMAGE = (_less, _negative, _hungry, _reads_too_early, _unknown_op, _other_graph, _other_version)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_plan_is_ignored_with_a_warning(
    kept: tuple[PlanCache, Path, TrainingGraph, CachedPlan],
    damage: Callable[[dict[str, Any]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache, path, graph, made = kept
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with caplog.at_level(logging.WARNING):
        assert cache.get("key", graph) is None
    assert str(path) in caplog.text
    cache.put("key", made)
    assert cache.get("key", graph) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"format_version": 1}'])
def test_a_file_that_is_no_plan_is_ignored_with_a_warning(
    kept: tuple[PlanCache, Path, TrainingGraph, CachedPlan],
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache, path, graph, _ = kept
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert cache.get("key", graph) is None
    assert str(path) in caplog.text


def test_the_oldest_plans_go_and_a_folder_that_cannot_be_made_is_only_logged(
    kept: tuple[PlanCache, Path, TrainingGraph, CachedPlan],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache, path, _, made = kept
    monkeypatch.setattr("memfit.pytorch.plan_cache.MOST_FILES", 2)
    for age, name in enumerate(("a", "b", "c")):
        cache.put(name, made)
        for file in path.parent.iterdir():
            if file.name == f"{name}.json":
                os.utime(file, (10**9 + age, 10**9 + age))
    os.utime(path, (10**9 + 9, 10**9 + 9)) if path.exists() else None
    assert len(list(path.parent.iterdir())) == 2
    assert (path.parent / "c.json").exists()
    broken = PlanCache(path / "inside")
    with caplog.at_level(logging.WARNING):
        broken.put("key", made)
    assert "was not kept" in caplog.text


def test_calls_without_a_stable_name_have_no_key(joint_graph: MakeGraph) -> None:
    graph = joint_graph(Random(1), 5)
    assert plan_key(graph, [CALL], "d") != plan_key(graph, [CALL], "e")
    assert plan_key(graph, [CALL], "d") == plan_key(graph, [CALL], "d")
    assert plan_key(graph, [CALL, replace(CALL, target=lambda x: x)], "d") is None
    assert plan_key(graph, [], "d") is None
