"""The programs that the default tests run."""

from __future__ import annotations

from functools import cache

from programs.check import Verdict, check
from programs.generate import generate
from programs.program import source

__all__ = ["PER_FILE", "verdict_of"]

PER_FILE = 120
MOST = 6  # statements


@cache
def verdict_of(seed: int) -> tuple[Verdict, str]:
    """What comes of a seed's program, and its source."""
    program = generate(seed, MOST)
    if program is None:
        return Verdict("unfit", "no program"), ""
    verdict = check(program, measured=seed % 3 == 0, fresh=seed % 7 == 0)
    return verdict, source(program)
