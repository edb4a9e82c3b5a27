"""AOTAutograd's private descriptions of what a graph takes and returns."""

from __future__ import annotations

from torch import fx
from torch._functorch._aot_autograd.descriptors import (
    BackwardTokenAOTInput,
    ForwardTokenAOTInput,
    InputMutationAOTOutput,
    PlainAOTInput,
    PlainAOTOutput,
    SyntheticBaseAOTInput,
    TangentAOTInput,
    ViewBaseAOTInput,
)
from torch._higher_order_ops.effects import with_effects

__all__ = [
    "input_position",
    "is_effect_token",
    "output_of_tangent",
    "output_position",
    "with_effects",
    "written_input",
]
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
    return _position(placeholder.meta.get("desc"))


def _position(description: object) -> int | None:
    while isinstance(description, (ViewBaseAOTInput, SyntheticBaseAOTInput)):
        description = description.base_of
    return description.idx if isinstance(description, PlainAOTInput) else None


def output_position(description: object) -> int | None:
    """Which output of the graph that AOTAutograd was given is described; None: none of these."""
    return description.idx if isinstance(description, PlainAOTOutput) else None


def written_input(description: object) -> int | None:
    """Which input an output holds the new value of, by position; None: none."""
    if not isinstance(description, InputMutationAOTOutput):
        return None
    return _position(description.mutated_input)


def output_of_tangent(placeholder: fx.Node) -> object:
    """The description of the output whose gradient a placeholder is; None: it is no gradient."""
    found = placeholder.meta.get("desc")
    return found.output if isinstance(found, TangentAOTInput) else None
