"""The body of a loop, traced once: one step forward and backward, and what a step takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from memfit.errors import CaptureError
from memfit.graph.plain import store_all_schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph, Value, ValueKind
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep, read_joint
from memfit.pytorch.capture.rng import device_of, state_bytes
from memfit.pytorch.capture.storage_sizes import block_bytes
from memfit.pytorch.compat.loops import fake_mode_of, traced_joint
from memfit.pytorch.execute.lower import lower
from memfit.pytorch.prepare.for_kernels import prepare_for_kernels

__all__ = ["LoopBody", "LoopSignature", "StepSizes", "TensorForm", "trace_body"]

Costs = Callable[[CapturedStep], CapturedStep]


@dataclass(frozen=True, slots=True)
class TensorForm:
    """Shape, strides, type and device of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorForm:
        """The form of a real or fake tensor."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)

    @property
    def size_bytes(self) -> int:
        """Bytes of one, laid out densely."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def stack(self, count: int, like: torch.Tensor) -> torch.Tensor:
        """Memory for `count` of them, each laid out as this one."""
        step = torch.Size(self.shape).numel()
        return torch.empty_strided(
            (count, *self.shape), (step, *self.stride), dtype=self.dtype, device=like.device
        )


@dataclass(frozen=True, slots=True)
class LoopSignature:
    """How many tensors of each kind a loop has.

    Attributes:
        carry: tensors carried from step to step.
        xs: tensors of which each step reads a slice.
        constants: tensors that every step reads.
        ys: tensors of which each step writes a slice.
    """

    carry: int
    xs: int
    constants: int
    ys: int


@dataclass(frozen=True, slots=True)
class StepSizes:
    """What one step takes.

    Attributes:
        state_bytes: the carried tensors.
        record_bytes: what its backward pass reads, beyond slices of `xs` and the constants.
        forward_bytes: most memory at once while it runs forward, its outputs included.
        backward_bytes: most memory at once while it runs backward: its record, the gradients that
            it is given and those that it makes.
        forward_ns: time of a step forward.
        backward_ns: time of a step backward.
    """

    state_bytes: int
    record_bytes: int
    forward_bytes: int
    backward_bytes: int
    forward_ns: int
    backward_ns: int


@dataclass(frozen=True)
class LoopBody:
    """One step of a loop as graphs of ATen ops.

    Attributes:
        signature: numbers of tensors; `first` and the others take carry, slices of xs, constants.
        first: returns the next carry and slices of ys.
        advance: returns the next carry.
        recording: returns the next carry, slices of ys and the record.
        again: returns the next carry and the record.
        backward: takes carry, slices and constants that it reads (`saved_inputs`), the record, and
            the gradients of the differentiable carries and ys; returns gradients of `wanted`.
        saved_inputs: positions of the inputs that the backward graph reads, in its order.
        record: form of each tensor of the record.
        carry, ys: forms of the carried tensors and of a step's outputs.
        differentiable: positions, among carry and ys, of the outputs that have gradients.
        wanted: positions of the inputs that get gradients, in the order of the backward's results.
        random_device: device whose generator the step draws from; None if it draws nothing.
        graph: the step, with costs.
        sizes: what a step takes.
    """

    signature: LoopSignature
    first: Callable[..., Sequence[torch.Tensor]]
    advance: Callable[..., Sequence[torch.Tensor]]
    recording: Callable[..., Sequence[torch.Tensor]]
    again: Callable[..., Sequence[torch.Tensor]]
    backward: Callable[..., Sequence[torch.Tensor]]
    saved_inputs: tuple[int, ...]
    record: tuple[TensorForm, ...]
    carry: tuple[TensorForm, ...]
    ys: tuple[TensorForm, ...]
    differentiable: tuple[int, ...]
    wanted: tuple[int, ...]
    random_device: torch.device | None
    graph: TrainingGraph
    sizes: StepSizes

    @property
    def saved_carries(self) -> tuple[int, ...]:
        """Positions of the carried tensors that the backward graph reads."""
        return tuple(i for i in self.saved_inputs if i < self.signature.carry)


def trace_body(
    module: fx.GraphModule,
    inputs: Sequence[torch.Tensor],
    signature: LoopSignature,
    costs: Costs,
    name: str,
) -> LoopBody | None:
    """Trace one step of a loop, forward and backward.

    Args:
        module: the body: takes carry, slices of xs and constants, returns carry and slices of ys.
        inputs: fake tensors for these, that require gradients where the loop's operands do.
        signature: how many of each.
        costs: gives a captured step its costs.
        name: for messages.

    Returns:
        None where nothing has gradients.

    Raises:
        CaptureError: the body's carry changes its form, or it writes to what it is given.
    """
    floating = any(x.requires_grad for x in inputs)
    examples = [
        _leaf(x, x.requires_grad or (i < signature.carry and floating and _differentiable(x)))
        for i, x in enumerate(inputs)
    ]
    traced = traced_joint(module, examples) if floating else None
    if traced is None:
        return None
    joint, outputs = traced
    if J.forward_inputs(joint) != J.primals(joint):
        raise CaptureError(
            f"{name}: a step runs an op with an effect, such as the check of torch.linalg.inv for "
            'singular matrices, whose order a rolled loop does not keep; use loops="unroll"'
        )
    if outputs != signature.carry + signature.ys:
        raise CaptureError(
            f"{name}: a step returns {outputs} tensors where {signature.carry + signature.ys} are "
            "expected; the body must not return what it is given, nor change it in place (clone it)"
        )
    prepare_for_kernels(joint)
    step = costs(read_joint(joint, outputs, {}, name=name, replay=True))
    return _body(step, examples, signature, name)


