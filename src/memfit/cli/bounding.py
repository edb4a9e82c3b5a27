"""`--bound`: the gap between a plan and what no schedule can do better."""

from __future__ import annotations

import argparse

from memfit.bounds import DEFAULT_TIME_LIMIT_S, LowerBound, highs_version
from memfit.cli.arguments import seconds
from memfit.errors import UsageError
from memfit.units import format_time_ns

__all__ = ["add_bound_arguments", "bound_limit", "bound_rows"]


def add_bound_arguments(parser: argparse.ArgumentParser) -> None:
    """`--bound` and `--bound-time-limit`."""
    parser.add_argument(
        "--bound",
        action="store_true",
        help="also find a lower bound on the overhead of every schedule that runs the ops in the "
        "plan's order, and print the gap (needs memfit[ilp])",
    )
    parser.add_argument(
        "--bound-time-limit",
        type=seconds,
        metavar="SECONDS",
        help=f"take the best bound after this long (default: {DEFAULT_TIME_LIMIT_S:g})",
    )


def bound_limit(args: argparse.Namespace) -> float | None:
    """The time limit of the bound; None where none is asked for. Before anything takes long.

    Raises:
        UsageError: a limit without `--bound`; highspy is not installed.
    """
    given: float | None = args.bound_time_limit
    if not args.bound:
        if given is not None:
            raise UsageError(f"--bound-time-limit {given:g} has no bound to limit; give --bound")
        return None
    highs_version()
    return DEFAULT_TIME_LIMIT_S if given is None else given


def bound_rows(bound: LowerBound, overhead: int) -> list[tuple[str, str]]:
    """Rows for a table: the bound, the gap of a plan's overhead, and how the bound was found."""

    def cost(amount: int) -> str:
        return str(amount) if bound.cost_unit == "unit" else format_time_ns(amount)

    assert bound.overhead is not None, "a plan fits, so something fits"
    proven = " (the optimum)" if bound.proven_optimum else ""
    above = overhead - bound.overhead
    return [
        (
            "lower bound",
            f"{cost(bound.overhead)}, {bound.overhead_percent:.1f}% of a forward pass{proven}",
        ),
        ("gap", f"{cost(above)}, {bound.gap_percent(overhead):.1f}% of a forward pass"),
        ("bound found by", f"{bound.method}, {bound.seconds:.2f} s"),
    ]
