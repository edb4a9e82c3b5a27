"""AOTAutograd's private descriptions of what a graph takes."""

from __future__ import annotations

from torch import fx
from torch._functorch._aot_autograd.descriptors import (
    BackwardTokenAOTInput,
    ForwardTokenAOTInput,
    PlainAOTInput,
    SyntheticBaseAOTInput,
    ViewBaseAOTInput,
)
from torch._higher_order_ops.effects import with_effects

__all__ = ["input_position", "is_effect_token", "with_effects"]
"""`with_effects(token, op, ...)` runs an op in its place among those with effects."""


def is_effect_token(placeholder: fx.Node) -> bool:
    """Whether an input is a token, which AOTAutograd puts in to keep ops with effects in order."""
    tokens = (ForwardTokenAOTInput, BackwardTokenAOTInput)
    return isinstance(placeholder.meta.get("desc"), tokens)


def input_position(placeholder: fx.Node) -> int | None:
    """Which input of the graph that AOTAutograd was given a placeholder stands for.

    Of inputs that share memory and are written to, AOTAutograd makes one, their base: it stands for
    the first of them. None where the placeholder is none of these.
    """
    found = placeholder.meta.get("desc")
    while isinstance(found, (ViewBaseAOTInput, SyntheticBaseAOTInput)):
        found = found.base_of
    return found.idx if isinstance(found, PlainAOTInput) else None
