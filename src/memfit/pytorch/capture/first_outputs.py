"""What only the first run of an op gives: batch norm's updated running statistics.

They would be moved twice if batch norm ran again as it stands. So its recomputation takes no
running statistics and gives none, and whoever reads the updated ones has to read those of the
first run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

__all__ = ["first_run_outputs", "read_again", "run_again"]

aten = torch.ops.aten
_BATCH_NORM = aten._native_batch_norm_legit_functional.default
_STATISTICS = (3, 4)


def first_run_outputs(node: fx.Node) -> tuple[int, ...]:
    """Positions of the outputs that running the op again does not give."""
    return _STATISTICS if node.target is _BATCH_NORM and node.args[5] else ()


def read_again(node: fx.Node) -> list[fx.Node]:
    """What a recomputation of the op reads; in training, batch norm needs no running statistics."""
    if first_run_outputs(node):
        return [a for a in node.args[:3] if isinstance(a, fx.Node)]
    return node.all_input_nodes


def run_again(graph: fx.Graph, node: fx.Node, arg: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """Add a recomputation of an op that has `first_run_outputs`."""
    x, weight, bias, _, _, training, momentum, eps = node.args
    args: Any = fx.node.map_arg((x, weight, bias, training, momentum, eps), arg)
    made = graph.call_function(aten._native_batch_norm_legit.no_stats, args)
    made.meta = {**node.meta, "val": node.meta["val"][: _STATISTICS[0]]}
    return made
