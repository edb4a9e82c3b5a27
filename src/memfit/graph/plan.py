"""Plan: a schedule with what it costs, where it came from and which graph it belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from memfit.errors import GraphError, PlanMismatchError
from memfit.files import write_text_whole
from memfit.graph.estimates import estimate_note
from memfit.graph.plain import plain_peak_bytes
from memfit.graph.schedule import Compute, Schedule
from memfit.graph.simulator import MemoryTimeline, simulate
from memfit.graph.training_graph import TrainingGraph

__all__ = ["GRAPH_KEYS", "PLAN_SCHEMA_VERSION", "Plan", "PlanStatus", "Stage", "make_plan"]

PLAN_SCHEMA_VERSION = 2  # 1 had the notes in its provenance, and did not say `complete`

GRAPH_KEYS = ("graph", "shapes")
"""What a plan file may hold beside its plan; see `memfit.graph.plan_file`."""


_COUNTS = (
    "budget_bytes",
    "peak_bytes",
    "overhead",
    "forward_cost",
    "total_cost",
    "cached_bytes",
    "plain_peak_bytes",
    "smallest_feasible_budget_bytes",
)
_STAGE_COUNTS = ("forward_ops", "kept_bytes", "recompute_cost")
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "planner": str,
    "family": str,
    "mode": str,
    "cost_unit": str,
    "graph_fingerprint": str,
    "lower_sets": int,
    "formula_overhead": int,
    "formula_peak_bytes": int,
    "formula_cached_bytes": int,
    "seconds": (int, float),
    "peak_parts": Mapping,
    "provenance": Mapping,
    "notes": list,
    "stages": list,
}
_MAY_BE_NONE = ("mode", "formula_overhead", "formula_peak_bytes", "formula_cached_bytes")


class PlanStatus(StrEnum):
    """How good a plan is known to be."""

    OPTIMAL_IN_FAMILY = "OPTIMAL_IN_FAMILY"
    FEASIBLE = "FEASIBLE"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage L_{i-1} -> L_i of a canonical strategy.

    Attributes:
        forward_ops: number of ops in V_i = L_i minus L_{i-1}.
        first_op: name of the first of them in program order.
        last_op: name of the last of them.
        kept_bytes: bytes of V_i's values that are kept for the backward pass.
        recompute_cost: cost of the ops of V_i that run again, in the graph's cost unit.
    """

    forward_ops: int
    first_op: str
    last_op: str
    kept_bytes: int
    recompute_cost: int


