"""memfit: fit a PyTorch training step into a memory budget given in bytes.

`fit`, `plan` and `verify` need PyTorch, which is imported when one of them is first used.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memfit.bounds.lower_bound import LowerBound
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
    from memfit.plan import Plan
    from memfit.planners.base import TradeOff
    from memfit.pytorch.api import fit, plan, trade_off
    from memfit.pytorch.bound import bound
    from memfit.pytorch.effects import allow_recompute
    from memfit.pytorch.fit_blocks import fit_blocks
    from memfit.pytorch.verify import verify

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
    "build_info",
    "fit",
    "fit_blocks",
    "plan",
    "trade_off",
    "verify",
]

__version__ = "0.1.0"

_HOME = {
    "LowerBound": "memfit.bounds.lower_bound",
    "Plan": "memfit.plan",
    "TradeOff": "memfit.planners.base",
    "allow_recompute": "memfit.pytorch.effects",
    "bound": "memfit.pytorch.bound",
    "fit": "memfit.pytorch.api",
    "fit_blocks": "memfit.pytorch.fit_blocks",
    "plan": "memfit.pytorch.api",
    "trade_off": "memfit.pytorch.api",
    "verify": "memfit.pytorch.verify",
}


def __getattr__(name: str) -> Any:
    if name == "integrations":
        return importlib.import_module("memfit.integrations")
    if name not in __all__:
        raise AttributeError(f"module 'memfit' has no attribute {name!r}")
    home = importlib.import_module(_HOME.get(name, "memfit.errors"))
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps the function `memfit.plan` in place when the module `memfit.plan` is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "plan" and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


if "torch" in sys.modules:  # lets `torch.compile(backend="memfit")` find it in a checkout, too
    from memfit.errors import UnsupportedTorchError as _Unsupported

    with contextlib.suppress(_Unsupported):  # plans of graph files need no torch; the rest says so
        importlib.import_module("memfit.pytorch.compile_backend")


def build_info() -> dict[str, str | None]:
    """Which core memfit runs on.

    Returns:
        `version`; `core`, which is `native` or `python`; and `compiler`, the one that built the
        native core, or None.
    """
    from memfit import _core

    return {
        "version": __version__,
        "core": _core.core_name(),
        "compiler": _core.core_compiler(),
    }
