"""Writes into parts of tensors, as tracing leaves them, without the copies that nothing reads.

Eager writes x into v[0] in place. Tracing makes ops without side effects of that: `copy`, which
gives x the form of v[0], and `select_scatter`, which makes a v with it. To do so `copy` copies all
of v and overwrites v[0] in it. Here the second op reads x itself. Likewise autograd's formulas copy
a gradient into empty memory before they write into it; what writes makes a copy of its own.

A write into a part of a part is one op for each of them, and each copies all of v. Here it is one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import torch
from torch import fx

from memfit.pytorch.capture import joint as J

__all__ = ["drop_copies"]

aten = torch.ops.aten
# What a scatter op writes to, by what reads there.
_PARTS: Mapping[Any, Callable[..., torch.Tensor]] = {
    aten.select_scatter.default: aten.select.int,
    aten.slice_scatter.default: aten.slice.Tensor,
    aten.diagonal_scatter.default: aten.diagonal.default,
    aten.as_strided_scatter.default: aten.as_strided.default,
}


def drop_copies(joint: fx.GraphModule) -> None:
    """Leave out copies whose readers can read the original, and join writes into parts of parts.

    Results are the same, bit for bit.

    Args:
        joint: the graph, in which no op but the last ones writes in place; changed.
    """
    given = _storages(joint.graph.find_nodes(op="placeholder"))
    written = _storages(J.mutated_placeholders(joint))
    gone: set[int] = set()  # storages of copies that are left out, of which there may be views
    for node in list(joint.graph.nodes):
        if node.op != "call_function":
            continue
        _look_again(node, gone)
        if node.target is aten.copy.default and _read_original(node, given, written):
            gone.add(node.meta["val"].untyped_storage()._cdata)
        elif node.target in _PARTS:
            _join(node, given)
    joint.graph.eliminate_dead_code()


def _look_again(node: fx.Node, gone: Set[int]) -> None:
    """Make a view of a copy that was left out a view of the original."""
    found = J.tensors(node)
    if not any(t.untyped_storage()._cdata in gone for t in found if t.layout is torch.strided):
        return
    if node.target is operator.getitem:
        node.meta["val"] = node.args[0].meta["val"][node.args[1]]
        return
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    with found[0].fake_mode:
        node.meta["val"] = node.target(*args, **kwargs)


def _read_original(node: fx.Node, given: Set[int], written: Set[int]) -> bool:
    """Let what reads a copy read its original, where that makes no difference.

    Args:
        node: the copy.
        given: storages of what the step is given.
        written: those that it overwrites at its end; later readers need the copy.

    Returns:
        Whether everything does that, views of the copy, too.
    """
    original = node.args[1]
    made, source = node.meta["val"], _tensor(original)
    if source is None or made.dtype != source.dtype or made.device != source.device:
        return False
    memory = source.untyped_storage()._cdata
    if memory in written:
        return False
    if memory not in given and _alike(made, source) and not _handed_out(node):
        node.replace_all_uses_with(original)
        return True
    for user in list(node.users):
        if user.target not in _PARTS or user.args[0] is node or user.args[1] is not node:
            continue
        shown = original
        if source.shape != made.shape:
            with node.graph.inserting_before(node):
                shown = node.graph.call_function(aten.expand.default, (original, list(made.shape)))
            with source.fake_mode:
                shown.meta = {**node.meta, "val": source.expand(made.shape)}
        user.args = (user.args[0], shown, *user.args[2:])
    return False


def _storages(nodes: Iterable[fx.Node]) -> set[int]:
    return {t.untyped_storage()._cdata for n in nodes for t in J.tensors(n)}


def _alike(made: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether a tensor can stand for its copy: the same elements in memory that is no larger."""
    return (
        made.shape == source.shape
        and made.stride() == source.stride()
        and made.storage_offset() == source.storage_offset() == 0
        and source.untyped_storage().nbytes() <= made.untyped_storage().nbytes()
    )


def _handed_out(node: fx.Node) -> bool:
    """Whether a tensor, or what may be a view of it, is an output, or is written to another one."""
    memory = node.meta["val"].untyped_storage()._cdata
    stack = [node]
    while stack:
        for user in stack.pop().users:
            if user.op == "output" or user.target is aten.copy_.default:
                return True
            if any(t.untyped_storage()._cdata == memory for t in J.tensors(user)):
                stack.append(user)
    return False


def _join(node: fx.Node, given: Set[int]) -> None:
    """Write into a part of a part at once.

    In `outer = scatter(v, inner)` with `inner = scatter(part of v, x)`, where that is the very part
    that `outer` writes: x goes to its place in v.
    """
    whole, inner = node.args[0], node.args[1]
    if inner.op != "call_function" or inner.target not in _PARTS or len(inner.users) > 1:
        return
    base, part = _tensor(whole), _tensor(inner.args[0])
    source = _tensor(inner.args[1])
    if base is None or part is None or source is None or node.kwargs or inner.kwargs:
        return
    memory = base.untyped_storage()._cdata
    if memory != part.untyped_storage()._cdata or _shares_elements(base):
        return
    if memory in given:  # where it requires gradients, `as_strided_scatter` may refuse it
        return
    with base.fake_mode:
        written = _PARTS[node.target](base, *node.args[2:])
        place = _PARTS[inner.target](part, *inner.args[2:])
    if _form(written) != _form(part) or source.shape != place.shape:
        return
    node.target = aten.as_strided_scatter.default
    node.args = (whole, inner.args[1], *(list(x) for x in _form(place)[:2]), _form(place)[2])


def _form(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())


def _shares_elements(tensor: torch.Tensor) -> bool:
    return any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def _tensor(node: Any) -> torch.Tensor | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None
