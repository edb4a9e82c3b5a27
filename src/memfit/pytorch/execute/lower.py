"""Schedule -> forward and backward FX graphs, op for op in the schedule's order."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import torch
from torch import fx

from memfit.errors import ExecutionError
from memfit.graph.schedule import Compute, Schedule
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.capture.first_outputs import first_run_outputs, run_again
from memfit.pytorch.capture.rng import device_of, read_state, replay
from memfit.pytorch.capture.scalars import is_number
from memfit.pytorch.compat.eager import saved_output_description
from memfit.pytorch.layouts.as_traced import forms_of, run_as_traced
from memfit.pytorch.python_ops import runs_as

__all__ = ["lower"]

Key = tuple[fx.Node, int]


class _Emitter:
    """Copies nodes of the joint graph into a new graph, one copy of each for each computation.

    A node is known by (node, copy). Views are made where they are first needed, from the copy of
    their base that the step reads.
    """

    def __init__(self, step: CapturedStep, look: bool = True) -> None:
        self.step = step
        self._look = look
        self.numbers = {n for n in step.owner_of.values() if is_number(n)}
        self.graph = fx.Graph()
        self.env: dict[Key, fx.Node] = {}
        self.states: dict[int, fx.Node] = {}

    def placeholder(self, node: fx.Node, copy: int = 0) -> fx.Node:
        made = self.graph.placeholder(node.name)
        made.meta = dict(node.meta)
        self.env[node, copy] = made
        return made

    def copies(self, compute: Compute) -> dict[int, int]:
        """Which copy of each value the step reads."""
        op = self.step.graph.ops[compute.op]
        return dict(zip(op.inputs, compute.reads, strict=True))

    def find(self, node: fx.Node, copies: dict[int, int]) -> fx.Node:
        """The new node that holds `node`, whose base is read in the given copies."""
        copy = self._copy_of(node, copies)
        key = (node, copy)
        if key in self.env:
            return self.env[key]
        if node.op == "get_attr":
            self.env[key] = self.graph.node_copy(node)
            return self.env[key]
        known = node.op == "call_function" and not self._is_view(node)
        if known or node.op == "placeholder":
            raise ExecutionError(
                f"copy {copy} of {node.name} is read before it is computed; "
                "please report this plan as a bug"
            )
        self.env[key] = self.graph.node_copy(node, lambda a: self.find(a, copies))
        return self.env[key]

    def _copy_of(self, node: fx.Node, copies: dict[int, int]) -> int:
        if node.op != "call_function":
            return 0
        found = {copies.get(self.step.value_of[s], 0) for s in J.storages(node)}
        return max(found, default=0)

    def _is_view(self, node: fx.Node) -> bool:
        if is_number(node):
            return node not in self.numbers
        if node.target is operator.getitem:
            return self._is_view(node.args[0]) and not J.storages(node.args[0]).keys().isdisjoint(
                J.storages(node)
            )
        return all(
            self.step.owner_of.get(self.step.value_of[s]) is not node
            and not self._owned_by_getitem(node, self.step.value_of[s])
            for s in J.storages(node)
        )

    def _owned_by_getitem(self, node: fx.Node, value: int) -> bool:
        owner = self.step.owner_of.get(value)
        return owner is not None and owner.target is operator.getitem and owner.args[0] is node

    def compute(self, compute: Compute) -> None:
        """Emit one step of the schedule and take its outputs apart."""
        op_id = compute.op
        node = self.step.node_of[op_id]
        copies = self.copies(compute)
        again = compute.copy > 0

        def arg(a: fx.Node) -> fx.Node:
            return self.find(a, copies)

        if op_id in self.step.state_ops:
            made = self.graph.call_function(read_state, (device_of(node),))
            made.name = f"{node.name}_rng_state"
            with _fake_mode(node):
                made.meta["val"] = torch.empty(
                    self.step.graph.values[self.step.graph.ops[op_id].outputs[0]].size_bytes,
                    dtype=torch.uint8,
                    device="cpu",  # of a CUDA generator too
                )
            self.states[self.step.graph.ops[op_id].outputs[0]] = made
            return
        if again and op_id in self.step.state_of:
            args = fx.node.map_arg(node.args, arg)
            kwargs = fx.node.map_arg(node.kwargs, arg)
            state = self.states[self.step.state_of[op_id]]
            called = self._called(node, again=True)
            run = replay if len(called) == 1 else _replay_as_traced
            if len(called) == 1 and called[0] is not node.target:
                run, called = _replay_instead, (node.target,)
            made = self.graph.call_function(
                run, (state, device_of(node), *called[-2:], *args), dict(kwargs)
            )
            made.meta = dict(node.meta)
        elif again and first_run_outputs(node):
            made = run_again(self.graph, node, arg)
        elif len(called := self._called(node, again=again)) > 1 or called[0] is not node.target:
            args = fx.node.map_arg(node.args, arg)
            kwargs = fx.node.map_arg(node.kwargs, arg)
            made = self.graph.call_function(called[0], (*called[1:], *args), dict(kwargs))
            made.meta = dict(node.meta)
        else:
            made = self.graph.node_copy(node, arg)
        self.env[node, compute.copy] = made
        for item in J.getitem_users(node):
            if again and item.args[1] in first_run_outputs(node):
                continue
            self.env[item, compute.copy] = self.graph.node_copy(item, lambda _: made)

    def _called(self, node: fx.Node, *, again: bool) -> tuple[Any, ...]:
        """What to call for a node, and what goes before its arguments."""
        if not self._look:
            return (node.target,)
        forms = forms_of(node)
        return (run_as_traced, node.target, forms) if forms else (runs_as(node.target, again),)


def _replay_as_traced(
    state: torch.Tensor, device: torch.device, op: Any, forms: Any, /, *args: Any, **kwargs: Any
) -> Any:
    """`replay` of an op whose results are looked at; no graph can name a function that is given."""
    return replay(state, device, partial(run_as_traced, op, forms), *args, **kwargs)


def _replay_instead(
    state: torch.Tensor, device: torch.device, op: Any, /, *args: Any, **kwargs: Any
) -> Any:
    """`replay` of an op in whose place a function runs, which no graph can name either."""
    return replay(state, device, runs_as(op, again=True), *args, **kwargs)


def _fake_mode(node: fx.Node) -> Any:
    for tensor in J.tensors(node):
        mode = getattr(tensor, "fake_mode", None)
        if mode is not None:
            return mode
    return torch.device("cpu")


def lower(
    step: CapturedStep, schedule: Schedule, *, look: bool = True
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The forward graph, returning outputs and kept values, and the backward graph.

    The generated code of an FX graph frees every value after its last use, so that the order of
    the schedule is all that liveness needs.

    Args:
        step: the step.
        schedule: what is computed, and when.
        look: whether results of ops that were not surveyed are looked at (`as_traced`), and plain
            functions run in the place of some ops; compilers that generate code take ops only.

    Raises:
        ExecutionError: the schedule reads what is not there.
    """
    kept = schedule.kept(step.graph)
    forward_steps = schedule.steps[: schedule.backward_start]
    backward_steps = schedule.steps[schedule.backward_start :]
    given = J.forward_inputs(step.joint)
    tangents = [p for p in step.joint.graph.find_nodes(op="placeholder") if J.is_tangent(p)]
    outputs, gradients = J.joint_outputs(step.joint, step.forward_outputs)
    (output,) = step.joint.graph.find_nodes(op="output")
    descriptions = list(output.meta.get("desc") or [None] * (len(outputs) + len(gradients)))

    states = [v for v in sorted(kept) if v in step.state_of.values()]
    forward = _Emitter(step, look)
    for p in given:
        forward.placeholder(p)
    for compute in forward_steps:
        if compute.op in step.state_ops and step.graph.ops[compute.op].outputs[0] not in states:
            continue
        forward.compute(compute)
    forward_results = [_result(forward, n) for n in outputs]

    # AOTAutograd takes numbers last from the forward graph, and gives them first to the backward
    # graph.
    sizes = [p for p in given if isinstance(p.meta.get("val"), torch.SymInt)]
    owners = [step.owner_of[v] for v in sorted(kept) if v not in states]
    numbers = [*(n for n in owners if n in forward.numbers), *sizes]
    tensors = [
        *(p for p in given if p not in sizes),
        *(n for n in owners if n not in forward.numbers),
    ]
    backward = _Emitter(step, look)
    saved_numbers = [(forward.env[n, 0], backward.placeholder(n)) for n in numbers]
    saved_tensors = [(forward.env[n, 0], backward.placeholder(n)) for n in tensors]
    for v in states:
        backward.states[v] = backward.graph.placeholder(forward.states[v].name)
        backward.states[v].meta = dict(forward.states[v].meta)
        saved_tensors.append((forward.states[v], backward.states[v]))
    for p in tangents:
        backward.placeholder(p)
    for compute in backward_steps:
        backward.compute(compute)
    newest = {
        v: 0 if v in kept else compute.copy
        for compute in schedule.steps
        for v in step.graph.ops[compute.op].outputs
    }
    made = backward.graph.output(
        tuple(backward.find(n, newest) if isinstance(n, fx.Node) else n for n in gradients)
    )
    made.meta["desc"] = descriptions[len(outputs) :]

    saved = [source for source, taken in (*saved_tensors, *saved_numbers) if _is_read(taken)]
    made = forward.graph.output((*forward_results, *saved))
    made.meta["desc"] = [
        *descriptions[: len(outputs)],
        *(saved_output_description(i) for i in range(len(saved))),
    ]
    return _module(step.joint, forward.graph), _module(step.joint, backward.graph)


def _is_read(placeholder: fx.Node) -> bool:
    """Whether anything reads the placeholder; else it goes, or it would live until the end."""
    if placeholder.users:
        return True
    placeholder.graph.erase_node(placeholder)
    return False


def _result(emitter: _Emitter, node: Any) -> Any:
    return emitter.find(node, {}) if isinstance(node, fx.Node) else node


def _module(joint: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    graph.lint()
    return fx.GraphModule(joint, graph)
