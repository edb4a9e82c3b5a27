"""A plan made anew, by the planner that the options name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from memfit._version import __version__
from memfit.budget import Budget
from memfit.errors import InfeasibleBudgetError
from memfit.graph.estimates import noting_estimates
from memfit.graph.plain import plain_peak_bytes
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.planners.registry import get_planner
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.capture.resident import optimizer_state_bytes
from memfit.pytorch.cost.measure import free_bytes
from memfit.pytorch.loops.choice import plan_loops
from memfit.pytorch.loops.run import LoopProgram
from memfit.pytorch.options import StepOptions
from memfit.pytorch.planning.protocol import Draft, Occasion, PlannedStep

__all__ = ["Fresh", "digest_of"]


def digest_of(*parts: object) -> str:
    """A digest of what a plan depends on beyond the graph: budget, planner, costs, …"""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Fresh:
    """Plans made anew; a `Planning`.

    Attributes:
        options: what was asked for.
        device: of the model; None for the CPU.
    """

    options: StepOptions
    device: torch.device | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files take the size of the optimizer's state along, not the optimizer."""
        capture = replace(
            self.options.capture, optimizer=None, optimizer_bytes=self.optimizer_bytes
        )
        return {**self.__dict__, "options": replace(self.options, capture=capture, progress=None)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def optimizer_bytes(self) -> int:
        """Size of the optimizer's state.

        Raises:
            UsageError: it cannot be told.
        """
        capture = self.options.capture
        if capture.optimizer is None:
            return capture.optimizer_bytes
        return optimizer_state_bytes(capture.optimizer)

    @property
    def budget(self) -> Budget:
        """Of the whole step; what the device has free, where a plan was given instead."""
        return self.options.planning.budget or Budget(auto=True)

    @property
    def planner(self) -> str:
        """The planner's name."""
        return self.options.planning.planner

    def plan(self, draft: Draft[Any], occasion: Occasion) -> PlannedStep[Any]:
        """See `Planning`."""
        step = draft.priced()
        if not draft.programs:
            return PlannedStep(step, self.decide(step.graph, occasion.budget_bytes))
        return PlannedStep(*self.plan_loops(step, draft.programs))

    def plan_loops(
        self, step: CapturedStep, programs: Sequence[LoopProgram]
    ) -> tuple[CapturedStep, Plan]:
        """A plan of a step with rolled loops, and the step as planned.

        Raises:
            InfeasibleBudgetError: no plan fits.
        """

        def decide(graph: TrainingGraph, whole: TrainingGraph) -> Plan:
            return self.within(graph, self.resolve(whole))

        return plan_loops(step, programs, decide, self.options.planning.plan)

    def decide(self, graph: TrainingGraph, budget_bytes: int | None = None) -> Plan:
        """The plan for a captured graph, or the one that was given.

        Args:
            graph: the graph.
            budget_bytes: the budget, where it is known in bytes.

        Raises:
            InfeasibleBudgetError: no plan fits.
            PlanMismatchError: the plan that was given is for another graph.
        """
        given = self.options.planning.plan
        if given is not None:
            given.check_schedule(graph)
            return given
        return self.within(graph, budget_bytes or self.resolve(graph))

    def resolve(self, graph: TrainingGraph) -> int:
        """The budget in bytes, of a step that is this graph."""
        plain = plain_peak_bytes(graph)
        held = sum(
            v.size_bytes
            for v in graph.values
            if v.kind.resident and v.kind not in (ValueKind.OPTIMIZER, ValueKind.ACCUMULATED)
        )
        free = free_bytes(self.device or torch.device("cpu")) + held if self.budget.auto else 0
        return self.budget.resolve(plain_peak_bytes=plain, free_bytes=free)

    def within(
        self, graph: TrainingGraph, budget_bytes: int, time_limit_s: float | None = None
    ) -> Plan:
        """The plan for a captured graph and a budget, within a time limit beside the user's.

        Raises:
            InfeasibleBudgetError: no plan fits.
        """
        options = self.options.planning.of_planner(self.options.progress)
        limits = [s for s in (options.time_limit_s, time_limit_s) if s is not None]
        options = replace(options, time_limit_s=min(limits, default=None))
        made = get_planner(self.planner)(graph, budget_bytes, options)
        if made.peak_bytes > budget_bytes:
            error = InfeasibleBudgetError(
                budget_bytes=budget_bytes,
                minimum_bytes=made.peak_bytes,
                binding_op=None,
                detail=f"the simulated peak of planner {made.planner}, mode {made.mode}, whose "
                "formula leaves out gradients and workspace; mode auto and planner liveness count "
                "them",
            )
            raise noting_estimates(error, graph)
        return replace(made, provenance={**made.provenance, **self.origin(graph)})

    def origin(self, graph: TrainingGraph | None = None) -> dict[str, Any]:
        """What the provenance of every plan says."""
        said = {
            "memfit": __version__,
            "torch": torch.__version__,
            "device": str(self.device or "cpu"),
            "cost": self.options.capture.cost,
        }
        return said if graph is None else {**said, "graph_name": graph.name}

    def digest(self, optimizer_bytes: int, held: int = 0) -> str:
        """A digest of all that a plan depends on beyond the graph."""
        planning = self.options.planning
        made = planning.plan.to_json() if planning.plan is not None else None
        return digest_of(
            __version__,
            self.budget,
            planning.planner,
            planning.of_planner(),
            self.options.capture.cost,
            (optimizer_bytes, held),
            made,
        )
