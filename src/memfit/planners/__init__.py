"""Planners: one algorithm a file, one signature, `plan(graph, budget_bytes, options) -> Plan`."""

from __future__ import annotations

from memfit.planners.base import DEFAULT_MAX_LOWER_SETS, Planner, PlannerOptions, Progress
from memfit.planners.registry import DEFAULT_PLANNER, PLANNERS, get_planner

__all__ = [
    "DEFAULT_MAX_LOWER_SETS",
    "DEFAULT_PLANNER",
    "PLANNERS",
    "Planner",
    "PlannerOptions",
    "Progress",
    "get_planner",
]
