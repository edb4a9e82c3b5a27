"""Forward ops that only keep the books, and the functions that they belong to.

A captured step holds ops whose results nothing in the step reads, such as the updates of batch
norm's running statistics, which stand at the end of the forward pass. Taken as nodes, they would
keep the whole batch norm in the boundary of every lower set: its statistics are still to be read.
In the graphs of Kusumoto et al. 2019 they are no nodes; a function does its own bookkeeping. So
planners that reason about nodes see *functions*: an op with its bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memfit._core.problem import bits
from memfit.graph.training_graph import TrainingGraph

__all__ = ["Functions", "functions_of"]


@dataclass(frozen=True)
class Functions:
    """The forward ops of a graph, each with its bookkeeping.

    Attributes:
        heads: for each function the id of its op, ascending.
        masks: for each function its forward ops, the head and its bookkeeping, as a bitmask.
        predecessors: for each function those that it reads from, ascending.
    """

    heads: tuple[int, ...]
    masks: tuple[int, ...]
    predecessors: tuple[tuple[int, ...], ...]

    @property
    def trivial(self) -> bool:
        """Whether every op is a function."""
        return all(not mask & (mask - 1) for mask in self.masks)

    def widened(self, mask: int) -> int:
        """A lower set of functions, as a bitmask, as the lower set of their ops."""
        whole = 0
        for f in bits(mask):
            whole |= self.masks[f]
        return whole

    def added(self, weights: Sequence[int]) -> list[int]:
        """For each function the sum of its ops' weights."""
        if self.trivial:
            return list(weights)
        return [sum(weights[v] for v in bits(mask)) for mask in self.masks]


def functions_of(graph: TrainingGraph) -> Functions:
    """The functions of a graph.

    An op keeps the books of an op h if it must not run again, only ops that do so read what it
    makes, no output of the pass is among it, and of all that it reads h is what comes last: h
    depends on the rest. An op that reads nothing of the forward pass goes with the one before it.
    """
    count = graph.forward_count
    bookkeeping = _candidates(graph)
    ancestors: list[int] = []
    for v, before in enumerate(graph.forward_predecessors):
        mask = 1 << v
        for p in before:
            mask |= ancestors[p]
        ancestors.append(mask)
    host = list(range(count))
    for v in range(count):
        if bookkeeping[v]:
            host[v] = _host(graph.forward_predecessors[v], host, ancestors, v)
    heads = tuple(v for v in range(count) if host[v] == v)
    number = {v: f for f, v in enumerate(heads)}
    masks = [0] * len(heads)
    for v in range(count):
        masks[number[host[v]]] |= 1 << v
    predecessors = tuple(
        tuple(sorted({number[host[p]] for p in graph.forward_predecessors[v]})) for v in heads
    )
    return Functions(heads, tuple(masks), predecessors)


def _candidates(graph: TrainingGraph) -> list[bool]:
    """Which forward ops make only what ops of their like read."""
    count = graph.forward_count
    found = [False] * count
    for v in range(count - 1, -1, -1):
        op = graph.ops[v]
        found[v] = not op.recomputable and all(
            not graph.values[s].is_output
            and all(reader < count and found[reader] for reader in graph.consumers[s])
            for s in op.outputs
        )
    return found


def _host(before: Sequence[int], host: Sequence[int], ancestors: Sequence[int], v: int) -> int:
    """The op whose books an op keeps; itself if there is none."""
    if not before:
        return host[v - 1] if v else v
    hosts = {host[p] for p in before}
    last = max(hosts)
    return last if all(ancestors[last] >> h & 1 for h in hosts) else v
