"""The two ops that stand for a call in a graph, and what runs in their place.

`memfit::opaque_forward` returns the module's outputs and a handle of what autograd keeps, which
counts as so many bytes; `memfit::opaque_backward` reads operands, outputs and handle. They are
traced only: lowered graphs call plain functions (`run_instead`), in which autograd can record.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from memfit.pytorch.opaque.call import call_numbered
from memfit.pytorch.python_ops import run_instead

__all__ = ["BACKWARD_OPS", "FORWARD_OPS", "OPAQUE_OPS", "apply"]

Tensors = Sequence[torch.Tensor]
MaybeTensors = Sequence[torch.Tensor | None]

_LIBRARY = torch.library.Library("memfit", "FRAGMENT")
_SUFFIXES = {
    (False, False): "",
    (True, False): "_random",
    (False, True): "_once",
    (True, True): "_random_once",
}


def _forward(operands: Tensors, wanted: Sequence[int], key: int) -> list[torch.Tensor]:
    return call_numbered(key).forward(operands, wanted)


def _forward_again(operands: Tensors, wanted: Sequence[int], key: int) -> list[torch.Tensor]:
    return call_numbered(key).forward(operands, wanted, again=True)


def _backward(
    operands: MaybeTensors,
    outputs: MaybeTensors,
    handle: torch.Tensor,
    given: MaybeTensors,
    wanted: Sequence[int],
    key: int,
) -> list[torch.Tensor]:
    return call_numbered(key).backward(operands, outputs, handle, given, wanted)


def _cost(phase: int, node: fx.Node) -> tuple[int, int]:
    call = call_numbered(int(node.args[-1]))
    return call.taken.times_ns[phase], call.taken.workspace_bytes[phase]


def _fake_forward(operands: Tensors, wanted: Sequence[int], key: int) -> list[torch.Tensor]:
    call = call_numbered(key)
    handle = torch.empty(max(1, call.taken.saved_bytes), dtype=torch.uint8, device="cpu")
    return [*(form.empty() for form in call.outputs), handle]


def _fake_backward(
    operands: MaybeTensors,
    outputs: MaybeTensors,
    handle: torch.Tensor,
    given: MaybeTensors,
    wanted: Sequence[int],
    key: int,
) -> list[torch.Tensor]:
    call = call_numbered(key)
    forms = [call.operands[i] for i in wanted]
    return [torch.empty(form.shape, dtype=form.dtype, device=form.device) for form in forms]


def _define(suffix: str, **options: Any) -> None:
    forward, backward = f"opaque_forward{suffix}", f"opaque_backward{suffix}"
    _LIBRARY.define(f"{forward}(Tensor[] operands, int[] wanted, int key) -> Tensor[]", **options)
    _LIBRARY.define(
        f"{backward}(Tensor?[] operands, Tensor?[] outputs, Tensor handle, Tensor?[] given, "
        "int[] wanted, int key) -> Tensor[]",
    )
    torch.library.register_fake(f"memfit::{forward}", _fake_forward, lib=_LIBRARY)
    torch.library.register_fake(f"memfit::{backward}", _fake_backward, lib=_LIBRARY)


def _ops(kind: str) -> dict[tuple[bool, bool], torch._ops.OpOverload]:
    return {
        flags: getattr(torch.ops.memfit, f"opaque_{kind}{suffix}").default
        for flags, suffix in _SUFFIXES.items()
    }


for (_draws, _), _suffix in _SUFFIXES.items():
    _define(_suffix, tags=(torch.Tag.nondeterministic_seeded,) if _draws else ())

_FORWARD, _BACKWARD = _ops("forward"), _ops("backward")
FORWARD_OPS = frozenset(_FORWARD.values())
BACKWARD_OPS = frozenset(_BACKWARD.values())
OPAQUE_OPS = FORWARD_OPS | BACKWARD_OPS
for (_, _once), _op in _FORWARD.items():
    run_instead(_op, _forward, _forward_again, partial(_cost, 0), once=_once)
for _op in _BACKWARD.values():
    run_instead(_op, _backward, _backward, partial(_cost, 1))


class _Opaque(torch.autograd.Function):
    """The call as one op of autograd; it is only ever traced."""

    @staticmethod
    def forward(ctx: Any, key: int, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        call = call_numbered(key)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        made = _FORWARD[call.draws, call.once](list(operands), wanted, key)
        outputs, handle = made[:-1], made[-1]
        ctx.key, ctx.wanted = key, wanted
        ctx.read = [sorted(places) for places in call.taken.read]
        ctx.counts = len(operands), len(outputs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(x for i, x in enumerate(outputs) if i not in call.with_gradient)
        )
        read, again = call.taken.read
        saved = [x for i, x in enumerate(operands) if i in read]
        ctx.save_for_backward(*saved, *(x for i, x in enumerate(outputs) if i in again), handle)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        call = call_numbered(ctx.key)
        *saved, handle = ctx.saved_tensors
        operands: list[torch.Tensor | None] = [None] * ctx.counts[0]
        outputs: list[torch.Tensor | None] = [None] * ctx.counts[1]
        places = [(operands, i) for i in ctx.read[0]] + [(outputs, i) for i in ctx.read[1]]
        for (held, i), x in zip(places, saved, strict=True):
            held[i] = x
        run = _BACKWARD[call.draws, call.once]
        made = run(operands, outputs, handle, list(given), ctx.wanted, ctx.key)
        gradients: list[torch.Tensor | None] = [None] * ctx.counts[0]
        for i, gradient in zip(ctx.wanted, made, strict=True):
            gradients[i] = gradient
        return (None, *gradients)


def apply(key: int, operands: Tensors) -> tuple[torch.Tensor, ...]:
    """The outputs of a call, in a graph that is being traced."""
    made: tuple[torch.Tensor, ...] = _Opaque.apply(key, *operands)
    return made
