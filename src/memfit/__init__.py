"""memfit: fit a PyTorch training step into a memory budget given in bytes.

`fit`, `plan` and `verify` need PyTorch, which is imported when one of them is first used.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

from memfit._version import __version__
from memfit.errors import (
    CaptureError,
    ExecutionError,
    GraphError,
    GraphFileError,
    InfeasibleBudgetError,
    InvalidBudgetError,
    MemfitError,
    PlanMismatchError,
    TooManyLowerSetsError,
    UnknownPlannerError,
    UnsupportedTorchError,
    UsageError,
)

if TYPE_CHECKING:
    from memfit._core import build_info
    from memfit.bounds.lower_bound import LowerBound
    from memfit.graph.plan import Plan
    from memfit.planners.base import TradeOff
    from memfit.pytorch.api.bound import bound
    from memfit.pytorch.api.entry import fit, plan, trade_off
    from memfit.pytorch.api.fit_blocks import fit_blocks
    from memfit.pytorch.api.verify import verify
    from memfit.pytorch.branches.bound_size import bound_size
    from memfit.pytorch.capture.effects import allow_recompute

__all__ = [
    "CaptureError",
    "ExecutionError",
    "GraphError",
    "GraphFileError",
    "InfeasibleBudgetError",
    "InvalidBudgetError",
    "LowerBound",
    "MemfitError",
    "Plan",
    "PlanMismatchError",
    "TooManyLowerSetsError",
    "TradeOff",
    "UnknownPlannerError",
    "UnsupportedTorchError",
    "UsageError",
    "__version__",
    "allow_recompute",
    "bound",
    "bound_size",
    "build_info",
    "fit",
    "fit_blocks",
    "plan",
    "trade_off",
    "verify",
]

_HOME = {
    "LowerBound": "memfit.bounds.lower_bound",
    "Plan": "memfit.graph.plan",
    "TradeOff": "memfit.planners.base",
    "build_info": "memfit._core",
    "allow_recompute": "memfit.pytorch.capture.effects",
    "bound_size": "memfit.pytorch.branches.bound_size",
    "bound": "memfit.pytorch.api.bound",
    "fit": "memfit.pytorch.api.entry",
    "fit_blocks": "memfit.pytorch.api.fit_blocks",
    "plan": "memfit.pytorch.api.entry",
    "trade_off": "memfit.pytorch.api.entry",
    "verify": "memfit.pytorch.api.verify",
}


def __getattr__(name: str) -> Any:
    if name == "integrations":
        return importlib.import_module("memfit.integrations")
    if name not in _HOME:
        raise AttributeError(f"module 'memfit' has no attribute {name!r}")
    home = importlib.import_module(_HOME[name])
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "torch" in sys.modules:  # lets `torch.compile(backend="memfit")` find it in a checkout, too
    with contextlib.suppress(UnsupportedTorchError):  # graph files need no torch; the rest says so
        importlib.import_module("memfit.pytorch.compiled.compile_backend")
