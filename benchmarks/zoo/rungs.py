"""On which rung of docs/any-model.md a model stands, from what memfit says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ONE_GRAPH", "RUNGS", "Rung", "Stands", "stands_on"]


@dataclass(frozen=True)
class Rung:
    """A rung below the first.

    Attributes:
        name: as shown.
        told: a pattern that a line of the log or a note of the plan has on this rung; its group
            `what`, if it has one, is the module that the line is about.
    """

    name: str
    told: re.Pattern[str]


ONE_GRAPH = "one graph"

# The lowest first: a model stands on the first of these that is told. A new rung is a line here.
RUNGS = (
    Rung("plain PyTorch", re.compile(r"runs as plain PyTorch, without a plan")),
    Rung("opaque modules, in pieces", re.compile(r"blocks inside are computed again")),
    Rung(
        "opaque modules",
        re.compile(r"^(?P<what>\S.*?) cannot be traced and runs as one op|^cannot be traced"),
    ),
    Rung("several graphs", re.compile(r"^a step of \d+ graphs")),
    Rung("one graph, branches as they went", re.compile(r"planned as they went in one step")),
    Rung("one graph, sizes on data", re.compile(r"have sizes that depend on data")),
)


@dataclass(frozen=True)
class Stands:
    """Where a model stands.

    Attributes:
        rung: the name of the rung.
        modules: the modules that the rung is about, as memfit names them.
    """

    rung: str
    modules: tuple[str, ...]


def stands_on(log: Sequence[str], notes: Sequence[str]) -> Stands:
    """The rung of a model, from the lines of memfit's log and the notes of its plan."""
    lines = [*notes, *log]
    told = [rung for rung in RUNGS if any(rung.told.search(line) for line in lines)]
    found = (rung.told.search(line) for rung in told for line in lines)
    named = (match.groupdict().get("what") for match in found if match)
    modules = tuple(dict.fromkeys(name for name in named if name))
    return Stands(told[0].name if told else ONE_GRAPH, modules)
