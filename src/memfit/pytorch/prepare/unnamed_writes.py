"""PyTorch's ops that write to an argument which their schema does not mark as written.

AOTAutograd makes writes into values, so that each happens once and in its place, whatever is
computed again and in which order. It knows of them from schemas: what these ops write to running
statistics was dropped, or seen too early by what reads them. Here each gets a schema that says it;
the kernel is the same.

`native_batch_norm` and what calls it write in the same way; those PyTorch itself exchanges while it
traces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = ["OPS", "name_writes"]

OPS = (
    "batch_norm_update_stats",
    "batch_norm_gather_stats",
    "batch_norm_gather_stats_with_counts",
)
"""Names in `torch.ops.aten`; each writes to `running_mean` and `running_var`."""

_LIBRARY = torch.library.Library("memfit", "FRAGMENT")


def _define(name: str) -> Any:
    op = getattr(torch.ops.aten, name).default
    schema = str(op._schema).removeprefix("aten::")
    for i, argument in enumerate(("running_mean", "running_var")):
        schema = schema.replace(f"Tensor? {argument}", f"Tensor({'ab'[i]}!)? {argument}")
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, op, "CompositeExplicitAutograd")
    torch.library.register_fake(f"memfit::{name}", op, lib=_LIBRARY)
    return getattr(torch.ops.memfit, name).default


_NAMED = {name: _define(name) for name in OPS}


def name_writes(module: fx.GraphModule) -> None:
    """Exchange such ops of a Dynamo graph, and of graphs inside, for ops that name their writes.

    Args:
        module: the graph; changed in place.
    """
    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        nodes = [n for n in part.graph.nodes if _name(n) in _NAMED]
        for node in nodes:
            node.target = _NAMED[_name(node)]
        if nodes:
            part.recompile()


def _name(node: fx.Node) -> str:
    if node.op != "call_function":
        return ""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).removeprefix("aten::")
    known = isinstance(target, torch._ops.OpOverloadPacket) or target is getattr(
        torch, getattr(target, "__name__", ""), None
    )
    return str(target.__name__) if known else ""
