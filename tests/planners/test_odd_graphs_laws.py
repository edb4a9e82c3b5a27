"""Graphs at the edge of what may be planned: every planner gives a sound plan, or says why not."""

from __future__ import annotations

import pytest

from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners import PLANNERS, PlannerOptions, get_curve, get_planner

BIG = 1 << 40


class Draft:
    """A graph that grows."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.forward: list[Op] = []
        self.backward: list[Op] = []

    def value(self, kind: ValueKind, size_bytes: int, *, output: bool = False) -> int:
        self.values.append(Value(f"v{len(self.values)}", size_bytes, kind, output))
        return len(self.values) - 1

    def op(
        self, phase: Phase, reads: tuple[int, ...], writes: tuple[int, ...], **more: int
    ) -> None:
        ops = self.forward if phase is Phase.FORWARD else self.backward
        name = f"{phase.value[0]}{len(ops)}"
        ops.append(Op(name, "op", phase, reads, writes, **{"cost": 1, **more}))

    def graph(self) -> TrainingGraph:
        return TrainingGraph(tuple(self.values), (*self.forward, *self.backward), "unit", "odd")


def chain(
    steps: int, size_bytes: int = 4, cost: int = 1, workspace_bytes: int = 0, *, again: bool = True
) -> TrainingGraph:
    """Ops one after the other, and their gradients."""
    d = Draft()
    made = [d.value(ValueKind.INPUT, size_bytes)]
    rest = {"cost": cost, "workspace_bytes": workspace_bytes, "recomputable": again}
    for i in range(steps):
        made.append(d.value(ValueKind.ACTIVATION, size_bytes, output=i == steps - 1))
        d.op(Phase.FORWARD, (made[-2],), (made[-1],), **rest)
    gradient = d.value(ValueKind.INPUT, size_bytes)
    for i in reversed(range(steps)):
        before, gradient = gradient, d.value(ValueKind.GRADIENT, size_bytes, output=i == 0)
        d.op(Phase.BACKWARD, (made[i], made[i + 1], before), (gradient,), cost=cost)
    return d.graph()


def nothing() -> TrainingGraph:
    return Draft().graph()


def only_inputs() -> TrainingGraph:
    d = Draft()
    d.value(ValueKind.PARAMETER, 8)
    return d.graph()


def only_forward() -> TrainingGraph:
    d = Draft()
    x, y = d.value(ValueKind.INPUT, 8), d.value(ValueKind.ACTIVATION, 16, output=True)
    d.op(Phase.FORWARD, (x,), (y,))
    return d.graph()


def only_backward() -> TrainingGraph:
    d = Draft()
    x, g, h = (
        d.value(ValueKind.INPUT, 8),
        d.value(ValueKind.GRADIENT, 16),
        d.value(ValueKind.GRADIENT, 4, output=True),
    )
    d.op(Phase.BACKWARD, (x,), (g,), workspace_bytes=3)
    d.op(Phase.BACKWARD, (g,), (h,))
    return d.graph()


def ops_without_values() -> TrainingGraph:
    """Neither reads nor writes: an assertion, say."""
    d = Draft()
    d.op(Phase.FORWARD, (), (), workspace_bytes=5, recomputable=False)
    x, g = d.value(ValueKind.ACTIVATION, 7), d.value(ValueKind.GRADIENT, 3, output=True)
    d.op(Phase.FORWARD, (), (x,))
    d.op(Phase.BACKWARD, (), ())
    d.op(Phase.BACKWARD, (x,), (g,))
    return d.graph()


def unread_values() -> TrainingGraph:
    d = Draft()
    x = d.value(ValueKind.INPUT, 4)
    a, b, c = (d.value(ValueKind.ACTIVATION, n) for n in (100, 10, 1))
    g = d.value(ValueKind.GRADIENT, 2, output=True)
    d.op(Phase.FORWARD, (x,), (a,))
    d.op(Phase.FORWARD, (x,), (b, c))
    d.op(Phase.BACKWARD, (b,), (g,))
    return d.graph()


def two_parts() -> TrainingGraph:
    """Two chains that share nothing, one within the other."""
    d = Draft()
    inputs = [d.value(ValueKind.INPUT, 2) for _ in range(2)]
    ends = []
    for x in inputs:
        y, z = d.value(ValueKind.ACTIVATION, 30), d.value(ValueKind.ACTIVATION, 20)
        d.op(Phase.FORWARD, (x,), (y,))
        d.op(Phase.FORWARD, (y,), (z,))
        ends.append((y, z))
    for y, z in ends:
        g = d.value(ValueKind.GRADIENT, 6, output=True)
        d.op(Phase.BACKWARD, (y, z), (g,))
    return d.graph()


def accumulated() -> TrainingGraph:
    """One gradient that many ops add to."""
    d = Draft()
    x, g = d.value(ValueKind.INPUT, 4), d.value(ValueKind.GRADIENT, 50, output=True)
    made = [d.value(ValueKind.ACTIVATION, 10 * i) for i in range(5)]
    for y in made:
        d.op(Phase.FORWARD, (x,), (y,))
    for y in made:
        d.op(Phase.BACKWARD, (y,), (g,))
    return d.graph()


GRAPHS = {
    "nothing": nothing,
    "only inputs": only_inputs,
    "only forward": only_forward,
    "only backward": only_backward,
    "ops without values": ops_without_values,
    "unread values": unread_values,
    "two parts": two_parts,
    "accumulated": accumulated,
    "one op": lambda: chain(1),
    "no bytes": lambda: chain(6, size_bytes=0),
    "no cost": lambda: chain(6, cost=0),
    "nothing may run again": lambda: chain(6, again=False),
    "huge values": lambda: chain(6, size_bytes=BIG),
    "huge costs": lambda: chain(6, cost=BIG),
    "workspace alone": lambda: chain(6, size_bytes=0, workspace_bytes=9),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("planner", ["auto", *PLANNERS])
def test_odd_graphs_are_planned(core: str, planner: str, name: str) -> None:
    graph = GRAPHS[name]()
    make = get_planner(planner)
    try:
        plain = make(graph, 1 << 58, PlannerOptions())
    except UsageError:
        if planner != "revolve":  # which is for chains
            raise
        return
    with pytest.raises(InfeasibleBudgetError) as caught:
        make(graph, -1, PlannerOptions())
    least = caught.value.minimum_bytes
    assert graph.resident_bytes <= least <= plain.peak_bytes
    budgets = {plain.peak_bytes, plain.peak_bytes if planner == "store-all" else least}
    for budget in budgets:
        plan = make(graph, budget, PlannerOptions())
        plan.schedule.validate(graph)
        assert plan.peak_bytes == simulate(graph, plan.schedule).peak_bytes <= budget


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("planner", ["liveness", "nested", "auto", "exact", "approximate"])
def test_odd_graphs_have_trade_offs(core: str, planner: str, name: str) -> None:
    graph = GRAPHS[name]()
    points = get_curve(planner)(graph, PlannerOptions()).points
    assert points
    overheads = [point.overhead for point in sorted(points, key=lambda p: p.budget_bytes)]
    assert overheads == sorted(overheads, reverse=True)
