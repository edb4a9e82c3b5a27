"""The graphs of one training step as they run: which they are, and what each may take.

Graphs are compiled one by one, each when it is first reached; what comes after it is not known
then. So in the first step a graph of several gets a modest plan. When the next step begins, all
graphs are known, with what they hold, and are planned together (`memfit.planners.several.replan`);
those whose plan changes are compiled once more. A graph that is the whole step gets the whole
budget at once.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd.graph import GradientEdge
from torch.multiprocessing.reductions import StorageWeakRef

from memfit.errors import InfeasibleBudgetError
from memfit.graph.estimates import noting_estimates
from memfit.graph.plain import store_all_schedule
from memfit.graph.plan import Plan
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.planners.registry import get_plans
from memfit.planners.several.replan import GraphPlans, StepOfGraphs, replan
from memfit.planners.several.runs import (
    EagerPart,
    GraphRun,
    beside,
    kept_bytes,
    needs,
    outside_bytes,
    together,
)
from memfit.pytorch.compiled.eager_parts import EagerParts, eager_parts
from memfit.pytorch.compiled.left import Left, place_and_remedy
from memfit.pytorch.compiled.looking import Looking
from memfit.pytorch.compiled.warnings import (
    warn_first_step,
    warn_of_eager,
    warn_of_gradients,
    warn_over_budget,
)
from memfit.pytorch.cost.measure import free_bytes
from memfit.pytorch.planning.fresh import Fresh
from memfit.units import format_bytes

__all__ = ["FirstPlan", "Part", "Running", "StepRuns"]

logger = logging.getLogger("memfit")

MOST_SEQUENCES = 16  # of graphs: steps that differ each time must not be planned for ever
_OTHERS = 16  # backward passes of others that are looked at; forward passes may ask for some
_PLAIN = (torch.Tensor, nn.Parameter)  # tracing runs backward passes on tensors of other types


class Part(Protocol):
    """A graph of the step.

    Attributes:
        graph, plan: the graph and the plan that it follows; None where it has no backward pass.
        line: source line of the graph break that ends it, None where it ends without one.
        provisional: its plan was made before the step was known.
        held_peak_bytes: peak of its plan while `.grad` is there from the start; 0 where gradients
            are added at the end.
    """

    @property
    def graph(self) -> TrainingGraph | None: ...

    @property
    def plan(self) -> Plan | None: ...

    @property
    def line(self) -> str | None: ...

    @property
    def provisional(self) -> bool: ...

    @property
    def held_peak_bytes(self) -> int: ...

    def settle(self, plan: Plan) -> None:
        """The step is known: this is the plan to follow from the next run on."""
        ...


@dataclass(frozen=True)
class FirstPlan:
    """The plan of a graph that was just captured.

    Attributes:
        plan: the plan.
        provisional: it was made before the step was known.
    """

    plan: Plan
    provisional: bool


class _Alive:
    """Lives as long as the autograd nodes of a run."""


@dataclass
class Running:
    """A run of the present step.

    Attributes:
        part: the graph.
        run: what it is given and hands out.
        alive: what its autograd nodes keep alive.
        references: keep the identities of storages from being given to others.
        number: of its autograd node, None where it has none.
        gradients_found: a parameter had a gradient of an earlier backward pass.
    """

    part: Part
    run: GraphRun
    alive: weakref.ref[_Alive]
    references: list[StorageWeakRef]
    number: int | None = None
    gradients_found: bool = False


@dataclass
class StepRuns:
    """The graphs that share one budget.

    Attributes:
        fresh: makes a plan of a graph and a budget.
        runs: the runs of the present step so far, in order.
        left: calls that Dynamo has left to plain PyTorch.
        computes_again: a graph without a plan gave up what it keeps, in the present step.
        tight: some sequence of graphs has no room for all that it would keep.
    """

    fresh: Fresh
    runs: list[Running] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    computes_again: bool = False
    tight: bool = False
    _backward: bool = False
    _divided: set[tuple[int, ...]] = field(default_factory=set)
    _missed: set[tuple[int, ...]] = field(default_factory=set)
    _refused: dict[int, InfeasibleBudgetError] = field(default_factory=dict)
    _eager: EagerParts | None = None
    _looking: Looking = field(default_factory=Looking)
    _looked_at: set[tuple[int, ...]] = field(default_factory=set)
    _free_bytes: int = 0
    _others: int = 0
    _most_bytes: int = 0
    _asked: int = 0

    def runs_on(self, device: torch.device) -> None:
        """The device of the graphs, known when the first one is compiled."""
        self.fresh = replace(self.fresh, device=device)

    # A step as it runs.

    def begin(self) -> None:
        """A graph is about to run: if a backward pass has run since, a new step begins with it."""
        if not self.runs:
            return
        if self._backward:
            runs, self.runs, self._backward = self.runs, [], False
            eager, self._eager = self._eager or EagerParts(), None
            self._others = 0
            looked = self._looking.looked
            self._looking.restart()
            self._finish(runs, eager, looked=looked)
            self.computes_again = False
        elif all(r.alive() is None for r in self.runs):  # forward passes without a backward pass
            self.runs, self._eager = [], None
            self._looking.restart()

    def add(
        self,
        part: Part,
        run: GraphRun,
        references: list[StorageWeakRef],
        number: int | None = None,
        *,
        gradients_found: bool = False,
    ) -> _Began:
        """A graph has run. The result is to be kept alive by the autograd nodes of its outputs."""
        alive = _Alive()
        running = Running(part, run, weakref.ref(alive), references, number, gradients_found)
        self.runs.append(running)
        self._looking.ran(id(part), weakref.WeakMethod(self.look), new=part.provisional)
        return _Began(self, alive)

    def leave(self, left: Left, call: object) -> None:
        """Dynamo leaves a call to plain PyTorch, which may be all of the step.

        Args:
            left: the call.
            call: of `torch.compile`, kept alive until a backward pass has been looked at.
        """
        self.left.append(left)
        kept = [call]

        def look(roots: Sequence[Any]) -> None:
            assert kept
            self.look(roots)

        self._others = 0
        self._looking.watch(lambda: look)

    def look(self, roots: Sequence[Any]) -> None:
        """A backward pass begins, perhaps that of the step."""
        numbers = [r.number for r in self.runs if r.number is not None]
        plain = all(isinstance(x, GradientEdge) or type(x) in _PLAIN for x in roots)
        if self._backward or not plain or len(numbers) < len(self.runs):
            return
        alone = not self.runs
        if alone and not self.left[-1].is_behind(roots):
            self._of_others()
            return
        device = next((x.device for x in roots if isinstance(x, torch.Tensor)), None)
        found = eager_parts(
            roots,
            numbers,
            [r.run for r in self.runs],
            self.fresh.device or device or torch.device("cpu"),
            accumulate=self.fresh.options.capture.accumulate,
        )
        if alone and found is not None:
            self._looking.stop()
            self._without_graphs(found.parts)
        elif found is not None:
            self._eager = found
        else:
            self._of_others()

    def _of_others(self) -> None:
        """A backward pass was none of the step's: one may never come."""
        self._others += 1
        if self._others == _OTHERS:
            self._looking.stop()

    def close(self) -> None:
        """The graphs are forgotten."""
        self._looking.stop()

    def _without_graphs(self, eager: Sequence[EagerPart | None]) -> None:
        """Warn of a step without a graph that is over its budget."""
        if self.fresh.budget.auto:
            return
        _, points = together([], eager)
        need = max(needs([], [], [], points), default=0)
        budget = self.fresh.budget.resolve(plain_peak_bytes=need, free_bytes=0)
        if need > budget:
            self._warn_of_eager(budget, need, [], eager, [])

    def _warn_of_eager(
        self,
        budget: int,
        need: int,
        runs: Sequence[GraphRun],
        eager: Sequence[EagerPart | None],
        lines: Sequence[str | None],
    ) -> None:
        where, remedy = place_and_remedy(eager, lines, self.left)
        warn_of_eager(budget, need, outside_bytes(runs, eager), where, remedy)

    # The plan of a graph that was just captured.

    def decide(self, line: str | None, graph: TrainingGraph, inputs: GraphRun) -> FirstPlan:
        """A plan for a graph of which it is not known what comes after it.

        Args:
            line: source line of the graph break that ends it.
            graph: the graph.
            inputs: what it is given.

        Raises:
            InfeasibleBudgetError: the budget, in bytes, is too small for the graph alone.
        """
        fresh = self.fresh
        if fresh.budget.auto and not self.runs and not self._free_bytes:
            self._free_bytes = free_bytes(fresh.device or torch.device("cpu"))
        alone = not self.runs and line is None
        runs = [*(r.run for r in self.runs), inputs]
        plans = GraphPlans(graph, self._within)
        if alone:
            try:
                plan = fresh.within(graph, self._budget(runs, [graph]))
            except InfeasibleBudgetError as refused:
                if fresh.budget.share is None:
                    raise
                # It may be a small part of a step, most of which Dynamo leaves to eager code.
                self._refused[id(graph)] = refused
                return FirstPlan(self._told(plans.smallest()[1]), provisional=True)
            return FirstPlan(plan, provisional=False)
        plan = self._told(plans.modest())
        if fresh.budget.share is not None:
            return FirstPlan(plan, provisional=True)  # a share of what is not known yet
        budget = self._budget(runs, [])
        held = beside(runs)[-1] + sum(_kept(r.part) for r in self.runs)
        if plan.peak_bytes + held <= budget:
            return FirstPlan(plan, provisional=True)
        least = self._told(plans.smallest()[1])
        need = least.peak_bytes + held
        if need > budget and not self.runs:
            error = InfeasibleBudgetError(
                budget_bytes=budget, minimum_bytes=least.peak_bytes, binding_op=None
            )
            raise noting_estimates(error, graph)
        if need > budget:
            newest = next((r.part.line for r in reversed(self.runs) if r.part.line), line)
            warn_first_step(budget, need, newest)
        return FirstPlan(least, provisional=True)

    def _budget(
        self,
        runs: Sequence[GraphRun],
        graphs: Sequence[TrainingGraph],
        eager: Sequence[EagerPart | None] = (),
    ) -> int:
        """The budget of a step in bytes."""
        outside = [part for part in eager if part is not None]
        lasting = {
            i: size
            for run in (*runs, *(part.run for part in outside))
            for i, size in run.inputs.items()
            if i in run.lasting
        }
        plain = 0
        if self.fresh.budget.share is not None:
            schedules = [store_all_schedule(g) for g in graphs]
            pairs = list(zip(graphs, schedules, strict=True))
            peaks = [simulate(g, s).peak_bytes for g, s in pairs]
            held, points = together(runs, eager)
            plain = max(needs(held, peaks, [kept_bytes(g, s) for g, s in pairs], points))
        # What was free was asked for when the first graph was reached.
        before = eager[0].own_bytes if eager and eager[0] is not None else 0
        free = self._free_bytes + sum(lasting.values()) + before
        return self.fresh.budget.resolve(plain_peak_bytes=plain, free_bytes=free)

    # The budget, divided anew once all graphs of a step are known.

    def _finish(self, runs: Sequence[Running], found: EagerParts, *, looked: bool) -> None:
        parts = [r.part for r in runs]
        key = tuple(id(p) for p in parts)
        if key in self._divided:
            self._check_gradients(runs, key)
            return
        new = any(p.provisional for p in parts)
        if not new and len(self._divided) >= MOST_SEQUENCES:
            return
        if not looked and key not in self._missed:  # longer ones begin like it
            self._missed.add(key)
            self._looking.forget(key)
            return
        self._divided.add(key)
        self._looking.learn(key, enough=len(self._divided) >= MOST_SEQUENCES)
        distinct = list({id(p): p for p in parts}.values())
        graphs = [p.graph for p in distinct if p.graph is not None]
        now = [p.plan for p in distinct if p.plan is not None]
        assert len(graphs) == len(now) == len(distinct), "a graph without a plan is no part"
        number = {id(p): n for n, p in enumerate(distinct)}
        order = [number[id(p)] for p in parts]
        ran = [r.run for r in runs]
        step = StepOfGraphs(graphs, order, *together(ran, found.parts))
        budget = self._budget(ran, [graphs[n] for n in order], found.parts)
        if self.computes_again:  # a share is not one of a step that is smaller for that
            budget = max(budget, self._most_bytes)
        self._most_bytes = max(budget, self._most_bytes)
        if max(step.needs(now)) <= budget and not new:
            return
        refused = self._refused.get(id(graphs[0]))
        outside = outside_bytes(ran, found.parts)
        if refused is not None and len(runs) == 1 and outside <= refused.minimum_bytes:
            raise refused
        plans, enough = replan(step, budget, self._within)
        self.tight |= enough > budget or step.overhead(plans) > 0
        if enough > max(budget, self._asked):
            self._asked = enough
            self._warn(step, plans, ran, found.parts, parts, budget, enough)
        for part, plan in zip(distinct, plans, strict=True):
            part.settle(self._told(plan))
        logger.info(
            "a step of %d graphs: the budget of %s is divided over them; peak %s",
            len(parts),
            format_bytes(budget),
            format_bytes(max(step.needs(plans))),
        )

    def _warn(
        self,
        step: StepOfGraphs,
        plans: Sequence[Plan],
        runs: Sequence[GraphRun],
        eager: Sequence[EagerPart | None],
        parts: Sequence[Part],
        budget: int,
        enough: int,
    ) -> None:
        """Warn of a step that does not fit, with what is to blame."""
        alone = max(StepOfGraphs(step.graphs, step.order, beside(runs)).needs(plans))
        if enough - alone > alone - budget:  # the graphs are less to blame
            self._warn_of_eager(budget, enough, runs, eager, [p.line for p in parts])
            return
        need = step.needs(plans)[: len(parts)]
        worst = max(range(len(need)), key=need.__getitem__)
        lines = [p.line for p in (*reversed(parts[:worst]), *parts[worst:]) if p.line]
        held = need[worst] - plans[step.order[worst]].peak_bytes
        warn_over_budget(budget, enough, held, len(parts), lines[0] if lines else None)

    def _check_gradients(self, runs: Sequence[Running], key: tuple[int, ...]) -> None:
        """Warn, once for each sequence of graphs, of gradients that the budget has no room for."""
        if self.fresh.options.capture.accumulate or key in self._looked_at:
            return
        if not any(r.gradients_found for r in runs):
            return
        self._looked_at.add(key)
        peaks = [r.part.held_peak_bytes or _added_at_the_end(r) for r in runs]
        kept = [_kept(r.part) for r in runs]
        need = max(needs(beside([r.run.accumulating() for r in runs]), peaks, kept))
        graphs = [r.part.graph for r in runs if r.part.graph is not None]
        budget = self._budget([r.run for r in runs], graphs)
        if need > budget:
            eager = self.fresh.options.run.executor == "eager-graph"
            remedy = 'give the options "accumulate": True, which counts them, or ' if eager else ""
            warn_of_gradients(budget, need, remedy)

    def _within(self, graph: TrainingGraph) -> Callable[[int], Plan]:
        """The plans of a graph for any budget, from one search where the planner can."""
        options = self.fresh.options
        found = get_plans(self.fresh.planner, graph, options.planning.of_planner(options.progress))
        said = self.fresh.origin(graph)

        def within(budget_bytes: int) -> Plan:
            try:
                made = found(budget_bytes)
            except InfeasibleBudgetError as error:
                raise noting_estimates(error, graph) from None
            return replace(made, provenance={**made.provenance, **said})

        return within

    def _told(self, plan: Plan) -> Plan:
        return replace(plan, provenance={**plan.provenance, **self.fresh.origin()})


class _Began:
    """Called when the backward pass of a run begins; kept alive by its autograd nodes."""

    def __init__(self, step: StepRuns, alive: _Alive) -> None:
        self._step = step
        self._alive = alive

    def __call__(self) -> None:
        self._step._backward = True
        self._step._looking.stop()


def _kept(part: Part) -> int:
    if part.graph is None or part.plan is None:
        return 0
    return kept_bytes(part.graph, part.plan.schedule)


def _added_at_the_end(running: Running) -> int:
    assert running.part.plan is not None
    return running.part.plan.peak_bytes + sum(running.run.gradients.values())
