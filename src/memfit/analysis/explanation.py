"""Why a budget is or is not feasible, in sentences, and what would lower what a step needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memfit.analysis.step_memory import StepMemory, op_text, step_memory
from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import Estimate, TrainingGraph, ValueKind
from memfit.planners.base import Planner, PlannerOptions
from memfit.units import format_bytes

__all__ = ["Explanation", "explain_budget", "floor_of_any_plan", "sentences"]

_FEW = 4


@dataclass(frozen=True)
class Explanation:
    """Why a budget is or is not feasible.

    Attributes:
        graph: name of the graph.
        budget_bytes: the budget.
        feasible: whether the planner has a plan for it.
        plain_peak_bytes: peak of the step that keeps everything.
        smallest_feasible_budget: smallest budget that the planner can meet.
        floor_bytes: what no plan of any planner can go below: resident values, and one op with all
            that it reads and writes.
        at: the op at which the plan, or the plan for the smallest budget, reaches its peak.
        memory: what is alive there.
        why: sentences on the budget.
        remedies: sentences on what would lower what the step needs, most bytes first.
    """

    graph: str
    budget_bytes: int
    feasible: bool
    plain_peak_bytes: int
    smallest_feasible_budget: int
    floor_bytes: int
    at: str | None
    memory: StepMemory
    why: tuple[str, ...]
    remedies: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "status": "FEASIBLE" if self.feasible else "INFEASIBLE"}


def floor_of_any_plan(graph: TrainingGraph) -> tuple[int, str | None]:
    """Bytes that every plan needs, and the op that calls for them.

    Whatever is recomputed, an op runs with its inputs, outputs and workspace alive beside the
    resident values; and at the end all gradients and outputs are.
    """
    values = graph.values
    worst, which = sum(v.size_bytes for v in values if v.is_output), None
    for op in graph.ops:
        touched = {*op.inputs, *op.outputs}
        size = op.workspace_bytes
        size += sum(values[v].size_bytes for v in touched if not values[v].kind.resident)
        if size > worst:
            worst, which = size, op_text(op)
    return graph.resident_bytes + worst, which


def explain_budget(
    graph: TrainingGraph,
    budget_bytes: int,
    planner: Planner,
    options: PlannerOptions,
    plain_peak_bytes: int,
) -> Explanation:
    """Plan within a budget, or within the smallest feasible one, and say what binds there.

    Raises:
        UsageError: a wrong option.
    """
    feasible = True
    try:
        plan = planner(graph, budget_bytes, options)
        smallest = plan.smallest_feasible_budget_bytes
    except InfeasibleBudgetError as error:
        feasible = False
        smallest = error.minimum_bytes
        plan = planner(graph, smallest, options)
    memory = step_memory(graph, plan.schedule)
    floor, floor_op = floor_of_any_plan(graph)
    if feasible:
        why = _why_feasible(plan, budget_bytes, plain_peak_bytes, memory)
    else:
        why = _why_infeasible(graph, budget_bytes, smallest, memory, floor, floor_op)
    return Explanation(
        graph=graph.name,
        budget_bytes=budget_bytes,
        feasible=feasible,
        plain_peak_bytes=plain_peak_bytes,
        smallest_feasible_budget=smallest,
        floor_bytes=floor,
        at=memory.at,
        memory=memory,
        why=tuple(why),
        remedies=tuple(_remedies(graph, budget_bytes, smallest, memory)),
    )


def _why_feasible(
    plan: Plan, budget_bytes: int, plain_peak_bytes: int, memory: StepMemory
) -> list[str]:
    budget = format_bytes(budget_bytes)
    if budget_bytes >= plain_peak_bytes:
        return [
            f"Budget {budget} is feasible without any recomputation: the plain step peaks at "
            f"{format_bytes(plain_peak_bytes)}."
        ]
    return [
        f"Budget {budget} is feasible: planner {plan.planner} reaches "
        f"{format_bytes(plan.peak_bytes)} for {plan.overhead_percent:.1f}% more time; the smallest "
        f"feasible budget is {format_bytes(plan.smallest_feasible_budget_bytes)}.",
        _where(memory, "The plan reaches its peak"),
    ]


def _why_infeasible(
    graph: TrainingGraph,
    budget_bytes: int,
    smallest: int,
    memory: StepMemory,
    floor: int,
    floor_op: str | None,
) -> list[str]:
    found = [
        f"Budget {format_bytes(budget_bytes)} ({budget_bytes} bytes) is infeasible: the smallest "
        f"feasible budget is {format_bytes(smallest)} ({smallest} bytes), "
        f"{format_bytes(smallest - budget_bytes)} more.",
        _where(memory, "Even the plan for that budget reaches its peak"),
    ]
    if budget_bytes < graph.resident_bytes:
        found.append(
            f"Parameters, buffers, inputs and optimizer state alone are "
            f"{format_bytes(graph.resident_bytes)}, alive all through the step: over the budget "
            "before anything is computed."
        )
    elif budget_bytes < floor:
        what = f"the op {floor_op} with all it reads and writes" if floor_op else "the gradients"
        found.append(
            f"No plan of any kind can go below {format_bytes(floor)}: what is alive all through "
            f"the step and {what} must be there at once, its workspace included."
        )
    else:
        found.append(
            f"Nothing proves that no plan could do it (one op and what is always alive need "
            f"{format_bytes(floor)}), but none of the strategies searched does."
        )
    return found


def _where(memory: StepMemory, begin: str) -> str:
    if memory.at is None:
        return "The step computes nothing."
    parts = sorted(memory.parts.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{format_bytes(size)} {name.replace('_', ' ')}" for name, size in parts)
    largest = ", ".join(
        f"{v.name} ({format_bytes(v.size_bytes)}, {v.kind})" for v in memory.live[:_FEW]
    )
    tail = f"; largest beside what is always there: {largest}" if largest else ""
    return f"{begin} in the {memory.phase} op {memory.at}, where must be alive: {listed}{tail}."


def _remedies(
    graph: TrainingGraph, budget_bytes: int, smallest: int, memory: StepMemory
) -> list[str]:
    """What would lower the peak, by the bytes that it touches at the peak."""
    parts = memory.parts
    fixed = dict.fromkeys(ValueKind, 0)
    for value in graph.values:
        fixed[value.kind] += value.size_bytes
    moving = smallest - graph.resident_bytes - parts.get("parameter_gradients", 0)
    found: list[tuple[int, str]] = []
    if moving > 0:
        short = smallest - budget_bytes
        advice = "make the batch smaller: activations, their gradients and workspaces take "
        advice += f"{format_bytes(moving)} at the peak and grow with it"
        if 0 < short < moving:
            advice += f"; by about {100 * short / moving:.0f}% at least for this budget"
        found.append((moving, f"{advice}."))
        found.append(
            (
                moving // 2,
                "compute in bfloat16 (autocast): it halves what activations take where they are "
                "float32.",
            )
        )
    if fixed[ValueKind.OPTIMIZER]:
        size = fixed[ValueKind.OPTIMIZER]
        found.append((size, f"use an optimizer with less state: it holds {format_bytes(size)}."))
    gradients = parts.get("parameter_gradients", 0)
    if gradients:
        found.append(
            (
                gradients,
                f"train fewer parameters (freeze layers, LoRA): their gradients take "
                f"{format_bytes(gradients)} at the peak.",
            )
        )
    workspace = parts.get("workspace", 0)
    if workspace > smallest // 10 and _could_be_measured(graph, memory.at):
        found.append(
            (
                workspace // 2,
                f"the op's workspace is {format_bytes(workspace)}; with --cost measured it is "
                "measured rather than estimated, and may be less.",
            )
        )
    return [text for _, text in sorted(found, key=lambda item: -item[0])]


def _could_be_measured(graph: TrainingGraph, at: str | None) -> bool:
    """Whether an op's workspace was estimated for want of measuring."""
    reasons = (Estimate.ANALYTIC, Estimate.PROFILER)
    return any(op.workspace_estimate in reasons and op_text(op) == at for op in graph.ops)


def sentences(explanation: Explanation) -> Sequence[str]:
    """The whole explanation as lines for a terminal."""
    lines = list(explanation.why)
    if not explanation.feasible and explanation.remedies:
        lines.append("What would lower it:")
        lines += [f"  - {text}" for text in explanation.remedies]
    return lines
