"""Ops that are traced only, and the plain functions that run in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

__all__ = ["known_cost", "run_instead", "runs_as", "runs_once"]


@dataclass(frozen=True)
class _Instead:
    first: Callable[..., Any]
    again: Callable[..., Any]
    once: bool
    cost: Callable[[fx.Node], tuple[int, int]]


_functions: dict[Any, _Instead] = {}


def run_instead(
    op: Any,
    first: Callable[..., Any],
    again: Callable[..., Any],
    cost: Callable[[fx.Node], tuple[int, int]],
    *,
    once: bool = False,
) -> None:
    """Let a function run in the place of an op.

    Args:
        op: the op.
        first: takes its arguments the first time that it runs in a step.
        again: takes them when a plan computes it again.
        cost: time in ns and workspace in bytes of a node that calls the op.
        once: the op has effects, and must not run again.
    """
    _functions[op] = _Instead(first, again, once, cost)


def runs_as(op: Any, again: bool = False) -> Any:
    """What to call for an op: itself, where no function runs in its place."""
    found = _functions.get(op)
    if found is None:
        return op
    return found.again if again else found.first


def runs_once(op: Any) -> bool:
    """Whether an op must not run again."""
    found = _functions.get(op)
    return found is not None and found.once


def known_cost(node: fx.Node) -> tuple[int, int] | None:
    """Time in ns and workspace in bytes of a node whose op is one of these; else None."""
    found = _functions.get(node.target) if node.op == "call_function" else None
    return found.cost(node) if found is not None else None
