"""A backward graph cut into pieces, each of which ends where parameter gradients are final.

The order of computations stays that of the graph: the pieces run one after the other and hand over
what is still alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import fx

from memfit.pytorch.capture import joint as J
from memfit.pytorch.compat.distributed import boxed

__all__ = ["Piece", "piece_bytes", "run_piece", "split_backward"]

LARGEST_SHARE = 64
LEAST_BYTES = 2**20


@dataclass(frozen=True)
class Piece:
    """A stretch of the backward graph.

    Attributes:
        run: takes the list of the values in `reads` and returns the gradients, then `writes`.
        reads: names of the values that it takes over.
        last: those of `reads` that no later piece needs.
        gradients: positions, among the backward graph's outputs, of the gradients that are final
            at its end.
        writes: names of the values that it leaves for later pieces.
    """

    run: Callable[[list[Any]], Any]
    reads: tuple[str, ...]
    last: frozenset[str]
    gradients: tuple[int, ...]
    writes: tuple[str, ...]


def run_piece(piece: Piece, live: dict[str, Any]) -> list[Any]:
    """Run a piece on the values alive, which it updates; the gradients that are now final."""
    values = [live.pop(name) if name in piece.last else live[name] for name in piece.reads]
    results = piece.run(values)
    count = len(piece.gradients)
    live.update(zip(piece.writes, results[count:], strict=True))
    return list(results[:count])


def piece_bytes(sizes: Sequence[int]) -> int:
    """Least bytes of gradients in a piece: at most `LARGEST_SHARE` pieces, but none over 1 MiB.

    DistributedDataParallel's first bucket is 1 MiB, the others are larger, so that no bucket waits
    for a piece to end.
    """
    return min(LEAST_BYTES, sum(sizes) // LARGEST_SHARE)


def split_backward(
    backward: fx.GraphModule, count: int, *, least_bytes: int | None = None
) -> list[Piece]:
    """Cut a backward graph after the nodes that make gradients final.

    Args:
        backward: the graph; its outputs are the gradients, None where there is none, and tokens.
        count: how many of them are gradients.
        least_bytes: a piece goes on until its gradients have as many bytes; by default
            `piece_bytes` of all of them. With 0, every gradient is handed over before anything
            else is computed.

    Returns:
        The pieces in the order in which they run; none where the graph has no gradients.
    """
    outputs, _ = J.joint_outputs(backward, count)
    gradients = {i: n for i, n in enumerate(outputs) if isinstance(n, fx.Node)}
    if not gradients:
        return []
    order, ready = _in_order(backward.graph, list(gradients.values()))
    sizes = {i: sum(J.storages(n).values()) for i, n in gradients.items()}
    if least_bytes is None:
        least_bytes = piece_bytes(list(sizes.values()))
    stretches = _stretches(order, ready, gradients, sizes, least_bytes)
    return _pieces(backward, stretches, gradients)


def _in_order(
    graph: fx.Graph, gradients: Sequence[fx.Node]
) -> tuple[list[fx.Node], dict[fx.Node, int]]:
    """The calls of a graph in the order to run them, and where in it each gradient is final.

    A gradient that is a view (the transposed product of a linear layer's weight) stands where it
    is first read, at the graph's end; it costs nothing, so it moves to right behind its base.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    moved: dict[fx.Node, int] = {}

    def place(node: fx.Node) -> int:
        if node in moved:
            return moved[node]
        if node.op != "call_function" or not _is_view(node):
            return position[node]
        moved[node] = max(place(a) for a in node.all_input_nodes)
        return moved[node]

    for node in gradients:
        place(node)
    calls = [n for n in graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
    calls.sort(key=lambda n: (moved.get(n, position[n]), position[n]))
    return calls, {node: i for i, node in enumerate(calls)}


def _is_view(node: fx.Node) -> bool:
    found = J.storages(node)
    bases = {s for a in node.all_input_nodes for s in J.storages(a)}
    schema = getattr(node.target, "_schema", None)
    writes = schema is not None and schema.is_mutable
    return bool(found) and found.keys() <= bases and not writes


def _stretches(
    order: Sequence[fx.Node],
    ready: dict[fx.Node, int],
    gradients: dict[int, fx.Node],
    sizes: dict[int, int],
    least_bytes: int,
) -> list[tuple[list[fx.Node], list[int]]]:
    """Nodes and gradients of each piece."""
    due: dict[int, list[int]] = {}
    for i, node in gradients.items():
        due.setdefault(ready.get(node, -1), []).append(i)
    nodes: list[fx.Node] = []
    final: list[int] = due.get(-1, [])
    stretches = []
    for index, node in enumerate(order):
        nodes.append(node)
        final = [*final, *due.get(index, ())]
        if final and sum(sizes[i] for i in final) >= least_bytes:
            stretches.append((nodes, final))
            nodes, final = [], []
    if final or not stretches:
        stretches.append((nodes, final))
    elif nodes:  # effects behind the last gradient
        stretches[-1][0].extend(nodes)
    return stretches


def _pieces(
    backward: fx.GraphModule,
    stretches: Sequence[tuple[list[fx.Node], list[int]]],
    gradients: dict[int, fx.Node],
) -> list[Piece]:
    last: dict[fx.Node, int] = {}
    for index, (nodes, final) in enumerate(stretches):
        for node in nodes:
            for read in node.all_input_nodes:
                last[read] = index
        for i in final:
            last[gradients[i]] = index
    pieces = []
    for index, (nodes, final) in enumerate(stretches):
        inside = set(nodes)
        wanted = [gradients[i] for i in final]
        reads = _outside([a for n in nodes for a in n.all_input_nodes] + wanted, inside)
        writes = [n for n in nodes if last.get(n, -1) > index]
        run = boxed(_module(backward, reads, nodes, [*wanted, *writes]))
        pieces.append(
            Piece(
                run,
                tuple(n.name for n in reads),
                frozenset(n.name for n in reads if last[n] == index),
                tuple(final),
                tuple(n.name for n in writes),
            )
        )
    return pieces


def _outside(nodes: Sequence[fx.Node], inside: Set[fx.Node]) -> list[fx.Node]:
    return [n for n in dict.fromkeys(nodes) if n not in inside and n.op != "get_attr"]


def _module(
    backward: fx.GraphModule,
    reads: Sequence[fx.Node],
    nodes: Sequence[fx.Node],
    results: Sequence[fx.Node],
) -> fx.GraphModule:
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in reads:
        env[node] = graph.placeholder(node.name)
        env[node].meta = dict(node.meta)

    def find(node: fx.Node) -> fx.Node:
        if node.op == "get_attr" and node not in env:
            env[node] = graph.node_copy(node)
        return env[node]

    for node in nodes:
        env[node] = graph.node_copy(node, find)
    graph.output(tuple(find(n) for n in results))
    graph.lint()
    return fx.GraphModule(backward, graph)