def _differentiable(tensor: torch.Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _leaf(tensor: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    with fake_mode_of(tensor):
        made = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
        return made.requires_grad_(requires_grad)


def _body(
    step: CapturedStep, examples: Sequence[torch.Tensor], signature: LoopSignature, name: str
) -> LoopBody:
    schedule = store_all_schedule(step.graph)
    forward, backward = lower(step, schedule)
    count = signature.carry + signature.ys
    outputs = _outputs(forward)
    places = {p: i for i, p in enumerate(forward.graph.find_nodes(op="placeholder"))}
    saved = outputs[count:]
    inputs = [places[n] for n in saved if n in places]
    values = [n for n in saved if n not in places]
    forms = [TensorForm.of(n.meta["val"]) for n in outputs[:count]]
    for i, form in enumerate(forms[: signature.carry]):
        before = TensorForm.of(examples[i])
        if (before.shape, before.dtype, before.device) != (form.shape, form.dtype, form.device):
            raise CaptureError(
                f"{name}: carried tensor {i} is {before.dtype} {list(before.shape)} before a step "
                f"and {form.dtype} {list(form.shape)} after it; a step must keep shape and dtype"
            )
    gradients = _outputs(backward)
    wanted = tuple(i for i, g in enumerate(gradients) if isinstance(g, fx.Node))
    _keep_outputs(backward, [gradients[i] for i in wanted])
    tangents = sum(J.is_tangent(p) for p in step.joint.graph.find_nodes(op="placeholder"))
    joint_outputs, _ = J.joint_outputs(step.joint, step.forward_outputs)
    differentiable = tuple(
        i for i, n in enumerate(joint_outputs) if _differentiable(n.meta["val"])
    )[:tangents]
    if len(differentiable) != tangents:
        raise CaptureError(f"{name}: a carried tensor or an output of a step has no gradient")
    draws = next((n for n in step.joint.graph.nodes if J.is_random(n)), None)
    variants = [_variant(forward, p) for p in _picks(signature, len(outputs), len(inputs))]
    return LoopBody(
        signature=signature,
        first=variants[0].forward,
        advance=variants[1].forward,
        recording=variants[2].forward,
        again=variants[3].forward,
        backward=backward.forward,
        saved_inputs=tuple(inputs),
        record=tuple(TensorForm.of(n.meta["val"]) for n in values),
        carry=tuple(TensorForm.of(x) for x in examples[: signature.carry]),
        ys=tuple(forms[signature.carry :]),
        differentiable=differentiable,
        wanted=wanted,
        random_device=None if draws is None else device_of(draws),
        graph=step.graph,
        sizes=_sizes(step, examples, signature, inputs),
    )


def _picks(signature: LoopSignature, outputs: int, saved_inputs: int) -> list[list[int]]:
    """Which outputs of the forward graph `first`, `advance`, `recording` and `again` return."""
    carry = list(range(signature.carry))
    ys = list(range(signature.carry, signature.carry + signature.ys))
    record = list(range(signature.carry + signature.ys + saved_inputs, outputs))
    return [carry + ys, carry, carry + ys + record, carry + record]


def _outputs(module: fx.GraphModule) -> list[fx.Node]:
    (end,) = module.graph.find_nodes(op="output")
    return list(end.args[0])


def _keep_outputs(module: fx.GraphModule, outputs: Sequence[fx.Node]) -> None:
    (end,) = module.graph.find_nodes(op="output")
    end.args = (tuple(outputs),)
    module.graph.eliminate_dead_code()
    module.recompile()


def _variant(module: fx.GraphModule, picks: Sequence[int]) -> fx.GraphModule:
    """The forward graph with some of its outputs, and only what they need (random ops stay)."""
    made = fx.GraphModule(module, module.graph.__deepcopy__())
    outputs = _outputs(made)
    _keep_outputs(made, [outputs[i] for i in picks])
    return made


def _held(value: Value, kept: bool) -> Value:
    return replace(value, is_output=kept) if value.kind is ValueKind.ACTIVATION else value


def _sizes(
    step: CapturedStep,
    examples: Sequence[torch.Tensor],
    signature: LoopSignature,
    saved_inputs: Sequence[int],
) -> StepSizes:
    graph = step.graph
    schedule = store_all_schedule(graph)
    timeline = simulate(graph, schedule)
    live = [size - graph.resident_bytes for size in timeline.live_bytes]
    kept = schedule.kept(graph)
    # A call holds its arguments, here the record, until it returns; outputs are gone by then.
    held = replace(graph, values=tuple(_held(v, i in kept) for i, v in enumerate(graph.values)))
    backward = [size - held.resident_bytes for size in simulate(held, schedule).live_bytes]
    states = [
        block_bytes(TensorForm.of(x).size_bytes, x.device) for x in examples[: signature.carry]
    ]
    record = sum(graph.values[i].size_bytes for i in kept)
    record += sum(states[i] for i in saved_inputs if i < signature.carry)
    start = schedule.backward_start
    draws = next((n for n in step.joint.graph.nodes if J.is_random(n)), None)
    generator = 0 if draws is None else state_bytes(device_of(draws))
    return StepSizes(
        state_bytes=sum(states) + generator,
        record_bytes=record,
        forward_bytes=max(live[:start], default=0) + sum(states) + generator,
        backward_bytes=max(backward[start:], default=0)
        + sum(states[i] for i in saved_inputs if i < signature.carry)
        + generator,  # its state before the pass is put back after it
        forward_ns=graph.forward_cost,
        backward_ns=graph.total_cost - graph.forward_cost,
    )
