"""What two runs of a program left behind, compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from programs.trial import Seen

__all__ = ["Difference", "compare", "same_bits"]


@dataclass(frozen=True)
class Difference:
    """The largest difference between two runs.

    Attributes:
        where: step and name.
        relative: against the largest entry; infinite where one is missing or of another shape or
            type.
        bits: names of all that differ.
    """

    where: str
    relative: float
    bits: tuple[str, ...]


def same_bits(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether both are None, or of one type and shape with equal entries (NaN is equal to NaN)."""
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(torch.equal(a, b)) or bool(((a == b) | (a.isnan() & b.isnan())).all())


SMALL = 1e-3  # of the largest entry of all; below it, entries may be what cancellation left
LEAST = 1e-5


def _floor(seen: dict[str, torch.Tensor | None], gradients: bool) -> float:
    """The least size that differences in gradients, or in other values, are held against."""
    largest = 0.0
    for name, t in seen.items():
        if t is None or name.startswith("gradient") != gradients:
            continue
        if t.is_floating_point() and t.numel():
            largest = max(largest, float(t.abs().nan_to_num(0, 0, 0).max()))
    return max(SMALL * largest, LEAST)


def _relative(a: torch.Tensor | None, b: torch.Tensor | None, floor: float) -> float:
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return float("inf")
    if not (a.is_floating_point() or a.is_complex()):
        return float("inf")
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = (t.to(wide).nan_to_num(0.0, 0.0, 0.0) for t in (a, b))
    return float((a - b).abs().max()) / max(float(b.abs().max()), floor)


def compare(ours: Seen, theirs: Seen) -> Difference | None:
    """The largest difference of `ours` from `theirs`; None where all bits are the same."""
    worst, where, names = 0.0, "", []
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        floors = {gradients: _floor(other, gradients) for gradients in (False, True)}
        for name in other:
            a, b = mine.get(name), other[name]
            if same_bits(a, b):
                continue
            names.append(f"step {i + 1}, {name}")
            relative = _relative(a, b, floors[name.startswith("gradient")])
            if not relative < worst:
                worst, where = relative, names[-1]
    return Difference(where, worst, tuple(names)) if names else None
