"""Reading a joint forward-and-backward FX graph: passes, storages, views."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Set
from typing import Any

import torch
from torch import fx

from memfit.errors import CaptureError
from memfit.graph.training_graph import Source
from memfit.pytorch.capture.first_outputs import read_again
from memfit.pytorch.capture.joint_inputs import (
    SPARSE,
    forward_inputs,
    is_primal,
    is_tangent,
    kinds_of,
    positions,
    primals,
)
from memfit.pytorch.capture.storage_sizes import allocated_bytes
from memfit.pytorch.compat.descriptions import with_effects, written_input
from memfit.pytorch.failures.source_files import is_own, is_users

__all__ = [
    "forward_inputs",
    "forward_nodes",
    "frames_of",
    "getitem_users",
    "handed_to_inputs",
    "is_primal",
    "is_random",
    "is_tangent",
    "joint_outputs",
    "kinds_of",
    "mutated_placeholders",
    "normalise",
    "own_gradients",
    "positions",
    "primals",
    "read_by",
    "source_of",
    "storages",
    "tensors",
    "written_inputs",
]

aten = torch.ops.aten
_KNOWN_NAMESPACES = frozenset(
    {"aten", "prims", "prim", "inductor", "_c10d_functional", "c10d", "memfit"}
)
_BATCH_NORM_BACKWARD = (aten.native_batch_norm_backward.default,)


def tensors(node: fx.Node) -> list[torch.Tensor]:
    """The (fake) tensors that a node yields."""
    value = node.meta.get("val")
    items = value if isinstance(value, (tuple, list)) else [value]
    return [t for t in items if isinstance(t, torch.Tensor)]


def storages(node: fx.Node) -> dict[int, int]:
    """Storages that a node's tensors live in: identity -> bytes that the allocator hands out.

    Raises:
        CaptureError: a tensor is sparse.
    """
    result: dict[int, int] = {}
    for position, tensor in enumerate(tensors(node)):
        if tensor.layout is not torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            where = source_of(node)
            made = f" (made by {where})" if where else ""
            raise _told_of(
                node,
                CaptureError(
                    f"{node.name} yields a {layout} tensor{made}, whose memory is not planned; use "
                    "dense tensors and gradients (sparse=False)"
                ),
            )
        storage = tensor.untyped_storage()._cdata
        try:
            result[storage] = allocated_bytes(node, position, tensor)
        except CaptureError as error:
            where = source_of(node)
            head, _, remedy = str(error).partition("; ")
            made = f" (made by {where})" if where else ""
            raise _told_of(node, type(error)(f"{head}{made}; {remedy}")) from None
    return result


def _told_of(node: fx.Node, error: CaptureError) -> CaptureError:
    """An error about a node, with the lines of code that it stems from."""
    error.frames = frames_of(node)
    where = source_of(node)
    error.module = where.module if where is not None else ""
    return error


def frames_of(node: fx.Node) -> list[tuple[str, int]]:
    """File and line of the code that a node stems from, innermost last."""
    found = _FRAME.findall(node.meta.get("stack_trace") or "")
    return [(file, int(line)) for file, line, _ in found]


def is_random(node: fx.Node) -> bool:
    """Whether the op draws from a random generator, or might.

    PyTorch's own ops are tagged. What users register (`torch.library`) seldom is, and what runs
    inside a higher-order op cannot be seen: both keep their place among the random ops.
    """
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    target = node.args[1] if node.target is with_effects else node.target
    if not isinstance(target, torch._ops.OpOverload):
        return isinstance(target, torch._ops.HigherOrderOperator)
    return (
        torch.Tag.nondeterministic_seeded in target.tags
        or target.namespace not in _KNOWN_NAMESPACES
    )


def joint_outputs(joint: fx.GraphModule, forward_outputs: int) -> tuple[list[Any], list[Any]]:
    """The outputs of the forward pass, tokens first, and of the backward pass, tokens last.

    Between them, the backward pass returns a gradient, or None, for each of `primals`.
    """
    (output,) = joint.graph.find_nodes(op="output")
    leaves = torch.utils._pytree.tree_leaves(
        output.args[0], is_leaf=lambda x: x is None or isinstance(x, fx.Node)
    )
    return list(leaves[:forward_outputs]), list(leaves[forward_outputs:])


def normalise(joint: fx.GraphModule) -> None:
    """Drop what the backward pass names but does not use.

    In training, the backward of batch norm takes its statistics from the batch and ignores the
    running ones, but names their updated values; with them a recomputation would depend on buffers
    that the forward pass has changed.
    """
    for node in joint.graph.nodes:
        if node.op == "call_function" and node.target in _BATCH_NORM_BACKWARD and node.args[7]:
            node.args = (*node.args[:3], None, None, *node.args[5:])
    joint.graph.eliminate_dead_code()


def own_gradients(joint: fx.GraphModule, forward_outputs: int, leaves: Set[fx.Node]) -> None:
    """Copy, inside the graph, the gradients that autograd would copy after it.

    A leaf's `.grad` takes over the tensor that the backward pass returns, unless that tensor is
    returned twice, belongs to somebody else, or is not laid out as the leaf is: then autograd
    copies it. Where the copy is an op of the graph, its memory is planned.

    Args:
        joint: the graph; changed in place.
        forward_outputs: number of outputs of the forward pass.
        leaves: the placeholders that are parameters, or inputs that nothing computed.
    """
    outputs, gradients = joint_outputs(joint, forward_outputs)
    (end,) = joint.graph.find_nodes(op="output")
    taken: set[fx.Node] = {n for n in outputs if isinstance(n, fx.Node)}
    for i, (primal, gradient) in enumerate(zip(primals(joint), gradients, strict=False)):
        if not isinstance(gradient, fx.Node):
            continue
        fits = gradient not in taken and gradient.op == "call_function"
        taken.add(gradient)
        if primal not in leaves or (fits and _laid_out_alike(gradient, primal)):
            continue
        with joint.graph.inserting_before(end):
            gradients[i] = _copy_like(joint.graph, gradient, primal)
    end.args = ((*outputs, *gradients),)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each once, in some order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _laid_out_alike(node: fx.Node, other: fx.Node) -> bool:
    a, b = node.meta["val"], other.meta["val"]
    if a.layout is not torch.strided or node.meta.get(SPARSE):
        return True  # refused where its storage is read, or left to autograd
    if not _is_dense(b):
        return bool(a.is_contiguous())
    pairs = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(size == 1 or s == t for size, s, t in pairs)


def _copy_like(graph: fx.Graph, node: fx.Node, other: fx.Node) -> fx.Node:
    """A copy of `node` with the strides of `other` (contiguous where those overlap)."""
    like = other.meta["val"]
    order = list(range(like.ndim))
    if _is_dense(like):
        order.sort(key=lambda d: (-like.stride(d), d))
    back = [order.index(d) for d in range(like.ndim)]
    steps: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (aten.permute.default, (order,), {}),
        (aten.clone.default, (), {"memory_format": torch.contiguous_format}),
        (aten.permute.default, (back,), {}),
    ]
    for target, args, kwargs in steps:
        made = graph.call_function(target, (node, *args), kwargs)
        value = node.meta["val"]
        with value.fake_mode:
            made.meta["val"] = target(value, *args, **kwargs)
        made.meta["partitioner_tag"] = "is_backward"
        node = made
    return node


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The placeholders that an op writes into, or gives other memory (`buffer.data = ...`)."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return
    for given, argument in zip(node.args, node.target._schema.arguments, strict=False):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        for item in given if isinstance(given, (tuple, list)) else (given,):
            if isinstance(item, fx.Node) and item.op == "placeholder":
                yield item


def mutated_placeholders(joint: fx.GraphModule) -> set[fx.Node]:
    """Inputs that the graph writes in place (buffers such as running statistics)."""
    return {written for node in joint.graph.nodes for written in _written(node)}


def handed_to_inputs(joint: fx.GraphModule) -> set[int]:
    """Storages that become an input's own (`buffer.data = ...`), and live on after the step."""
    return {
        storage
        for node in joint.graph.find_nodes(op="call_function", target=aten.set_.source_Tensor)
        for storage in storages(node.args[1])
    }


