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

__all__ = ["first_run_outputs", "is_batch_norm", "run_again"]

aten = torch.ops.aten
_BATCH_NORM = aten._native_batch_norm_legit_functional.default
_STATISTICS = (3, 4)


def is_batch_norm(node: fx.Node) -> bool:
    """Whether the op reads buffers that are overwritten, and may run again all the same."""
    return node.target is _BATCH_NORM


def first_run_outputs(node: fx.Node) -> tuple[int, ...]:
    """Positions of the outputs that running the op again does not give."""
    return _STATISTICS if node.target is _BATCH_NORM and node.args[5] else ()


def run_again(graph: fx.Graph, node: fx.Node, arg: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """Add a recomputation of an op that has `first_run_outputs`."""
    x, weight, bias, _, _, training, momentum, eps = node.args
    args: Any = fx.node.map_arg((x, weight, bias, training, momentum, eps), arg)
    made = graph.call_function(aten._native_batch_norm_legit.no_stats, args)
    made.meta = {**node.meta, "val": node.meta["val"][: _STATISTICS[0]]}
    return made
