"""Planners: one algorithm a file, one signature, `plan(graph, budget_bytes, options) -> Plan`."""

from __future__ import annotations

from memfit.planners.base import (
    Planner,
    PlannerOptions,
    Progress,
    Searched,
    TradeOff,
    TradeOffPoint,
)
from memfit.planners.registry import DEFAULT_PLANNER, PLANNERS, get_curve, get_planner, search_all

__all__ = [
    "DEFAULT_PLANNER",
    "PLANNERS",
    "Planner",
    "PlannerOptions",
    "Progress",
    "Searched",
    "TradeOff",
    "TradeOffPoint",
    "get_curve",
    "get_planner",
    "search_all",
]
