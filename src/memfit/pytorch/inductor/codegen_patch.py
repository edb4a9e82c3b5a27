"""Private names of Inductor's code generation (see `compat`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._prims_common import suggest_memory_format

from memfit.pytorch.capture.storage_sizes import block_bytes
from memfit.pytorch.inductor.conv_layout import CHANNELS_LAST
from memfit.pytorch.inductor.kernel_memory import Buffers

__all__ = ["generated_code", "laid_out_anew_bytes"]

Workspace = Callable[[Any], int]


@contextmanager
def generated_code(workspace: Workspace, see: Callable[[str, Buffers], None]) -> Iterator[None]:
    """Hand over the code that Inductor generates for a graph, before kernels are compiled.

    Args:
        workspace: bytes that an FX node's kernel takes beside its inputs and outputs.
        see: gets the code and what its names stand for, without inputs; what it raises ends the
            compilation.
    """
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    before = GraphLowering.save_output_code

    def save(code: str) -> None:
        if before is not None:
            before(code)
        # Code from Inductor's cache comes without a graph.
        if isinstance(V.graph, GraphLowering):
            see(code, _buffers(V.graph, workspace))

    with mock.patch.object(GraphLowering, "save_output_code", staticmethod(save)):
        yield


def _buffers(graph: Any, workspace: Workspace) -> Buffers:
    from torch._inductor import ir

    size_bytes: dict[str, int] = {}
    parts: dict[str, list[str]] = {}
    views: dict[str, tuple[str, ...]] = {}
    workspace_bytes: dict[str, int] = {}
    for buffer in graph.buffers:
        name = buffer.get_name()
        layout = buffer.get_output_spec()
        if isinstance(layout, ir.MultiOutputLayout):
            parts.setdefault(name, [])
        elif isinstance(layout, ir.Layout) and not isinstance(layout, ir.NonOwningLayout):
            size_bytes[name] = _size_bytes(graph, buffer)
        if isinstance(buffer, ir.MultiOutput):
            parts.setdefault(buffer.inputs[0].get_name(), []).append(name)
        elif isinstance(buffer, ir.ExternKernel) and buffer.get_inputs_that_alias_output():
            views[name] = tuple(buffer.get_inputs_that_alias_output())
    for op in graph.operations:
        if isinstance(op, ir.ExternKernel):
            own = max((workspace(node) for node in op.get_origins()), default=0)
            own += _laid_out_anew(graph, op)
            names = {o.get_name() for o in op.get_outputs()} | {*op.get_mutation_names()}
            for name in names if own else ():
                workspace_bytes[name] = max(own, workspace_bytes.get(name, 0))
    return Buffers(size_bytes, parts, views, workspace_bytes)


def _laid_out_anew(graph: Any, op: Any) -> int:
    if getattr(op, "op_overload", None) is not torch.ops.aten.convolution_backward.default:
        return 0
    return laid_out_anew_bytes([_strided(graph, operand) for operand in op.inputs[:3]])


def laid_out_anew_bytes(operands: Sequence[torch.Tensor]) -> int:
    """Bytes of what a convolution's backward copies, which works on one memory format.

    From 2.13 on Inductor gives it operands of one format. Before, a gradient has the strides that
    it had when it was traced, while the input has its channels last.

    Args:
        operands: the gradient, the input, the weight.
    """
    wanted = CHANNELS_LAST.get(operands[0].dim())
    if wanted is None:
        return 0
    if not any(suggest_memory_format(t) is wanted for t in operands[1:]):
        wanted = torch.contiguous_format
    return sum(
        int(t.numel()) * t.element_size()
        for t in operands
        if not t.is_contiguous(memory_format=wanted)
    )


def _strided(graph: Any, operand: Any) -> torch.Tensor:
    """A tensor without memory of the operand's shape and strides."""
    size, stride = (
        [int(graph.sizevars.optimization_hint(n, fallback=1)) for n in numbers]
        for numbers in (operand.get_size(), operand.get_stride())
    )
    return torch.empty_strided(size, stride, dtype=operand.get_dtype(), device="meta")


def _size_bytes(graph: Any, buffer: Any) -> int:
    from torch._inductor.utils import get_dtype_size

    count = graph.get_allocation_storage_size(buffer)
    hint = graph.sizevars.optimization_hint(count, fallback=0)
    size = int(hint) * int(get_dtype_size(buffer.get_dtype()))
    device = buffer.get_device()
    return size if device is None else block_bytes(size, device)
