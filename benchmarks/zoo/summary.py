"""Rows of the zoo counted, ordered and told in a line. Data in, data out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.lib.harness import MIB

__all__ = ["Counts", "causes", "counts", "line_of", "ordered"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Counts:
    """How many architectures.

    Attributes:
        all: that plain PyTorch trains.
        share: trained at the share of the plain peak.
        trained: trained at that or at the smallest feasible budget.
        held: trained, with a measured peak within the budget.
        bitwise: trained, all bits plain PyTorch's.
        summation: trained, with differences that the order of a sum explains.
        wrong: trained, with larger ones.
    """

    all: int
    share: int
    trained: int
    held: int
    bitwise: int
    summation: int
    wrong: int


def counts(rows: Iterable[Row]) -> Counts:
    """Count what rows say."""
    runs = [row for row in rows if row["outcome"] not in ("not installed", "plain fails")]
    trained = [row for row in runs if row["outcome"] == "trained"]

    def having(name: str, value: Any) -> int:
        return sum(row[name] == value for row in trained)

    return Counts(
        all=len(runs),
        share=having("budget", "60%"),
        trained=len(trained),
        held=having("held", True),
        bitwise=having("verdict", "bitwise"),
        summation=having("verdict", "order of summation"),
        wrong=having("verdict", "wrong"),
    )


def causes(rows: Mapping[str, Row]) -> dict[str, list[str]]:
    """Architectures that did not train, by cause; the most frequent cause first."""
    found: dict[str, list[str]] = {}
    for name, row in rows.items():
        if row["outcome"] != "trained":
            found.setdefault(cause_of(row), []).append(name)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def cause_of(row: Row) -> str:
    """Outcome, class of the error and its line, without what differs from model to model."""
    line = re.sub(r"\b\d[\d.,]*\b", "N", str(row.get("line", "")))
    error = str(row.get("error", ""))
    return ": ".join(part for part in (row["outcome"], error, line) if part)


def ordered(rows: Mapping[str, Row], names: Sequence[str]) -> dict[str, Row]:
    """Rows in the order of the names; those of no name left out."""
    return {name: rows[name] for name in names if name in rows}


def line_of(name: str, row: Row) -> str:
    """A row in one line."""
    if row["outcome"] != "trained":
        return f"{name}: {row['outcome']} {row.get('error', '')} {str(row.get('line', ''))[:160]}"
    times = row["fitted_ms"] / row["plain_ms"]
    return (
        f"{name}: {row['budget']}, {row['verdict']} ({row['difference']:.0e}), "
        f"{'held' if row['held'] else 'NOT HELD'}, "
        f"{row['plain_peak_bytes'] / MIB:.1f} -> {row['fitted_peak_bytes'] / MIB:.1f} MiB, "
        f"time {times:.2f}, planned {1 + row['overhead_planned']:.2f}, {row['rung']}, "
        f"first step {row['first_step_s']:.0f} s"
    )
