"""What a backward pass takes that autograd runs node by node, told from its nodes alone.

A node is given gradients and makes others, whose sizes it knows, and frees what it saved once it
has run. Nodes run in the reverse order of their numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from memfit.pytorch.compat.autograd import gradient_bytes, number_of

__all__ = ["Edge", "backward_bytes", "edges_of"]

Edge = tuple[Any, int]
"""A node, and which of the tensors that it made."""

# What comes out is the memory of what came in.
_HANDS_ON = re.compile(
    "Add|Alias|Clone|Permute|ReshapeAlias|Squeeze|Sum|T|Transpose|Unsqueeze|UnsafeView|View"
)
# Kernels that take no more than their results. The formulas of others hold values in between.
_ONE_KERNEL = re.compile(
    "Addmm|Baddbmm|Bmm|Convolution|Embedding|Exp|Expand|Gelu|LeakyRelu|Linear|Log|LogSoftmax|Mm|"
    "MseLoss|Mul|NativeBatchNorm|NativeDropout|NativeLayerNorm|NllLoss|Relu|Sigmoid|Silu|Softmax|"
    "Tanh|Threshold|Where"
)
_TWO_VALUES = re.compile("Pow")


def _op(node: Any) -> str:
    return re.sub(r"Backward\w*$", "", type(node).__name__)


def _between(op: str) -> int:
    """How many values of the size of its result a backward formula holds beside that."""
    return 0 if _ONE_KERNEL.fullmatch(op) else 2 if _TWO_VALUES.fullmatch(op) else 1


def edges_of(node: Any) -> list[Edge]:
    """Where the gradients go that a node makes."""
    return [(after, nr) for after, nr in node.next_functions if after is not None]


def _bytes_of(edges: Iterable[Edge]) -> dict[Edge, int]:
    return {(node, nr): dict(enumerate(gradient_bytes(node))).get(nr, 0) for node, nr in edges}


def backward_bytes(
    nodes: Sequence[Any],
    entering: Collection[Edge],
    saved: Mapping[Any, Collection[int]],
    sizes: Mapping[int, int],
) -> int:
    """The most that a backward pass takes beside all that was saved for it.

    Args:
        nodes: the nodes that run.
        entering: where gradients come from elsewhere.
        saved: for each node, which memory it keeps.
        sizes: of that memory, as far as it is freed when the nodes that keep it have run.
    """
    users = Counter(i for node in nodes for i in saved[node])
    waiting = _bytes_of(entering)
    taken = most = sum(waiting.values())
    for node in sorted(nodes, key=number_of, reverse=True):
        given = [edge for edge in waiting if edge[0] is node]
        got = sum(waiting.pop(edge) for edge in given)
        made = _bytes_of(edges_of(node))
        op = _op(node)
        if _HANDS_ON.fullmatch(op) and made:
            kept_longest = min(made, key=lambda edge: number_of(edge[0]))
            made = {edge: got if edge == kept_longest else 0 for edge in made}
            taken -= got
            got = 0
        else:
            between = _between(op) * max(made.values(), default=0)
            most = max(most, taken + sum(made.values()) + between)
        for edge, size in made.items():  # one that is there already is added to
            if edge not in waiting:
                waiting[edge] = size
                taken += size
        most = max(most, taken)
        taken -= got
        users.subtract(saved[node])
        taken -= sum(sizes.get(i, 0) for i in saved[node] if not users[i])
    return max(0, most)
