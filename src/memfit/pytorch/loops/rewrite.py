"""Loops in a graph that Dynamo captured: found, unrolled, or replaced by one rolled op."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from memfit.errors import CaptureError
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.compat.loops import fake_mode_of, scan_op, while_loop_op
from memfit.pytorch.loops.body import LoopSignature, trace_body
from memfit.pytorch.loops.run import LoopProgram, run_loop
from memfit.pytorch.loops.trip_count import trip_count

__all__ = ["UNROLLED_NODES", "rewrite_loops"]

UNROLLED_NODES = 128
"""Loops of more calls than this, all steps together, are rolled by default."""


@dataclass(frozen=True)
class _Found:
    """A loop of a graph.

    Attributes:
        node: its node.
        body: takes carry, slices of xs and constants; returns carry and slices of ys.
        init, xs, constants: nodes (constants may be numbers).
        steps: its trip count.
    """

    node: fx.Node
    body: fx.GraphModule
    init: Sequence[Any]
    xs: Sequence[Any]
    constants: Sequence[Any]
    steps: int

    @property
    def calls(self) -> int:
        """Calls that unrolling makes."""
        calls = sum(n.op.startswith("call") for n in self.body.graph.nodes)
        return calls * self.steps

    def can_roll(self) -> bool:
        """Whether all that it reads are tensors, and it has at least one step."""
        return self.steps > 0 and all(
            isinstance(_example(n), torch.Tensor) for n in (*self.init, *self.xs, *self.constants)
        )


def rewrite_loops(
    module: fx.GraphModule, how: str, costs: Callable[[CapturedStep], CapturedStep]
) -> list[LoopProgram]:
    """Unroll the loops of a captured graph, or make each of them one op; loops inside are unrolled.

    Args:
        module: what Dynamo captured; changed in place.
        how: `unroll`, `roll`, or `auto`, which rolls what has more than `UNROLLED_NODES` calls.
        costs: gives a captured step its costs.

    Returns:
        The rolled loops.

    Raises:
        CaptureError: a trip count is not fixed, or a body cannot be traced.
    """
    programs = []
    loops = list(_loops(module))
    for found in loops:
        _unroll_inside(found.body)
        roll = how == "roll" or (how == "auto" and found.calls > UNROLLED_NODES)
        program = _roll(module, found, costs) if roll and found.can_roll() else None
        if program is not None:
            programs.append(program)
        elif how != "roll" or _wants_gradient(found):
            _unroll(module, found)
    if loops:
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()
    return programs


def _unroll_inside(body: fx.GraphModule) -> None:
    for found in list(_loops(body)):
        _unroll_inside(found.body)
        _unroll(body, found)
        body.recompile()


def _loops(module: fx.GraphModule) -> Iterator[_Found]:
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is scan_op:
            body, init, xs, constants = node.args
            yield _Found(
                node, _submodule(module, body), init, xs, constants, _scan_length(node, xs)
            )
        elif node.target is while_loop_op:
            condition, body, init, constants = node.args
            modules = (_submodule(module, condition), _submodule(module, body))
            steps = trip_count(*modules, init, constants, node.name)
            yield _Found(node, modules[1], init, (), constants, steps)


def _submodule(module: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    return module.get_submodule(str(node.target))


def _scan_length(node: fx.Node, xs: Sequence[fx.Node]) -> int:
    length = _example(xs[0]).shape[0]
    if not isinstance(length, int):
        raise CaptureError(
            f"the trip count of {node.name} is not fixed: its inputs have {length} steps, a size "
            "that changes; a plan is for one number of steps: call torch._dynamo.mark_static on "
            "that dimension, or pad to a few fixed lengths"
        )
    return length


def _example(node: Any) -> Any:
    return node.meta.get("example_value") if isinstance(node, fx.Node) else node


def _wants_gradient(found: _Found) -> bool:
    made = _example(found.node)
    made = made if isinstance(made, (tuple, list)) else (made,)
    return any(isinstance(x, torch.Tensor) and x.requires_grad for x in made)


def _roll(
    module: fx.GraphModule, found: _Found, costs: Callable[[CapturedStep], CapturedStep]
) -> LoopProgram | None:
    node = found.node
    examples = [_example(n) for n in found.init]
    mode = fake_mode_of(examples[0])
    with mode:
        examples = [
            *(_contiguous(x) for x in examples),
            *(_example(n).select(0, 0) for n in found.xs),
        ]
    examples += [_example(n) for n in found.constants]
    count = len(_outputs(found.body)) - len(found.init)
    signature = LoopSignature(len(found.init), len(found.xs), len(found.constants), count)
    body = trace_body(found.body, examples, signature, costs, node.name)
    if body is None:
        return None
    program = LoopProgram(body, found.steps, node.name)
    with module.graph.inserting_before(node):
        made = module.graph.call_function(
            run_loop, (program.key, *found.init, *found.xs, *found.constants)
        )
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    module.graph.erase_node(node)
    return program


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return made.requires_grad_(tensor.requires_grad)


def _outputs(module: fx.GraphModule) -> Sequence[Any]:
    (end,) = module.graph.find_nodes(op="output")
    return tuple(end.args[0])


def _unroll(module: fx.GraphModule, found: _Found) -> None:
    """Put the body's calls in the loop's place, once for each step."""
    graph, node = module.graph, found.node
    attributes = _adopt_attributes(module, found)
    stacks: list[list[Any]] = [[] for _ in range(len(_outputs(found.body)) - len(found.init))]
    with graph.inserting_before(node):
        slices = [graph.call_function(torch.unbind, (x, 0)) for x in found.xs]
        carry = list(found.init)
        for t in range(found.steps):
            taken = [graph.call_function(operator.getitem, (s, t)) for s in slices]
            made = _inline(graph, found.body, [*carry, *taken, *found.constants], attributes)
            carry, outputs = list(made[: len(carry)]), made[len(carry) :]
            for stack, output in zip(stacks, outputs, strict=True):
                stack.append(output)
        results = [*carry, *(graph.call_function(torch.stack, (s, 0)) for s in stacks)]
    for user in list(node.users):
        if user.target is not operator.getitem:
            raise CaptureError(
                f"{node.name} is read as a whole by {user.name}, which is not expected of a loop; "
                "please report this as a bug"
            )
        result = results[user.args[1]]
        for key in ("example_value", "stack_trace"):
            if key in user.meta:
                result.meta.setdefault(key, user.meta[key])
        user.replace_all_uses_with(result)
        graph.erase_node(user)
    graph.erase_node(node)


def _adopt_attributes(module: fx.GraphModule, found: _Found) -> Mapping[str, str]:
    """Give the module what the body reads as attributes; names there -> names here."""
    names: dict[str, str] = {}
    for node in found.body.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        value: Any = found.body
        for part in name.split("."):
            value = getattr(value, part)
        names[name] = f"{found.node.name}_{name.replace('.', '_')}"
        setattr(module, names[name], value)
    return names


def _inline(
    graph: fx.Graph, body: fx.GraphModule, inputs: Sequence[Any], attributes: Mapping[str, str]
) -> Sequence[Any]:
    env: dict[fx.Node, Any] = dict(
        zip(body.graph.find_nodes(op="placeholder"), inputs, strict=True)
    )
    for node in body.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            return tuple(fx.node.map_arg(tuple(node.args[0]), lambda n: env[n]))
        if node.op == "get_attr":
            env[node] = graph.get_attr(attributes[str(node.target)])
        else:
            env[node] = graph.node_copy(node, lambda n: env[n])
    raise CaptureError("the body of a loop returns nothing; return the next carry")
