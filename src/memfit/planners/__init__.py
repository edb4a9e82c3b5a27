"""Planners: one algorithm a file, one signature, `plan(graph, budget_bytes, options) -> Plan`."""

from __future__ import annotations

from memfit.planners.base import Planner, PlannerOptions, Progress, TradeOff, TradeOffPoint
from memfit.planners.registry import DEFAULT_PLANNER, PLANNERS, get_curve, get_planner

__all__ = [
    "DEFAULT_PLANNER",
    "PLANNERS",
    "Planner",
    "PlannerOptions",
    "Progress",
    "TradeOff",
    "TradeOffPoint",
    "get_curve",
    "get_planner",
]
