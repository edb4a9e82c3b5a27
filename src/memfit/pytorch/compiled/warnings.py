"""Warnings of steps of several graphs that do not keep to their budget."""

from __future__ import annotations

import warnings

from memfit.units import format_bytes

__all__ = [
    "BudgetWarning",
    "warn_first_step",
    "warn_of_eager",
    "warn_of_gradients",
    "warn_over_budget",
]


class BudgetWarning(UserWarning):
    """A budget that cannot be met by a step of several graphs, or that does not apply."""


def warn_over_budget(
    budget_bytes: int, need_bytes: int, held_bytes: int, graphs: int, line: str | None
) -> None:
    """Warn of a step whose graphs do not fit into the budget, with the graph break to blame.

    Args:
        budget_bytes: the budget of the step.
        need_bytes: the memory of the step where it is largest.
        held_bytes: how much of it other graphs hold than the one that runs then.
        graphs: number of graphs that ran so far.
        line: source line of the break, None where no graph ends in one.
    """
    where = f"the graph break at {line} splits the step into" if line else "the step is run as"
    remedy = "remove the break or raise" if line else "compile it as one graph or raise"
    warnings.warn(
        f"budget {format_bytes(budget_bytes)} cannot be met: {where} {graphs} graphs, one of which "
        f"takes {format_bytes(need_bytes - held_bytes)} while the others hold "
        f"{format_bytes(held_bytes)}; {remedy} the budget to {need_bytes} bytes",
        BudgetWarning,
        stacklevel=2,
    )


def warn_first_step(budget_bytes: int, need_bytes: int, line: str | None) -> None:
    """Warn of a first step over the budget, whose graphs are planned as they are reached.

    Args:
        budget_bytes: the budget of the step.
        need_bytes: the memory that it takes.
        line: source line of a graph break, None where no graph ends in one.
    """
    where = f" by the graph break at {line}" if line else ""
    warnings.warn(
        f"the first step takes {need_bytes} bytes, over its budget of {budget_bytes} bytes: it is "
        f"split{where}, and its graphs are planned together from the second step on",
        BudgetWarning,
        stacklevel=2,
    )


def warn_of_gradients(budget_bytes: int, need_bytes: int, remedy: str) -> None:
    """Warn of gradients that are accumulated and were not planned for.

    Args:
        budget_bytes: the budget of the step.
        need_bytes: the memory that it takes beside them.
        remedy: how to plan for them; empty where there is no way.
    """
    warnings.warn(
        "gradients of an earlier backward pass are still there; beside them the step takes "
        f"{need_bytes} bytes, over its budget of {budget_bytes} bytes; {remedy}call "
        "zero_grad(set_to_none=True) before the forward pass, or raise the budget",
        BudgetWarning,
        stacklevel=2,
    )


def warn_of_eager(
    budget_bytes: int, need_bytes: int, held_bytes: int, where: str, remedy: str
) -> None:
    """Warn of a step over the budget because of code that runs outside of its planned graphs.

    Args:
        budget_bytes: the budget of the step.
        need_bytes: the memory of the step where it is largest.
        held_bytes: what that code holds for its backward pass, parameters left aside.
        where: where it is, as the end of a sentence.
        remedy: what else to do than to raise the budget; empty where nothing is known.
    """
    warnings.warn(
        f"budget {format_bytes(budget_bytes)} cannot be met: of the {format_bytes(need_bytes)} "
        f"that a step takes, {format_bytes(held_bytes)} are kept by code outside of planned "
        f"graphs, {where}; {remedy}raise the budget to {need_bytes} bytes",
        BudgetWarning,
        stacklevel=2,
    )