@dataclass(frozen=True)
class Plan:
    """What to keep, what to compute again and in which order, and what that costs.

    All sizes in bytes; costs in `cost_unit` ("ns", or "unit" for the paper's cost model).

    Attributes:
        planner: name of the planner.
        family: family of lower sets that was searched (`all`, `pruned`, `pruned+prefix`, …).
        mode: `time`, `memory`, or None for planners without modes.
        status: how good the plan is known to be; never "optimal" without its family.
        budget_bytes: the budget it was made for, peak of the whole step.
        peak_bytes: simulated peak of the whole step, with liveness analysis.
        peak_parts: the bytes alive at the peak, by category.
        overhead: cost of all recomputations in the schedule.
        forward_cost: cost of one forward pass without recomputation.
        total_cost: cost of one step without recomputation.
        cached_bytes: bytes that the schedule keeps from the forward to the backward pass.
        plain_peak_bytes: simulated peak of the step that keeps everything.
        smallest_feasible_budget_bytes: smallest budget that the strategies searched can meet (for
            large budgets `auto` does not search nested strategies, which may meet smaller ones).
        lower_sets: number of lower sets searched.
        stages: the stages, in forward order.
        schedule: the exact order of computations.
        graph_fingerprint: digest of the graph it belongs to.
        seconds: time planning took.
        formula_overhead: the paper's overhead, for canonical strategies of the paper's planners;
            None otherwise.
        formula_peak_bytes: the paper's peak, likewise.
        formula_cached_bytes: the paper's M(U_k), likewise.
        notes: what a reader should know, such as a family that was reduced.
        complete: whether the search was not cut short by a time limit.
        provenance: versions, device, cost source.
    """

    planner: str
    family: str
    mode: str | None
    status: PlanStatus
    budget_bytes: int
    peak_bytes: int
    peak_parts: Mapping[str, int]
    overhead: int
    forward_cost: int
    total_cost: int
    cost_unit: str
    cached_bytes: int
    plain_peak_bytes: int
    smallest_feasible_budget_bytes: int
    lower_sets: int
    stages: tuple[Stage, ...]
    schedule: Schedule
    graph_fingerprint: str
    seconds: float
    formula_overhead: int | None = None
    formula_peak_bytes: int | None = None
    formula_cached_bytes: int | None = None
    notes: tuple[str, ...] = ()
    complete: bool = True
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = PLAN_SCHEMA_VERSION

    @property
    def overhead_percent(self) -> float:
        """Overhead in percent of one step's cost without recomputation (forward and backward)."""
        return 100.0 * self.overhead / self.total_cost if self.total_cost else 0.0

    @property
    def most_recomputations(self) -> int:
        """How often any one op runs again at most: 1 or 0, but for plans of nested strategies."""
        return self.schedule.most_recomputations

    def check_graph(self, graph: TrainingGraph) -> None:
        """Refuse any graph but the plan's own.

        Raises:
            PlanMismatchError: the fingerprints differ.
        """
        if graph.fingerprint != self.graph_fingerprint:
            raise PlanMismatchError(
                f"the plan is for graph {self.graph_fingerprint}, this graph is "
                f"{graph.fingerprint} ({graph.name}); plan again for this model, these input "
                "shapes and this loss"
            )

    def check_schedule(self, graph: TrainingGraph) -> None:
        """Refuse a plan whose schedule does not compute its graph, as one that was written to.

        Raises:
            PlanMismatchError: it does not, or the plan is for another graph.
        """
        self.check_graph(graph)
        try:
            if not all(0 <= step.op < len(graph.ops) for step in self.schedule.steps):
                raise ValueError("a step names an op that the graph does not have")
            self.schedule.validate(graph)
        except (GraphError, ValueError) as error:
            raise PlanMismatchError(
                f"the plan's schedule does not compute {graph.name}: {error}; the plan was changed "
                "after it was made: plan again"
            ) from None

    def timeline(self, graph: TrainingGraph) -> MemoryTimeline:
        """Simulated memory of every step of the schedule."""
        self.check_graph(graph)
        return simulate(graph, self.schedule)

    def to_json(self) -> str:
        """The plan as JSON text, read back by `from_json`."""
        data = asdict(self)
        data["overhead_percent"] = self.overhead_percent
        data["most_recomputations"] = self.most_recomputations
        data["schedule"] = {
            "backward_start": self.schedule.backward_start,
            "steps": [[s.op, s.copy, list(s.reads)] for s in self.schedule.steps],
        }
        return json.dumps(data, sort_keys=True)

    def save(self, path: str | Path) -> None:
        """Write the plan to `path`, whole or not at all."""
        write_text_whole(Path(path), self.to_json() + "\n")

    @classmethod
    def from_json(cls, text: str, *, where: str = "the text") -> Plan:
        """Read a plan.

        Args:
            text: what `to_json` wrote.
            where: where the text came from, for messages.

        Raises:
            PlanMismatchError: the text is no plan or one of another schema version.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanMismatchError(
                f"{where} is not JSON ({error}); give a file written by memfit plan -o"
            ) from None
        if not isinstance(data, dict) or "schema_version" not in data:
            raise PlanMismatchError(
                f"{where} has no schema_version; give a file written by memfit plan -o"
            )
        version = data["schema_version"]
        if version != PLAN_SCHEMA_VERSION:
            raise PlanMismatchError(
                f"{where} has plan schema version {version!r}, this memfit reads version "
                f"{PLAN_SCHEMA_VERSION}; plan again with this version"
            )
        try:
            data.pop("overhead_percent", None)
            data.pop("most_recomputations", None)
            for key in GRAPH_KEYS:
                data.pop(key, None)
            schedule = data.pop("schedule")
            steps = tuple(
                Compute(int(op), int(copy), tuple(int(r) for r in reads))
                for op, copy, reads in schedule["steps"]
            )
            wrong = [name for name in _COUNTS if type(data[name]) is not int or data[name] < 0]
            if wrong:
                raise ValueError(f"{wrong[0]} is no number of 0 or more")
            _check_kinds(data)
            return cls(
                **{
                    **data,
                    "status": PlanStatus(data["status"]),
                    "stages": tuple(Stage(**s) for s in data["stages"]),
                    "notes": tuple(data.get("notes", ())),
                    "schedule": Schedule(steps, int(schedule["backward_start"])),
                }
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise PlanMismatchError(
                f"{where} is no whole plan ({type(error).__name__}: {error}); "
                "plan again and save it with memfit plan -o"
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a file.

        Raises:
            PlanMismatchError: the file cannot be read or is no plan of this schema version.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanMismatchError(f"plan file {path} cannot be read: {error}") from None
        return cls.from_json(text, where=f"plan file {path}")


def _check_kinds(data: Mapping[str, Any]) -> None:
    """Refuse what a file says of a plan in other types than plans have."""
    for name, kinds in _KINDS.items():
        value = data.get(name)
        allowed = isinstance(value, kinds) and not isinstance(value, bool)
        if name in data and not allowed and not (value is None and name in _MAY_BE_NONE):
            raise TypeError(f"{name} is a {type(value).__name__}")
    for stage in data["stages"]:
        wrong = [name for name in _STAGE_COUNTS if type(stage[name]) is not int or stage[name] < 0]
        if wrong:
            raise ValueError(f"{wrong[0]} of a stage is no number of 0 or more")
    if not all(isinstance(note, str) for note in data.get("notes", ())):
        raise TypeError("notes are no texts")
    if not isinstance(data.get("complete", True), bool):
        raise TypeError("complete is neither true nor false")
    if not all(type(size) is int and size >= 0 for size in data["peak_parts"].values()):
        raise ValueError("peak_parts are no numbers of 0 or more")


def make_plan(
    graph: TrainingGraph,
    schedule: Schedule,
    *,
    planner: str,
    family: str,
    mode: str | None,
    status: PlanStatus,
    budget_bytes: int,
    smallest_feasible_budget_bytes: int,
    lower_sets: int,
    stages: tuple[Stage, ...],
    seconds: float,
    formula_overhead: int | None = None,
    formula_peak_bytes: int | None = None,
    formula_cached_bytes: int | None = None,
    notes: Iterable[str] = (),
    complete: bool = True,
    provenance: Mapping[str, Any] | None = None,
    timeline: MemoryTimeline | None = None,
) -> Plan:
    """A Plan whose peak, parts, overhead and kept bytes are those of the simulated schedule.

    Its notes say where workspaces were estimated. `timeline` is that of `schedule`, where it has
    been simulated already.
    """
    timeline = timeline or simulate(graph, schedule)
    kept = schedule.kept(graph)
    return Plan(
        planner=planner,
        family=family,
        mode=mode,
        status=status,
        budget_bytes=budget_bytes,
        peak_bytes=timeline.peak_bytes,
        peak_parts=timeline.peak_parts(),
        overhead=schedule.overhead(graph),
        forward_cost=graph.forward_cost,
        total_cost=graph.total_cost,
        cost_unit=graph.cost_unit,
        cached_bytes=sum(graph.values[v].size_bytes for v in kept),
        plain_peak_bytes=plain_peak_bytes(graph),
        smallest_feasible_budget_bytes=smallest_feasible_budget_bytes,
        lower_sets=lower_sets,
        stages=stages,
        schedule=schedule,
        graph_fingerprint=graph.fingerprint,
        seconds=seconds,
        formula_overhead=formula_overhead,
        formula_peak_bytes=formula_peak_bytes,
        formula_cached_bytes=formula_cached_bytes,
        notes=_noting_estimates(graph, tuple(notes)),
        complete=complete,
        provenance=dict(provenance or {}),
    )


def _noting_estimates(graph: TrainingGraph, notes: tuple[str, ...]) -> tuple[str, ...]:
    note = estimate_note(graph)
    return notes if note is None or note in notes else (*notes, note)
