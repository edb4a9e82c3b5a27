"""What code outside of the planned graphs holds, found when the backward pass of a step begins.

All that autograd saved hangs on its graph then: of code before the first planned graph, between two
of them, and after the last one (a loss). Only that graph is read; nothing is kept alive.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge
from torch.multiprocessing.reductions import StorageWeakRef

from memfit.planners.several.runs import EagerPart, GraphRun
from memfit.pytorch.compat.autograd import is_compiled, number_of, saved_by
from memfit.pytorch.compiled.eager_backward import Edge, backward_bytes, edges_of
from memfit.pytorch.compiled.storages import storages

__all__ = ["EagerParts", "eager_parts"]


@dataclass(frozen=True)
class EagerParts:
    """What ran outside of the graphs of a step.

    Attributes:
        parts: before each run, and after the last one; None where nothing did.
        references: keep the identities of storages from being given to others.
    """

    parts: Sequence[EagerPart | None] = ()
    references: Sequence[StorageWeakRef] = ()


def _edge(root: Any) -> Edge | None:
    if isinstance(root, GradientEdge):
        return root.node, root.output_nr
    return (root.grad_fn, root.output_nr) if root.grad_fn is not None else None


def _reached(edges: Iterable[Edge]) -> list[Any]:
    """All nodes behind some edges, leaves left aside."""
    todo, seen = [node for node, _ in edges], set()
    while todo:
        node = todo.pop()
        if node not in seen and not hasattr(node, "variable"):
            seen.add(node)
            todo.extend(after for after, _ in edges_of(node))
    return list(seen)


def eager_parts(
    roots: Sequence[Any],
    numbers: Sequence[int],
    known: Sequence[GraphRun],
    device: torch.device,
    *,
    accumulate: bool = False,
) -> EagerParts | None:
    """The code outside of the graphs of a step.

    Args:
        roots: tensors that the backward pass begins at, or their edges.
        numbers: of the autograd nodes of the runs, in order.
        known: the runs; their memory is not the code's.
        device: whose memory counts.
        accumulate: gradients of parameters are there from the start.

    Returns:
        None where the backward pass reaches no run of the step, though there are some.
    """
    begun = [edge for edge in map(_edge, roots) if edge is not None]
    nodes = _reached(begun)
    own = {node for node in nodes if is_compiled(node) and number_of(node) in numbers}
    if numbers and not own:
        return None
    place = {n: -1 if n in own else bisect_left(numbers, number_of(n)) for n in nodes}
    entering: dict[int, set[Edge]] = defaultdict(set)
    for edge in begun:
        entering[place.get(edge[0], -1)].add(edge)
    for node in nodes:
        for edge in edges_of(node):
            if place.get(edge[0], -1) != place[node]:
                entering[place.get(edge[0], -1)].add(edge)
    there = {i for run in known for i in (*run.inputs, *run.outputs)}
    parts: list[EagerPart | None] = []
    references: list[StorageWeakRef] = []
    for n in range(len(numbers) + 1):
        inside = [node for node in nodes if place[node] == n]
        part, held = _part(inside, entering[n], there, device, accumulate) if inside else (None, [])
        parts.append(part)
        references += held
        there |= part.run.inputs.keys() if part is not None else set()
    return EagerParts(parts, references)


def _part(
    nodes: Sequence[Any],
    entering: Set[Edge],
    known: Set[int],
    device: torch.device,
    accumulate: bool,
) -> tuple[EagerPart, list[StorageWeakRef]]:
    """The code that made some nodes, and what keeps the identities of its memory."""
    leaves = [after.variable for node in nodes for after, _ in edges_of(node) if _is_leaf(after)]
    trained = storages(x for x in leaves if x.device == device)
    tensors = {node: [x for x in saved_by(node) if x.device == device] for node in nodes}
    saved = {node: storages(held) for node, held in tensors.items()}
    references = [s for held in (*saved.values(), trained) for s, _ in held]
    found = {s.cdata: size for held in saved.values() for s, size in held}
    lasting = {s.cdata: size for s, size in trained}
    # Data that the code was given, or made: the caller may hold it.
    data = {s.cdata for held in tensors.values() for s, _ in storages(filter(_is_data, held))}
    stays = known | data | lasting.keys()
    more = backward_bytes(
        nodes,
        entering,
        {node: {s.cdata for s, _ in held} for node, held in saved.items()},
        {i: size for i, size in found.items() if i not in stays},
    )
    gradients, accumulated = ({}, lasting) if accumulate else (lasting, {})
    run = GraphRun({**found, **lasting}, frozenset(lasting), {}, gradients, accumulated)
    return EagerPart(run, more), references


def _is_data(tensor: torch.Tensor) -> bool:
    return tensor.is_leaf and not tensor.requires_grad


def _is_leaf(node: Any) -> bool:
    return isinstance(getattr(node, "variable", None), torch.Tensor)
