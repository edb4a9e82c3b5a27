"""What people write for amounts of memory: budgets and sizes in bytes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Budget", "parse_budget", "parse_bytes"]

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_NUMBER = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*|%)\s*$")
_MAX_BYTES = 2**62
_LONGEST = 60  # characters of a size


def _shown(value: object) -> str:
    """A value as text of one line, cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to write it
        return f"an int of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _split(text: str) -> tuple[Fraction, str] | None:
    match = _NUMBER.match(text) if len(text) <= _LONGEST else None
    if match is None:
        return None
    return Fraction(match.group(1).replace("_", "")), match.group(2).lower()


def parse_bytes(text: str | int) -> int:
    """Bytes written as an int or as text with a unit: `"3GiB"` (2**30), `"800MB"` (10**6), `"512"`.

    Fractions are allowed and rounded down: `"1.5GiB"`.

    Raises:
        InvalidBudgetError: the text is no size, or is not between 1 and 2**62 bytes.
    """
    from memfit.errors import InvalidBudgetError

    remedy = 'write bytes with a unit, such as "3GiB", "800MB" or 3221225472'
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise InvalidBudgetError(f"size {_shown(text)} is no number of bytes; {remedy}")
    if isinstance(text, int):
        value = text
    else:
        parts = _split(text)
        if parts is None or parts[1] not in _UNITS:
            raise InvalidBudgetError(f"size {_shown(text)} cannot be read; {remedy}")
        value = math.floor(parts[0] * _UNITS[parts[1]])
    if not 0 < value < _MAX_BYTES:
        raise InvalidBudgetError(f"size {_shown(text)} is not between 1 and 2**62 bytes; {remedy}")
    return value


@dataclass(frozen=True, slots=True)
class Budget:
    """A memory budget as the user wrote it; exactly one field is set.

    Attributes:
        absolute_bytes: peak of the whole step, in bytes.
        share: share of the plain step's peak, 0 < share.
        auto: take what the device has free.
    """

    absolute_bytes: int | None = None
    share: Fraction | None = None
    auto: bool = False

    def resolve(self, *, plain_peak_bytes: int, free_bytes: int) -> int:
        """The budget in bytes, given the plain step's peak and what the device has free."""
        if self.absolute_bytes is not None:
            return self.absolute_bytes
        if self.share is not None:
            return math.floor(self.share * plain_peak_bytes)
        return free_bytes


def parse_budget(text: str | int | Budget) -> Budget:
    """A budget: bytes (`parse_bytes`), a share of the plain step's peak (`"60%"`), or `"auto"`.

    Raises:
        InvalidBudgetError: the text is none of these.
    """
    from memfit.errors import InvalidBudgetError

    if isinstance(text, Budget):
        return text
    if isinstance(text, float):
        raise InvalidBudgetError(
            f"budget {_shown(text)} is a float; write bytes as an int, or text: a share of the "
            'plain step\'s peak such as "60%", or "3GiB"'
        )
    if isinstance(text, str):
        if text.strip().lower() == "auto":
            return Budget(auto=True)
        parts = _split(text)
        if parts is not None and parts[1] == "%":
            if not 0 < parts[0] <= 1000:
                raise InvalidBudgetError(
                    f"budget {_shown(text)} is not between 0% and 1000%; "
                    'write a share of the plain step\'s peak such as "60%"'
                )
            return Budget(share=parts[0] / 100)
        if parts is not None and parts[1] == "" and 0 < parts[0] < 1:
            raise InvalidBudgetError(
                f"budget {_shown(text)} is less than a byte; write a share of the plain step's "
                f'peak with a percent sign, "{float(parts[0] * 100):g}%", or bytes with a unit, '
                '"3GiB"'
            )
        if parts is None or parts[1] not in _UNITS:
            raise InvalidBudgetError(
                f'budget {_shown(text)} cannot be read; write bytes ("3GiB", "800MB", 3221225472), '
                'a share of the plain step\'s peak ("60%") or "auto"'
            )
    return Budget(absolute_bytes=parse_bytes(text))
