"""Results of ops in the layout that tracing was told, copied where a kernel gives another one.

What was traced goes on from a result's sizes, strides and offset: autograd chooses a view by them,
and `as_strided` reads by them, right or wrong. PyTorch's own ops were surveyed (`surveyed.txt`,
written by benchmarks/ops/run.py): those in the list return what `kernel_layouts` and PyTorch's
fake tensors say. Every other op is looked at when it has run, custom ops (`torch.library`), whose
fake function is the user's, among them.

The memory of a copy is measured where an op can be run on made-up data. Where it cannot, or nothing
is measured, an op is believed until it has run once: then a step that was planned without the copy
is planned anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import fx

from memfit.errors import ExecutionError
from memfit.pytorch.compat.eager import tree_flatten, tree_leaves, tree_unflatten
from memfit.pytorch.layouts import strides as S

__all__ = [
    "Form",
    "believed",
    "copied_bytes",
    "forms_of",
    "is_surveyed",
    "lies",
    "run_as_traced",
    "surveyed",
]

logger = logging.getLogger("memfit")

Form = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, int, int]
"""Sizes, strides and type of a tensor, its first element, and the bytes of its storage."""

_OWN = frozenset({"memfit", "prim", "inductor", "_c10d_functional", "c10d"})
_LIST = Path(__file__).with_name("surveyed.txt")
_lying: set[str] = set()  # ops whose results have been copied in this process


@cache
def surveyed() -> frozenset[str]:
    """The overloads of PyTorch's ops whose results are laid out as tracing is told."""
    lines = _LIST.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


@cache
def is_surveyed(target: Any) -> bool:
    """Whether what a call returns need not be looked at."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace in _OWN:
        return True
    return str(target) in surveyed()


def forms_of(node: fx.Node) -> tuple[Form | None, ...]:
    """What a node's outputs have to look like: empty where that need not be looked at.

    Args:
        node: a node of the joint graph.

    Returns:
        For each output its form; None for what is no tensor, lies in an argument's memory, or has
        sizes that are known when it runs only.
    """
    if node.op != "call_function" or is_surveyed(node.target):
        return ()
    given = {_storage(t) for n in node.all_input_nodes for t in _dense(n.meta.get("val"))}
    found = tuple(_form(leaf, given) for leaf in tree_leaves(node.meta.get("val")))
    return found if any(found) else ()


def lies(op: Any) -> bool:
    """Whether results of an op have been copied in this process."""
    return str(op) in _lying


def believed(nodes: Iterable[fx.Node]) -> set[Any]:
    """Ops among some nodes that are looked at, and for all that is known return what is told."""
    return {n.target for n in nodes if not lies(n.target) and forms_of(n)}


def _form(value: Any, given: set[int]) -> Form | None:
    dense = _dense(value)
    if not dense or _storage(value) in given:
        return None
    numbers = (*value.shape, *value.stride(), value.storage_offset())
    size = value.untyped_storage().nbytes()
    if not all(isinstance(n, int) for n in (*numbers, size)):
        return None
    return tuple(value.shape), tuple(value.stride()), value.dtype, value.storage_offset(), size


def _dense(value: Any) -> list[torch.Tensor]:
    return [
        t for t in tree_leaves(value) if isinstance(t, torch.Tensor) and t.layout is torch.strided
    ]


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def copied_bytes(forms: Sequence[Form | None]) -> int:
    """The most that copies take beside the results: these are freed one by one."""
    return max((form[4] for form in forms if form is not None), default=0)


def run_as_traced(
    op: Callable[..., Any], forms: Sequence[Form | None], /, *args: Any, **kwargs: Any
) -> Any:
    """Run an op and give its results the forms that tracing was told.

    Raises:
        ExecutionError: sizes or types are others, or no copy can have the strides.
    """
    leaves, tree = tree_flatten(op(*args, **kwargs))
    if len(leaves) != len(forms):
        raise ExecutionError(_lie(op, f"{len(leaves)} results", str(len(forms))))
    given = {_storage(t) for t in _dense((args, kwargs))}
    for place, form in enumerate(forms):
        if form is not None:
            leaves[place] = _as_told(op, leaves[place], form, given)
    return tree_unflatten(leaves, tree)


def _as_told(op: Any, made: torch.Tensor, form: Form, given: set[int]) -> torch.Tensor:
    shape, strides, dtype, offset, size_bytes = form
    if tuple(made.shape) != shape or made.dtype != dtype:
        if _is_aten(op):
            return made  # goes on as in eager
        raise ExecutionError(_lie(op, _text(tuple(made.shape), made.dtype), _text(shape, dtype)))
    alike = made.storage_offset() == offset and all(
        n == 1 or a == b for n, a, b in zip(shape, made.stride(), strides, strict=True)
    )
    own = made.untyped_storage().nbytes() <= size_bytes and _storage(made) not in given
    if made.numel() == 0 or (alike and own):
        return made
    found = f"strides {list(made.stride())} and offset {made.storage_offset()}"
    lie = _lie(op, found, f"{list(strides)} and {offset}")
    if any(n > 1 and step == 0 for n, step in zip(shape, strides, strict=True)):
        raise ExecutionError(f"{lie}; no copy has elements that share memory")
    if not lies(op):
        _lying.add(str(op))
        logger.warning("%s; its results are copied, which takes time and memory", lie)
    if offset == 0 and S.is_dense((shape, strides)):
        copy = torch.empty_strided(shape, strides, dtype=dtype, device=made.device)
    else:
        memory = torch.empty(size_bytes // dtype.itemsize, dtype=dtype, device=made.device)
        copy = memory.as_strided(shape, strides, offset)
    return copy.copy_(made)


def _is_aten(op: Any) -> bool:
    return getattr(op, "namespace", "") == "aten"


def _lie(op: Any, found: str, told: str) -> str:
    """What an op returns and what was told of it; with the remedy, where that is the user's."""
    remedy = "" if _is_aten(op) else "; correct what torch.library.register_fake says of it"
    return f"{op} returns {found}, where tracing was told {told}{remedy}"


def _text(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
