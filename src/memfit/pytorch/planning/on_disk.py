"""Plans, with the costs that they were made from, kept on disk between runs.

They stand beside the op costs (`memfit.pytorch.cost.on_disk`), in a folder `plans`, one JSON file
each, written whole or not at all. Nothing is taken on trust: a file that cannot be read, or whose
plan does not do what it says on this graph, is ignored, with a warning in the log.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfit.errors import MemfitError
from memfit.files import write_text_whole
from memfit.graph.plan import Plan
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph
from memfit.pytorch.cost.on_disk import cache_enabled, cache_folder, conditions_digest
from memfit.pytorch.cost.op_calls import OpCall

__all__ = ["FORMAT_VERSION", "MOST_FILES", "CachedPlan", "PlanCache", "open_plan_cache", "plan_key"]

FORMAT_VERSION = 1
MOST_FILES = 1000
"""Plans kept; the ones that were written longest ago go first."""

Costs = Sequence[tuple[int, int]]
_log = logging.getLogger(__name__)
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def plan_key(graph: TrainingGraph, calls: Sequence[OpCall], digest: str) -> str | None:
    """What a plan is kept under; None for a graph with calls that have no stable name.

    Args:
        graph: structure and sizes count, not costs.
        calls: all calls of the step. The graph does not say all that their costs depend on.
        digest: of budget, planner, options and versions.
    """
    signatures = [call.signature() for call in calls]
    if not calls or any(s is None for s in signatures):
        return None
    device = next((c.device for c in calls if c.device.type != "cpu"), calls[0].device)
    parts = [digest, conditions_digest(device), graph.fingerprint, *signatures]
    return hashlib.sha256("\n".join(str(p) for p in parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class CachedPlan:
    """A plan and what it was made from.

    Attributes:
        plan: the plan.
        costs: time in ns and workspace in bytes of each op.
        measured: whether the times were measured, rather than estimated from another shape's.
    """

    plan: Plan
    costs: Costs
    measured: bool


def open_plan_cache(enabled: bool | None = None) -> PlanCache | None:
    """The plans of this machine, or None where the caches are turned off (`MEMFIT_CACHE=0`)."""
    return PlanCache(cache_folder() / "plans") if cache_enabled(enabled) else None


class PlanCache:
    """Plans in a folder, by key (`plan_key`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str, graph: TrainingGraph) -> CachedPlan | None:
        """The plan kept under a key, checked against the graph: its simulated peak is what it says.

        Args:
            key: of the graph.
            graph: with or without costs.
        """
        path = self._folder / f"{key}.json"
        try:
            return _checked(json.loads(path.read_text(encoding="utf-8")), graph)
        except FileNotFoundError:
            return None
        except (*_DAMAGED, MemfitError) as error:
            _log.warning("the plan in %s is ignored: %s: %s", path, type(error).__name__, error)
            return None

    def put(self, key: str, made: CachedPlan) -> None:
        """Keep a plan; where that is not possible, it is logged and not raised."""
        path = self._folder / f"{key}.json"
        payload = {
            "format_version": FORMAT_VERSION,
            "plan": made.plan.to_json(),
            "costs": [list(pair) for pair in made.costs],
            "measured": made.measured,
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text_whole(path, json.dumps(payload) + "\n")
            self._drop_oldest()
        except (OSError, TypeError, MemfitError) as error:
            _log.warning("a plan was not kept in %s: %s", path, error)

    def _drop_oldest(self) -> None:
        files = list(self._folder.glob("*.json"))
        if len(files) <= MOST_FILES:
            return
        ages = []
        for file in files:
            with suppress(OSError):  # another process may have dropped it
                ages.append((file.stat().st_mtime, file))
        for _, file in sorted(ages)[: len(ages) - MOST_FILES]:
            file.unlink(missing_ok=True)


def _checked(payload: Any, graph: TrainingGraph) -> CachedPlan:
    if payload["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {payload['format_version']!r}")
    if type(payload["measured"]) is not bool:
        raise ValueError(f"measured is {payload['measured']!r}")
    costs = [(time_ns, workspace) for time_ns, workspace in payload["costs"]]
    if any(type(n) is not int or n < 0 for pair in costs for n in pair):
        raise ValueError("a cost is not two integers of 0 or more")
    plan = Plan.from_json(payload["plan"], where="its text")
    plan.check_graph(graph)
    costed = graph.with_costs(costs)
    plan.schedule.validate(costed)
    peak = simulate(costed, plan.schedule).peak_bytes
    if peak != plan.peak_bytes or peak > plan.budget_bytes:
        raise ValueError(
            f"its schedule peaks at {peak} bytes; it says {plan.peak_bytes} within a budget of "
            f"{plan.budget_bytes}"
        )
    return CachedPlan(plan, costs, payload["measured"])