def written_inputs(joint: fx.GraphModule, forward_outputs: int) -> set[fx.Node]:
    """Inputs that the step writes: in the graph, or by an output that is copied into them."""
    (end,) = joint.graph.find_nodes(op="output")
    described = list(end.meta.get("desc") or ())[:forward_outputs]
    written = {written_input(d) for d in described} - {None}
    late = {p for p, i in zip(primals(joint), positions(joint), strict=True) if i in written}
    return mutated_placeholders(joint) | late


def read_by(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """What some nodes are computed from, themselves included.

    In training, batch norm reads its running statistics only to update them.
    """
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node in found:
            continue
        found.add(node)
        stack.extend(read_again(node))
    return found


def forward_nodes(joint: fx.GraphModule, forward_outputs: int) -> set[fx.Node]:
    """The call nodes of the forward pass.

    A node belongs to it when it depends on no tangent and either a forward output or an in-place
    write needs it, or it was traced before the backward pass began. The last clause matters: a
    dropout mask or batch norm's statistics are read by the backward pass only, and taking them for
    backward ops would draw or compute them anew.
    """
    after_tangent: set[fx.Node] = set()
    for node in joint.graph.nodes:
        if is_tangent(node) or any(a in after_tangent for a in node.all_input_nodes):
            after_tangent.add(node)

    def tagged(node: fx.Node, tag: str) -> bool:
        return node.meta.get("partitioner_tag") == tag

    outputs, _ = joint_outputs(joint, forward_outputs)
    stack = [n for n in outputs if isinstance(n, fx.Node)]
    stack += [
        n
        for n in joint.graph.nodes
        if n not in after_tangent and any(_written(n)) and not tagged(n, "must_be_in_backward")
    ]
    required: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node not in required:
            required.add(node)
            stack.extend(node.all_input_nodes)
    late = [n for n in required if n in after_tangent]
    if late:
        raise CaptureError(
            f"forward output depends on a gradient through {late[0].name}; memfit plans one "
            "forward and one backward pass; return only values of the forward pass"
        )
    found: set[fx.Node] = set()
    backward = set(after_tangent)
    for node in joint.graph.nodes:
        if node.op != "call_function" or node in backward:
            continue
        # Ops of a custom function's backward have no tag. Where it was given no tangent but zeros,
        # because nothing depends on that output, only these tell them apart.
        begun = tagged(node, "is_backward") or any(a in backward for a in node.all_input_nodes)
        if tagged(node, "must_be_in_backward") or (begun and node not in required):
            backward.add(node)
        else:
            found.add(node)
    return found


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def source_of(node: fx.Node) -> Source | None:
    """Module path and source line of a node."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    path = ""
    if isinstance(stack, dict) and stack:
        entry = list(stack.values())[-1]
        path = re.sub(r"L\['[^']*'\]\.?|_modules\['([^']*)'\]", r"\1", str(entry[0])).strip(".")
        path = path.replace("._method.__self__", "")
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    frames = [f for f in frames if is_users(f[0])] or [f for f in frames if not is_own(f[0])]
    if not frames:
        return Source(path) if path else None
    file, line, _ = frames[-1]
    return Source(path, file.rsplit("/", 1)[-1], int(line))


def getitem_users(node: fx.Node) -> Iterator[fx.Node]:
    """The `getitem` nodes that take a multi-output node apart."""
    for user in node.users:
        if user.target is operator.getitem:
            yield user
