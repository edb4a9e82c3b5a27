"""The arguments of the library's front door, checked, and what they make of a captured step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from memfit._core import core_name
from memfit._version import __version__
from memfit.budget import Budget, parse_budget
from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.graph.estimates import noting_estimates
from memfit.graph.plain import store_all_schedule
from memfit.graph.plan import Plan
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.planners.base import PlannerOptions, Progress
from memfit.planners.registry import get_planner
from memfit.pytorch.arguments import (
    MODES,
    Fitted,
    check_callable,
    check_choice,
    check_flag,
    check_initialised,
    check_module,
    check_optimizer,
    check_time_limit,
    short,
)
from memfit.pytorch.backend import StepBackend
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.capture.resident import gradient_bytes, optimizer_state_bytes, resident_values
from memfit.pytorch.cost.cost_step import cost_step
from memfit.pytorch.cost.measure import free_bytes
from memfit.pytorch.inductor.backend import InductorBackend, digest_of
from memfit.pytorch.loops.choice import plan_loops
from memfit.pytorch.loops.rewrite import LOOPS
from memfit.pytorch.loops.run import LoopProgram
from memfit.pytorch.planning.by_shape import ShapePlans
from memfit.pytorch.planning.sizes import DEFAULT_MAX_SHAPES, ShapeCount
from memfit.pytorch.ranks.replication import Replication, is_sharded

__all__ = ["COSTS", "EXECUTORS", "Settings", "check_accumulate", "settings_for"]

EXECUTORS = ("eager-graph", "inductor")
COSTS = ("measured", "analytic")


@dataclass(frozen=True)
class Settings:
    """Everything that turns a captured step into a plan."""

    budget: Budget
    planner: str
    options: PlannerOptions
    cost: str
    optimizer: torch.optim.Optimizer | None
    prepared: Plan | None = None
    device: torch.device | None = None
    executor: str = "eager-graph"
    accumulate: bool = False
    optimizer_bytes: int = 0
    max_shapes: int = DEFAULT_MAX_SHAPES
    loops: str = "auto"

    def _optimizer_state_bytes(self) -> int:
        return optimizer_state_bytes(self.optimizer) if self.optimizer else self.optimizer_bytes

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files take the size of the optimizer's state along, not the optimizer."""
        return {
            **self.__dict__,
            "optimizer": None,
            "optimizer_bytes": self._optimizer_state_bytes(),
            "options": replace(self.options, progress=None),
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)

    def backend(
        self, model: nn.Module, replication: Replication | None = None, *, decide: bool = True
    ) -> StepBackend:
        """A Dynamo backend for one model.

        Raises:
            UsageError: a lazy layer has no shape yet, or the optimizer's state cannot be sized.
        """
        check_initialised(model)
        optimizer_bytes = self._optimizer_state_bytes()
        resident = resident_values(model, optimizer_bytes)
        if replication is not None:
            resident[ValueKind.BUFFER] += replication.bucket_bytes
        if self.accumulate:
            resident[ValueKind.ACCUMULATED] = gradient_bytes(model)
        return self.backend_for(
            decide=self.decide if decide else None,
            resident=resident,
            name=type(model).__name__,
            optimizer_bytes=optimizer_bytes,
            replication=replication,
            plans=self.shape_plans(optimizer_bytes) if decide and self.prepared is None else None,
            loops=self.loops,
        )

    def shape_plans(self, optimizer_bytes: int) -> ShapePlans:
        """The plans of one model at several input shapes."""
        digest = digest_of(
            self.digest(optimizer_bytes), torch.__version__, self.executor, core_name()
        )
        return ShapePlans(
            self, None if self.budget.auto else digest, measures=self.cost == "measured"
        )

    def backend_for(
        self,
        *,
        decide: Callable[[TrainingGraph], Plan] | None,
        resident: Mapping[ValueKind, int],
        name: str,
        optimizer_bytes: int = 0,
        held: int = 0,
        replication: Replication | None = None,
        plans: ShapePlans | None = None,
        loops: str = "unroll",
    ) -> StepBackend:
        """A Dynamo backend of the executor asked for.

        Args:
            decide: the plan for a captured graph; None to capture only.
            resident: bytes alive all through the step, by kind, read by the graph or not; of
                inputs those that no graph reads.
            name: for messages.
            optimizer_bytes: size of the optimizer's state.
            held: bytes that other graphs of the same step hold.
            replication: how the module runs on several devices.
            plans: makes the plans instead of `decide`, each from what is known of other shapes.
            loops: what becomes of `scan` and `while_loop`, as for `fit`.
        """
        count = ShapeCount(name, self.max_shapes)
        if self.executor == "inductor":
            return InductorBackend(
                cost=self.cost,
                progress=self.options.progress,
                digest=self.digest(optimizer_bytes, held),
                replan=self.decide_within if self.prepared is None else None,
                decide=decide,
                resident=resident,
                name=name,
                plans=plans,
                count=count,
            )
        return StepBackend(
            costs=lambda step, times: cost_step(
                step, self.cost, self.options.progress, times=times
            ),
            decide=decide,
            resident=resident,
            name=name,
            accumulate=self.accumulate,
            replication=replication,
            plans=plans,
            count=count,
            loops=loops,
            progress=self.options.progress,
            plan_loops=self.plan_loops if loops != "unroll" else None,
        )

    def plan_loops(
        self, step: CapturedStep, programs: Sequence[LoopProgram]
    ) -> tuple[CapturedStep, Plan]:
        """A plan of a step with rolled loops, and the step as planned."""

        def decide(graph: TrainingGraph, whole: TrainingGraph) -> Plan:
            return self.decide_within(graph, self.resolve(whole))

        return plan_loops(step, programs, decide, self.prepared)

    def digest(self, optimizer_bytes: int, held: int = 0) -> str:
        """A digest of all that a plan depends on beyond the graph."""
        options = replace(self.options, progress=None)
        made = self.prepared.to_json() if self.prepared is not None else None
        sizes = (optimizer_bytes, held)
        return digest_of(__version__, self.budget, self.planner, options, self.cost, sizes, made)

    def decide(self, graph: TrainingGraph) -> Plan:
        """The plan for a captured graph."""
        if self.prepared is not None:
            self.prepared.check_schedule(graph)
            return self.prepared
        return self.decide_within(graph, self.resolve(graph))

    def resolve(self, graph: TrainingGraph) -> int:
        """The budget in bytes, of a step that is this graph."""
        plain = simulate(graph, store_all_schedule(graph)).peak_bytes
        held = sum(
            v.size_bytes
            for v in graph.values
            if v.kind.resident and v.kind not in (ValueKind.OPTIMIZER, ValueKind.ACCUMULATED)
        )
        free = free_bytes(self.device or torch.device("cpu")) + held if self.budget.auto else 0
        return self.budget.resolve(plain_peak_bytes=plain, free_bytes=free)

    def decide_within(
        self, graph: TrainingGraph, budget_bytes: int, time_limit_s: float | None = None
    ) -> Plan:
        """The plan for a captured graph and a budget, within a time limit beside the user's."""
        limits = [s for s in (self.options.time_limit_s, time_limit_s) if s is not None]
        options = replace(self.options, time_limit_s=min(limits, default=None))
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

    def origin(self, graph: TrainingGraph) -> dict[str, Any]:
        """What the provenance of every plan says."""
        return {
            "memfit": __version__,
            "torch": torch.__version__,
            "device": str(self.device or "cpu"),
            "cost": self.cost,
            "graph_name": graph.name,
        }


