"""Recurrent layers that run as one op, and what unrolling them would gain.

`nn.LSTM`, `nn.GRU` and `nn.RNN` are traced step by step (`memfit.pytorch.compat.whole_ops`). An op
of cuDNN, MIOpen or oneDNN for a whole layer is met where a model calls it by itself. Its *reserve*
holds what its backward pass needs of every time step; a plan can keep it or run the whole layer
again, nothing between. A loop of cells could keep a state every few steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import fx

from memfit.graph.plan import Plan
from memfit.pytorch.capture.joint import tensors
from memfit.strategies.loops import LoopPlan
from memfit.units import format_bytes

__all__ = ["opaque_notes", "with_opaque_notes"]

_OUTPUTS = 3  # output, h_n, c_n; what follows is kept for the backward pass
_NAMES = ("_cudnn_rnn", "miopen_rnn", "mkldnn_rnn_layer")


def opaque_notes(nodes: Iterable[fx.Node]) -> list[str]:
    """For each recurrent layer that runs as one op: what it keeps, and what cells would keep.

    Args:
        nodes: nodes of a captured graph.
    """
    return [note for node in dict.fromkeys(nodes) if (note := _note(node)) is not None]


def with_opaque_notes(plan: Plan, nodes: Iterable[fx.Node]) -> Plan:
    """The plan of a captured graph, its notes with those on such layers."""
    notes = opaque_notes(nodes)
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def _note(node: fx.Node) -> str | None:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    if str(target._schema.name).removeprefix("aten::") not in _NAMES:
        return None
    made = tensors(node)
    if len(made) <= _OUTPUTS or not isinstance(node.args[0], fx.Node):
        return None
    given = node.args[0].meta["val"]
    if given.ndim != 3 or int(given.shape[0]) < 2:
        return None
    # Batch first or not, the states have the shape (layers, batch, width).
    states = made[1 : 1 + _OUTPUTS - 1]
    batch = int(states[0].shape[1])
    steps = max(2, int(given.shape[0]) * int(given.shape[1]) // max(1, batch))
    reserve = sum(int(t.numel()) * t.dtype.itemsize for t in made[_OUTPUTS:])
    state = sum(int(t.numel()) * t.dtype.itemsize for t in states)
    record = -(-reserve // steps)
    root = math.isqrt(steps - 1) + 1
    few = math.ceil(math.log2(steps))
    nested = LoopPlan(steps, few, 1)
    return (
        f"{node.name} runs {steps} steps as one op and keeps {format_bytes(reserve)} for its "
        f"backward pass, all or nothing; as a loop of cells (estimated) it could keep "
        f"{format_bytes(root * (state + record))} with every step run twice, or "
        f"{format_bytes(few * state + record)} with {nested.forward_steps / steps:.1f} forward "
        "runs of each step: write it with nn.LSTMCell or nn.GRUCell in torch's scan"
    )
