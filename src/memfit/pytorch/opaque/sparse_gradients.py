"""Sparse gradients in a joint graph: from an opaque module to `.grad`, as eager leaves them.

Tracing sees dense ones. What counts here is the memory that the sparse ones took in a plain run: a
view without strides of so many bytes stands for each. They are added up as in plain PyTorch, and
go nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from memfit.errors import CaptureError
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.joint_inputs import SPARSE
from memfit.pytorch.opaque.call import call_numbered
from memfit.pytorch.opaque.ops import BACKWARD_OPS
from memfit.pytorch.python_ops import run_instead

__all__ = ["settle_sparse_gradients"]

_BYTES_PER_NS = 4

_LIBRARY = torch.library.Library("memfit", "FRAGMENT")
_LIBRARY.define("add_gradients(Tensor a, Tensor b) -> Tensor")


def _added(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The sum, in the order in which autograd adds: a dense one first, or the newer one."""
    return a + b if b.layout is not torch.strided and a.layout is torch.strided else b + a


def _cost(node: fx.Node) -> tuple[int, int]:
    return max(1, node.meta["val"].untyped_storage().nbytes() // _BYTES_PER_NS), 0


_ADDED = torch.ops.memfit.add_gradients.default
run_instead(_ADDED, _added, _added, _cost)


def settle_sparse_gradients(joint: fx.GraphModule) -> None:
    """Let sparse gradients count as what they take, and be added up as such.

    Args:
        joint: the joint graph; changed in place.

    Raises:
        CaptureError: one is used otherwise.
    """
    sparse: dict[fx.Node, int] = {}
    for node in joint.graph.nodes:
        if node.target in BACKWARD_OPS:
            sparse.update(_from_call(node))
        elif node.target is torch.ops.aten.add.Tensor and sparse.keys() & set(node.args):
            sizes = [sparse.get(a) for a in node.args]
            node.target = _ADDED
            if None not in sizes:
                sparse[node] = sum(size for size in sizes if size is not None)
                node.meta["val"] = _standing_for(node.meta["val"], sparse[node])
        elif node.op != "output" and (given := sparse.keys() & set(node.all_input_nodes)):
            raise _refused(next(iter(given)), node)
    for node in sparse:
        node.meta[SPARSE] = True


def _from_call(node: fx.Node) -> dict[fx.Node, int]:
    """The sparse gradients of one call, with their bytes."""
    call = call_numbered(int(str(node.args[-1])))
    wanted: Any = node.args[-2]
    values = list(node.meta["val"])
    sparse = {}
    for item in J.getitem_users(node):
        size = call.sparse_bytes(wanted[item.args[1]])
        if size is not None:
            values[item.args[1]] = item.meta["val"] = _standing_for(item.meta["val"], size)
            sparse[item] = size
    node.meta["val"] = values
    return sparse


def _standing_for(value: Any, size: int) -> torch.Tensor:
    with value.fake_mode:
        count = max(1, -(-size // value.itemsize))
        flat = torch.empty(count, dtype=value.dtype, device=value.device)
        return flat.as_strided(value.shape, (0,) * value.ndim)


def _refused(gradient: fx.Node, reader: fx.Node) -> CaptureError:
    error = CaptureError(
        f"a sparse gradient of {_source(gradient)} goes on through {reader.name}, and not to a "
        "parameter; use sparse=False there, or look up in the parameter itself"
    )
    error.frames = J.frames_of(reader) or J.frames_of(gradient)
    return error


def _source(node: fx.Node) -> str:
    return str(J.source_of(node) or node.name)
