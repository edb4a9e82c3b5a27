"""Amounts as people read them: bytes, times, costs."""

from __future__ import annotations

__all__ = ["format_bytes", "format_cost", "format_time_ns"]


def format_bytes(size_bytes: int) -> str:
    """Bytes for people, in binary units: `3.40 GiB`, `12.0 MiB`, `17 B`."""
    sign, size = ("-", -size_bytes) if size_bytes < 0 else ("", size_bytes)
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            value = size / scale
            return f"{sign}{value:.{2 if value < 10 else 1}f} {unit}"
    return f"{sign}{size} B"


def format_time_ns(time_ns: int) -> str:
    """Nanoseconds for people: `1.25 s`, `3.1 ms`, `17 us`."""
    for unit, scale in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if abs(time_ns) >= scale:
            value = time_ns / scale
            return f"{value:.{2 if value < 10 else 1}f} {unit}"
    return f"{time_ns} ns"


def format_cost(amount: int, unit: str) -> str:
    """An amount of a graph's cost unit for people: times where the unit is `ns`."""
    return format_time_ns(amount) if unit == "ns" else f"{amount} {unit}s"
