"""Gradients that plain PyTorch leaves None: what only outputs reach that the loss leaves out.

AOTAutograd's node is given zeros for the gradient of such an output. Where a parameter's gradient
is made of these zeros alone, the backward graph returns None instead.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from memfit.pytorch.capture import joint as J
from memfit.pytorch.compat.autograd import compiled_nodes, notes_of_running_node
from memfit.pytorch.compat.descriptions import output_of_tangent

__all__ = [
    "ABSENT",
    "is_missing",
    "leave_out",
    "missing_now",
    "note_missing",
    "outputs_behind",
    "while_missing",
]

ABSENT = "memfit_absent"
"""Attribute of a gradient of zeros that stands for one that does not exist."""

_NOTE = "memfit_missing"
_stage = threading.local()


def outputs_behind(joint: fx.GraphModule, forward_outputs: int) -> dict[fx.Node, tuple[int, ...]]:
    """For each primal that has a gradient, the outputs of the step through which it is reached.

    Args:
        joint: the graph.
        forward_outputs: number of outputs of its forward pass.

    Returns:
        Positions among the outputs, tokens left aside. Empty where at most one output has a
        gradient: then there is nothing to leave out.
    """
    (end,) = joint.graph.find_nodes(op="output")
    described = list(end.meta.get("desc") or ())[:forward_outputs]
    tokens = len(J.forward_inputs(joint)) - len(J.primals(joint))
    behind: dict[fx.Node, frozenset[int]] = {}
    for node in joint.graph.nodes:
        output = output_of_tangent(node) if node.op == "placeholder" else None
        if output is not None and output in described:
            behind[node] = frozenset({described.index(output) - tokens})
        else:
            behind[node] = frozenset().union(*(behind[a] for a in node.all_input_nodes))
    if len(behind[end]) < 2:
        return {}
    _, gradients = J.joint_outputs(joint, forward_outputs)
    return {
        p: tuple(sorted(behind[n]))
        for p, n in zip(J.primals(joint), gradients, strict=False)
        if isinstance(n, fx.Node)
    }


def is_missing(outputs: Collection[int]) -> bool:
    """Whether the backward pass that runs has no gradient of any of these outputs."""
    return bool(outputs) and missing_now().issuperset(outputs)


def missing_now() -> frozenset[int]:
    """Outputs without a gradient in the backward pass that runs in this thread."""
    given: frozenset[int] | None = getattr(_stage, "missing", None)
    return notes_of_running_node().get(_NOTE, frozenset()) if given is None else given


@contextmanager
def while_missing(outputs: frozenset[int]) -> Iterator[None]:
    """While on, these outputs have no gradient: for a part of the backward pass that runs apart."""
    _stage.missing = outputs
    try:
        yield
    finally:
        _stage.missing = None


def note_missing(results: Sequence[Any], given: Sequence[Any]) -> None:
    """Have the backward pass of a step note which of its outputs have no gradient.

    Args:
        results: what the step returned.
        given: what it was given; tensors handed through are left alone.
    """
    known = {id(x) for x in given}
    for node in compiled_nodes([t for t in results if id(t) not in known]):
        node.register_prehook(_note)


def _note(gradients: Sequence[Any]) -> None:
    missing = frozenset(i for i, gradient in enumerate(gradients) if gradient is None)
    notes_of_running_node()[_NOTE] = missing


def _unless_missing(gradient: torch.Tensor | None, *outputs: int) -> torch.Tensor | None:
    return None if is_missing(outputs) else gradient


def leave_out(
    backward: fx.GraphModule, joint: fx.GraphModule, behind: Mapping[fx.Node, tuple[int, ...]]
) -> None:
    """Let a backward graph return None for gradients of zeros.

    Args:
        backward: the lowered backward graph; changed in place.
        joint: the joint graph it was lowered from.
        behind: see `outputs_behind`.
    """
    (end,) = backward.graph.find_nodes(op="output")
    results = list(end.args[0])
    for i, primal in enumerate(J.primals(joint)):
        if behind.get(primal) and isinstance(results[i], fx.Node):
            with backward.graph.inserting_before(end):
                made = backward.graph.call_function(_unless_missing, (results[i], *behind[primal]))
            made.meta = {k: v for k, v in results[i].meta.items() if k in ("val", "tensor_meta")}
            results[i] = made
    end.args = (tuple(results),)
    backward.recompile()
