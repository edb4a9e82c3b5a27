"""Planners by name. A new planner is one file and one line here."""

from __future__ import annotations

import importlib
from typing import cast

from memfit.errors import UnknownPlannerError
from memfit.planners.base import Planner

__all__ = ["DEFAULT_PLANNER", "PLANNERS", "get_planner"]

DEFAULT_PLANNER = "liveness"
"""What the name `auto` stands for."""

PLANNERS: dict[str, str] = {
    "liveness": "memfit.planners.liveness_dp",
    "exact": "memfit.planners.exact_dp",
    "approximate": "memfit.planners.approximate_dp",
    "chen": "memfit.planners.chen",
    "store-all": "memfit.planners.store_all",
}
"""Modules by planner name; each has a function `plan`, imported when first asked for."""


def get_planner(name: str) -> Planner:
    """The planner of that name; `auto` is the default one.

    Raises:
        UnknownPlannerError: there is none; lists those that there are.
    """
    module = PLANNERS.get(DEFAULT_PLANNER if name == "auto" else name)
    if module is None:
        raise UnknownPlannerError(name, ("auto", *PLANNERS))
    return cast(Planner, importlib.import_module(module).plan)
