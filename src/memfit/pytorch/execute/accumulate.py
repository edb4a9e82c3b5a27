"""Gradient accumulation inside the backward graph (docs/adr/0005).

A backward graph that returns all parameter gradients at its end holds them beside the `.grad` that
autograd then adds them to. Here each gradient is added as soon as it is final, and is freed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace

import torch
from torch import fx, nn
from torch.utils.weak import WeakIdKeyDictionary

from memfit.graph.training_graph import TrainingGraph, Value, ValueKind
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.capture.joint_inputs import SPARSE
from memfit.pytorch.capture.missing import ABSENT, is_missing
from memfit.pytorch.compat.autograd import accumulating_leaf

__all__ = [
    "accumulate",
    "accumulate_when_ready",
    "gradients_held",
    "hand_out",
    "hold_gradients",
    "used_inside",
]

_HANDED_OUT = WeakIdKeyDictionary()  # parameters that fitted modules have returned as they are
_LOCK = (
    threading.Lock()
)  # autograd's own accumulation locks too: backward passes may run in threads


def accumulate(
    gradient: torch.Tensor, position: int, count: int, *outputs: int
) -> torch.Tensor | None:
    """Add a finished gradient to its parameter's `.grad`, where autograd would do just that later.

    Args:
        gradient: the gradient.
        position: which of the autograd node's tensor inputs it belongs to.
        count: number of the node's tensor inputs.
        outputs: of the step, through which the parameter is reached (`missing.outputs_behind`).

    Returns:
        None when it was added, or is zeros in the place of None; else the gradient, for autograd to
        handle in its ordinary way: when there is no `.grad` yet, when a hook wants to see the
        gradient, and when it is not to be accumulated at all.
    """
    if is_missing(outputs) or getattr(gradient, ABSENT, False):
        return None
    leaf = accumulating_leaf(position, count)
    if leaf is None or not _simply_added(leaf, gradient):
        return gradient
    with _LOCK:
        leaf.grad.add_(gradient)
    return None


def _simply_added(leaf: torch.Tensor, gradient: torch.Tensor) -> bool:
    """Whether accumulating is no more than `leaf.grad += gradient`."""
    held = leaf.grad
    return (
        held is not None
        and type(held) is torch.Tensor
        and type(gradient) is torch.Tensor
        and held.layout is gradient.layout is torch.strided
        and held.dtype == gradient.dtype
        and held.device == gradient.device
        and held.shape == gradient.shape
        and not held.requires_grad
        and not torch.is_grad_enabled()
        and not leaf._backward_hooks
        and not leaf._post_accumulate_grad_hooks
        and leaf not in _HANDED_OUT
        and _on_default_stream(gradient.device)
    )


def hand_out(parameter: torch.Tensor) -> None:
    """From now on, leave a parameter's gradients to autograd: the caller uses it beside the step.

    Tracing sees views of parameters among a step's outputs (`used_inside`), not the parameters.
    """
    _HANDED_OUT[parameter] = True


def _on_default_stream(device: torch.device) -> bool:
    """Whether no stream but the default one is at work; the engine orders the others itself."""
    if device.type != "cuda":
        return True
    return bool(torch.cuda.current_stream(device) == torch.cuda.default_stream(device))


def used_inside(
    joint: fx.GraphModule, forward_outputs: int, parameters: Set[fx.Node]
) -> set[fx.Node]:
    """The parameters that the step does not hand out, itself or a view of it.

    The caller may differentiate what is handed out, and autograd then adds both gradients up before
    it adds them to `.grad`.
    """
    outputs, _ = J.joint_outputs(joint, forward_outputs)
    out = {s for n in outputs if isinstance(n, fx.Node) for s in J.storages(n)}
    return {p for p in parameters if out.isdisjoint(J.storages(p))}


def accumulate_when_ready(
    backward: fx.GraphModule,
    joint: fx.GraphModule,
    parameters: Set[fx.Node],
    behind: Mapping[fx.Node, Sequence[int]],
) -> None:
    """Let a backward graph add each parameter's gradient to `.grad` right after its last op.

    Args:
        backward: the lowered backward graph; changed in place.
        joint: the joint graph it was lowered from.
        parameters: the placeholders that are parameters, those that the step hands out left aside
            (`used_inside`).
        behind: the outputs of the step behind each gradient (`missing.outputs_behind`).
    """
    primals = J.primals(joint)
    count = sum(bool(J.tensors(p)) for p in primals)
    (end,) = backward.graph.find_nodes(op="output")
    results = list(end.args[0])
    position = -1
    for i, primal in enumerate(primals[: len(results)]):
        position += bool(J.tensors(primal))
        gradient = results[i]
        if primal not in parameters or not isinstance(gradient, fx.Node):
            continue
        if gradient.op != "call_function" or results.count(gradient) > 1:
            continue
        if not _place_early(gradient):
            continue
        with backward.graph.inserting_after(gradient):
            made = backward.graph.call_function(
                accumulate, (gradient, position, count, *behind.get(primal, ()))
            )
        made.meta = {k: v for k, v in gradient.meta.items() if k in ("val", "tensor_meta")}
        results[i] = made
    end.args = (tuple(results),)
    backward.graph.lint()
    backward.recompile()


def _place_early(gradient: fx.Node) -> bool:
    """Move a view to right after its base; False if something may still write into that memory."""
    views = [gradient]
    while (base := _base(views[-1])) is not None:
        views.append(base)
    if any(_writes(user) for node in views for user in node.users):
        return False
    for base, view in zip(views[::-1], views[-2::-1], strict=False):
        base.append(view)
    return True


def _base(node: fx.Node) -> fx.Node | None:
    """The node that a view looks into, None for one that has memory of its own."""
    inputs = node.all_input_nodes
    if node.op != "call_function" or len(inputs) != 1 or inputs[0].op != "call_function":
        return None
    shared = J.storages(node).keys() & J.storages(inputs[0]).keys()
    return inputs[0] if shared else None


def _writes(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def hold_gradients(
    step: CapturedStep, parameters: Set[fx.Node], *, held_bytes: int = 0, at_end: bool = False
) -> CapturedStep:
    """The step as it is while gradients are accumulated.

    Every parameter's `.grad` is there all through it, and the step's own gradient is freed as soon
    as it is final. Ops and their ids stay the same, so that a schedule for one runs the other.

    Args:
        step: as captured.
        parameters: the placeholders that are parameters.
        held_bytes: least size of all `.grad`, with those that only other steps of the module make.
        at_end: the step's own gradients are added all together at its end.
    """
    _, gradients = J.joint_outputs(step.joint, step.forward_outputs)
    pairs = list(zip(J.primals(step.joint), gradients, strict=False))
    ours = _values(step, (n for p, n in pairs if p in parameters))
    inside = used_inside(step.joint, step.forward_outputs, parameters)
    others = _values(step, (n for p, n in pairs if p not in inside or _is_sparse(n)))
    freed = set() if at_end else ours - others
    values = [
        replace(v, is_output=False) if i in freed else v for i, v in enumerate(step.graph.values)
    ]
    held = max(held_bytes, sum(step.graph.values[i].size_bytes for i in ours))
    values.append(Value("accumulated gradients", held, ValueKind.ACCUMULATED))
    graph = step.graph
    made = TrainingGraph(tuple(values), graph.ops, cost_unit=graph.cost_unit, name=graph.name)
    return replace(step, graph=made)


def _is_sparse(gradient: object) -> bool:
    return isinstance(gradient, fx.Node) and bool(gradient.meta.get(SPARSE))


def _values(step: CapturedStep, nodes: Iterable[object]) -> set[int]:
    found = {step.value_of[s] for n in nodes if isinstance(n, fx.Node) for s in J.storages(n)}
    return {v for v in found if step.graph.values[v].kind is ValueKind.GRADIENT}


def gradients_held(model: nn.Module) -> bool:
    """Whether a parameter has a gradient of an earlier backward pass."""
    return any(p.grad is not None for p in model.parameters())
