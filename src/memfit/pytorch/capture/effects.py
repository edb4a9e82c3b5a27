"""Which ops may do more than compute their outputs, and therefore run exactly once."""

from __future__ import annotations

import operator
from typing import Any

import torch

from memfit.errors import UsageError
from memfit.pytorch.compat.eager import is_marked_effectful
from memfit.pytorch.python_ops import runs_as, runs_once

__all__ = [
    "allow_recompute",
    "draws_from_own_generator",
    "has_unnamed_effect",
    "is_harmless",
    "may_be_measured",
    "may_have_effect",
]

# PyTorch's own ops say in their schema what they write; so do those of torchvision. Others may
# count calls, log, communicate or change state that no schema mentions.
_PURE_NAMESPACES = frozenset({"aten", "prims", "prim", "inductor", "torchvision", "memfit"})
_allowed: set[str] = set()


def allow_recompute(op: Any) -> None:
    """Promise that a custom op has no effect beyond its outputs, so that plans may run it again.

    Without the promise a custom op (`torch.library`) runs exactly once in a step, and what the
    backward pass needs of its outputs is kept. An op that draws from PyTorch's default generators
    may be allowed: they are set back for its replay. An op whose schema says that it writes to an
    input is never run again, whatever is promised.

    Args:
        op: what `torch.library.custom_op` returned, an op such as `torch.ops.mylib.attention`, or
            its name, `"mylib::attention"`.

    Raises:
        UsageError: it is none of these.
    """
    name = _name_of(op)
    if name is None:
        raise UsageError(
            f"allow_recompute takes a custom op or its name, not {op!r}; give the op that "
            'torch.library.custom_op returned, or "namespace::name"'
        )
    _allowed.add(name)


def _name_of(op: Any) -> str | None:
    if isinstance(op, torch._ops.OpOverload):
        return str(op._schema.name)
    found = op if isinstance(op, str) else getattr(op, "_qualname", None)  # also overload packets
    if found is None:
        found = getattr(op, "_qualified_op_name", None)
    return found if isinstance(found, str) and found.count("::") == 1 else None


def _is_known(op: torch._ops.OpOverload) -> bool:
    return op.namespace in _PURE_NAMESPACES or str(op._schema.name) in _allowed


def may_have_effect(target: Any) -> bool:
    """Whether running an op again could do anything but give the same values.

    Higher-order ops are taken to: what runs inside them is not looked into.
    """
    if target is operator.getitem:
        return False
    if not isinstance(target, torch._ops.OpOverload):
        return True
    if runs_once(target):
        return True
    return bool(target._schema.is_mutable) or not _is_known(target) or is_marked_effectful(target)


def has_unnamed_effect(target: Any) -> bool:
    """Whether an op may do what its schema does not say: log, count, draw elsewhere, end a step."""
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    return runs_once(target) or not _is_known(target)


def is_harmless(target: Any) -> bool:
    """Whether an op writes nothing that the caller sees, and may run again although it is marked.

    Checks and assertions are marked to have an effect; others than PyTorch's return nothing.
    """
    return (
        isinstance(target, torch._ops.OpOverload)
        and (target.namespace == "aten" or not target._schema.returns)
        and not target._schema.is_mutable
    )


def may_be_measured(target: Any) -> bool:
    """Whether an op can be run on made-up data without anybody noticing.

    Not custom ops and collectives: their effects would happen, and other processes would not take
    part. Not assertions either: on a GPU one that fails ends the process's use of it.
    """
    return (
        isinstance(target, torch._ops.OpOverload)
        and _is_known(target)
        and not is_marked_effectful(target)
        and not str(target._schema.name).startswith("memfit::loop_")  # 100,000 steps, perhaps
        and runs_as(target) is target
    )


def draws_from_own_generator(node: torch.fx.Node) -> bool:
    """Whether a random op was given a generator, whose state is not that which replays set."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if node.kwargs.get("generator") is not None:
        return True
    names = [argument.name for argument in target._schema.arguments]
    if "generator" not in names:
        return False
    place = names.index("generator")
    return place < len(node.args) and node.args[place] is not None
