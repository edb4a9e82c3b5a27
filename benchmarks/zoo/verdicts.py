"""What the zoo makes of two trainings of the same model. Data in, data out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["BITWISE", "ROUNDING", "SUMMATION", "WRONG", "Comparison", "Seen", "compare"]

BITWISE, SUMMATION, WRONG = "bitwise", "order of summation", "wrong"

ROUNDING = 1e-4
"""Largest difference, relative to the largest entry of the same tensor, that rounding explains."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Seen:
    """What one step computed.

    Attributes:
        loss: the loss.
        gradients: of each parameter that has one, after the backward pass.
        buffers: after the step.
    """

    loss: torch.Tensor
    gradients: Tensors
    buffers: Tensors


@dataclass(frozen=True)
class Comparison:
    """How far a training is from another one.

    Attributes:
        verdict: `bitwise`, `order of summation` or `wrong`.
        difference: the largest difference of an entry, relative to the largest of its tensor.
        where: the step and the tensor where it occurs; empty where there is none.
    """

    verdict: str
    difference: float
    where: str


def compare(fitted: Sequence[Seen], plain: Sequence[Seen]) -> Comparison:
    """Compare losses, gradients and buffers of each step with those of plain PyTorch."""
    found = [
        (gap, f"step {number}, {name}")
        for number, (ours, theirs) in enumerate(zip(fitted, plain, strict=True), 1)
        for name, gap in _gaps(ours, theirs)
    ]
    difference, where = max(found, key=lambda one: one[0])
    same = all(_same(*pair) for pair in zip(fitted, plain, strict=True))
    if same:
        return Comparison(BITWISE, 0.0, "")
    verdict = SUMMATION if difference <= ROUNDING else WRONG
    return Comparison(verdict, difference, where)


def _gaps(ours: Seen, theirs: Seen) -> Iterator[tuple[str, float]]:
    yield "the loss", relative(ours.loss, theirs.loss)
    for kind, found, expected in (
        ("gradient", ours.gradients, theirs.gradients),
        ("buffer", ours.buffers, theirs.buffers),
    ):
        for name in found.keys() ^ expected.keys():
            yield f"{kind} {name}, which only one of them has", math.inf
        for name in found.keys() & expected.keys():
            yield f"{kind} {name}", relative(found[name], expected[name])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of an entry, over the largest entry expected."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return math.inf
    if torch.equal(found, expected) or not expected.numel():
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    ours, theirs = found.to(wide), expected.to(wide)
    gap, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if math.isnan(gap):
        return 0.0 if _equal_with_nan(found, expected) else math.inf
    return gap / scale if scale else gap


def _same(ours: Seen, theirs: Seen) -> bool:
    pairs = [(ours.loss, theirs.loss)]
    for found, expected in ((ours.gradients, theirs.gradients), (ours.buffers, theirs.buffers)):
        if found.keys() != expected.keys():
            return False
        pairs += [(found[name], expected[name]) for name in expected]
    return all(torch.equal(a, b) or _equal_with_nan(a, b) for a, b in pairs)


def _equal_with_nan(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())