def check_accumulate(accumulate: Any, executor: str) -> None:
    """Refuse what `accumulate` cannot be.

    Raises:
        UsageError: it is no bool, or the executor does not support it.
    """
    check_flag("accumulate", accumulate)
    if accumulate and executor == "inductor":
        raise UsageError(
            'accumulate=True is not supported by executor "inductor"; use executor "eager-graph"'
        )


def settings_for(
    model: nn.Module,
    *,
    budget: str | int | Budget | None,
    planner: str,
    mode: str,
    executor: str,
    cost: str,
    optimizer: torch.optim.Optimizer | None,
    prepared: Plan | None,
    progress: Progress | None,
    time_limit_s: float | None = None,
    accumulate: bool = False,
    max_shapes: int = DEFAULT_MAX_SHAPES,
    loops: str = "auto",
) -> Settings:
    """The settings that the arguments of `fit` and `plan` ask for, checked.

    Raises:
        InvalidBudgetError, UnknownPlannerError, UsageError: an argument is wrong.
    """
    check_module(model)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise UsageError(
            "model is wrapped in DistributedDataParallel already; fit the model and wrap the "
            "result: DistributedDataParallel(memfit.fit(model, ...))"
        )
    if is_sharded(model):
        raise UsageError(
            f"the {type(model).__name__} is sharded already; fit its blocks first, then shard "
            "them: for block in memfit.fit_blocks(model, blocks, budget=...): fully_shard(block)"
        )
    inner = next((m for m in model.modules() if isinstance(m, Fitted)), None)
    if inner is not None:
        raise UsageError(
            f"the {type(model).__name__} is, or holds, a module that is fitted already, and plans "
            "do not nest; fit the plain model once, or its parts one by one"
        )
    check_choice("executor", executor, EXECUTORS)
    check_accumulate(accumulate, executor)
    check_choice("cost", cost, COSTS)
    check_choice("mode", mode, MODES)
    check_optimizer(optimizer)
    check_callable("progress", progress, "give a function of a label and the share done, or None")
    if not isinstance(loops, str) or loops not in LOOPS:
        raise UsageError(f"unknown loops {short(loops)}; write one of {', '.join(LOOPS)}")
    if loops == "roll" and executor == "inductor":
        raise UsageError(
            'loops="roll" is not supported by executor "inductor"; use executor "eager-graph"'
        )
    if budget is None and prepared is None:
        raise UsageError('no budget; give budget="3GiB", a share such as "60%", or a plan')
    check_time_limit(time_limit_s)
    get_planner(planner)
    parsed = parse_budget(budget) if budget is not None else Budget(auto=True)
    first = next(iter(model.parameters()), None)
    return Settings(
        budget=parsed,
        planner=planner,
        options=PlannerOptions(mode=mode, time_limit_s=time_limit_s, progress=progress),
        cost=cost,
        optimizer=optimizer,
        prepared=prepared,
        device=first.device if first is not None else None,
        executor=executor,
        accumulate=accumulate,
        max_shapes=max_shapes,
        loops=loops,
    )
