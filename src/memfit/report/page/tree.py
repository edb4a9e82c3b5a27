"""How a report page folds a graph: by module path, else by stage; equal blocks are one group."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from memfit.graph.training_graph import Op, TrainingGraph

__all__ = ["Group", "fold", "module_path", "module_paths", "tree_json"]

MOST_CHILDREN = 24
"""A group with more children than this is cut into runs, so that unfolding shows what fits."""

_LOOKAHEAD = 8


@dataclass
class Group:
    """A folded part of the graph.

    Attributes:
        name: for people.
        children: groups and ops, by their first op.
        repeats: how many equal blocks it stands for, 1 for any other group.
    """

    name: str
    children: list[Group | int] = field(default_factory=list)
    repeats: int = 1

    @property
    def first(self) -> int:
        """Its first op."""
        return min(self.ops())

    def ops(self) -> list[int]:
        """Its ops, ascending."""
        found: list[int] = []
        for child in self.children:
            found.extend([child] if isinstance(child, int) else child.ops())
        return sorted(found)


def module_path(op: Op) -> str:
    """The module that an op belongs to; empty if unknown."""
    return op.source.module if op.source else ""


def module_paths(graph: TrainingGraph) -> list[str]:
    """Module path of each forward op; that of the backward op that differentiates it, where none.

    An op without either belongs to the module of what it reads, as the updates of batch norm's
    running statistics do; empty where that is unknown, too.
    """
    paths = [module_path(op) for op in graph.forward_ops]
    for op in graph.backward_ops:
        if op.forward_op is not None and not paths[op.forward_op]:
            paths[op.forward_op] = module_path(op)
    for op_id, before in enumerate(graph.forward_predecessors):
        known = [paths[p] for p in before if paths[p]]
        if not paths[op_id] and known:
            paths[op_id] = known[-1]
    return paths


def fold(graph: TrainingGraph, stages: Sequence[int]) -> Group:
    """The graph as nested groups: by module path, or by stage where most ops have no module."""
    count = graph.forward_count
    paths = module_paths(graph)
    named = sum(bool(path) for path in paths)
    keys = [path.split(".") if path else [] for path in paths]
    if 2 * named < count:
        several = len(set(stages)) > 1
        keys = [[f"stage {stage + 1}"] if several else [] for stage in stages]
    root = Group(graph.name)
    groups: dict[tuple[str, ...], Group] = {(): root}
    for op, key in enumerate(keys):
        parent = root
        for depth in range(1, len(key) + 1):
            path = tuple(key[:depth])
            if path not in groups:
                groups[path] = Group(".".join(path))
                parent.children.append(groups[path])
            parent = groups[path]
        parent.children.append(op)
    _simplify(root)
    sizes = [sum(graph.values[v].size_bytes for v in op.outputs) for op in graph.forward_ops]
    kinds = [(op.target, size) for op, size in zip(graph.forward_ops, sizes, strict=True)]
    _join_equal(root, lambda op: kinds[op])
    _cut(root)
    return root


def _simplify(group: Group) -> None:
    """Drop groups around a single child."""
    for position, child in enumerate(group.children):
        if isinstance(child, Group):
            _simplify(child)
            if len(child.children) == 1:
                group.children[position] = child.children[0]


def _join_equal(group: Group, kind: Callable[[int], object]) -> object:
    """Put runs of equal neighbouring groups into one group each; returns what the group is."""
    shapes = [
        _join_equal(child, kind) if isinstance(child, Group) else kind(child)
        for child in group.children
    ]
    joined: list[Group | int] = []
    at = 0
    while at < len(shapes):
        period, times = _repetition(group.children, shapes, at)
        block = group.children[at : at + period * times]
        if times > 1:
            first, last = block[0], block[-1]
            ends = [c.name if isinstance(c, Group) else "" for c in (first, last)]
            joined.append(Group(_span(*ends), block, times))
        else:
            joined.extend(block)
        at += period * times
    if len(joined) > 1:
        group.children = joined
    elif joined and isinstance(joined[0], Group) and joined[0].repeats > 1:
        group.name, group.repeats = joined[0].name, joined[0].repeats
    # The digest of a digest: whole nested tuples would be compared again at every level.
    return hash(tuple(shapes))


def _repetition(
    children: Sequence[Group | int], shapes: Sequence[object], at: int
) -> tuple[int, int]:
    """Length and number of the equal blocks that start at `at`; blocks hold a group or more."""
    for period in range(1, _LOOKAHEAD + 1):
        block = shapes[at : at + period]
        if len(block) < period or not any(isinstance(c, Group) for c in children[at : at + period]):
            continue
        times = 1
        while shapes[at + times * period : at + (times + 1) * period] == block:
            times += 1
        if times > 1:
            return period, times
    return 1, 1


def _span(first: str, last: str) -> str:
    """`layer1.1` and `layer1.3` as `layer1.1 … 3`."""
    if not first or not last or first == last:
        return first or last or "ops"
    head, _, tail = last.rpartition(".")
    if head and first.startswith(f"{head}."):
        return f"{first} … {tail}"
    a, _, b = last.rpartition(" ")
    return f"{first} … {b}" if a and first.startswith(f"{a} ") else f"{first} … {last}"


def _cut(group: Group) -> None:
    """Cut what has too many children into runs of about equal length."""
    for child in group.children:
        if isinstance(child, Group):
            _cut(child)
    group.children.sort(key=lambda c: c if isinstance(c, int) else c.first)
    while len(group.children) > MOST_CHILDREN:
        count = len(group.children)
        pieces = max(2, min(MOST_CHILDREN, -(-count // MOST_CHILDREN)))
        edges = [count * i // pieces for i in range(pieces + 1)]
        runs = [group.children[a:b] for a, b in itertools.pairwise(edges)]
        # Of equal blocks, a run of whole ones is some of them.
        period = count // group.repeats if group.repeats > 1 else 0
        group.children = [
            Group(
                _run_name(run),
                run,
                len(run) // period if period and len(run) % period == 0 else 1,
            )
            for run in runs
        ]
        for child in group.children:
            if isinstance(child, Group) and len(child.children) > MOST_CHILDREN:
                _cut(child)


def _run_name(run: Sequence[Group | int]) -> str:
    ends = [run[0], run[-1]]
    if all(isinstance(end, Group) for end in ends):
        first, last = (
            end.name.split(" … ")[i]
            for i, end in zip((0, -1), ends, strict=True)
            if isinstance(end, Group)
        )
        return _span(first, last)
    numbers = [end.first if isinstance(end, Group) else end for end in ends]
    return f"ops {numbers[0] + 1} … {numbers[1] + 1}"


def tree_json(child: Group | int) -> Any:
    """A group as `[name, repeats, children]`, an op as its id."""
    if isinstance(child, int):
        return child
    return [child.name, child.repeats, [tree_json(c) for c in child.children]]
