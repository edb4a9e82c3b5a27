"""Joint FX graph -> TrainingGraph, with the tables that lead back."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from memfit.graph.training_graph import Estimate, Op, Phase, TrainingGraph, Value, ValueKind
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.effects import (
    draws_from_own_generator,
    has_unnamed_effect,
    may_have_effect,
)
from memfit.pytorch.capture.first_outputs import first_run_outputs, read_again
from memfit.pytorch.capture.rng import device_of, state_bytes
from memfit.pytorch.capture.scalars import is_arithmetic, is_number

__all__ = ["CapturedStep", "read_joint"]


@dataclass(frozen=True)
class CapturedStep:
    """A training step as captured, and how its graph maps to FX nodes.

    Attributes:
        graph: ops without costs until `with_costs`.
        joint: the joint forward-and-backward graph.
        forward_outputs: number of outputs of the forward pass.
        node_of: for each op, its FX node (for the op that reads a random generator's state, the
            node that draws).
        owner_of: for each value that a node writes, the node whose tensor holds its storage, or
            that yields it, where it is a number.
        value_of: storage identity -> value.
        state_ops: ids of the ops that read a random generator's state.
        state_of: for each op that draws, the value that holds the state it draws from.
        loops: the rolled loops of the graph (`loop_run.LoopProgram`).
    """

    graph: TrainingGraph
    joint: fx.GraphModule
    forward_outputs: int
    node_of: tuple[fx.Node, ...]
    owner_of: Mapping[int, fx.Node]
    value_of: Mapping[int, int]
    state_ops: frozenset[int]
    state_of: Mapping[int, int]
    loops: tuple[Any, ...] = ()

    def with_costs(
        self,
        costs: Sequence[tuple[int, int]],
        estimates: Mapping[int, Estimate] | None = None,
    ) -> CapturedStep:
        """The same step with (time_ns, workspace_bytes) for each op.

        Args:
            costs: of each op.
            estimates: ids of the ops whose workspace is an upper bound, and why.
        """
        return replace(self, graph=self.graph.with_costs(costs, estimates))


@dataclass
class _Draft:
    node: fx.Node
    name: str
    target: str
    reads: list[int]
    writes: list[int]
    recomputable: bool
    forward: bool
    state: bool = False


def read_joint(
    joint: fx.GraphModule,
    forward_outputs: int,
    kinds: Mapping[fx.Node, ValueKind],
    extra: Sequence[Value] = (),
    name: str = "model",
    *,
    replay: bool = True,
) -> CapturedStep:
    """Read a joint graph.

    Args:
        joint: the graph; `joint.normalise` has been applied.
        forward_outputs: number of outputs of the forward pass.
        kinds: of the forward pass's placeholders (`joint.kinds_of`); others are inputs.
        extra: resident values that the graph does not read (other parameters, optimizer state).
        name: for messages.
        replay: whether the executor can run a random op again from its generator's state. Where it
            cannot, random ops run once.
    """
    values: list[Value] = []
    value_of: dict[int, int] = {}
    owner_of: dict[int, fx.Node] = {}
    forward = J.forward_nodes(joint, forward_outputs)
    changed = J.written_inputs(joint, forward_outputs)
    outputs, gradients = J.joint_outputs(joint, forward_outputs)
    returned = {n for n in (*outputs, *gradients) if isinstance(n, fx.Node)}
    kept_storages = J.handed_to_inputs(joint)
    for n in (*outputs, *gradients):
        kept_storages.update(J.storages(n) if isinstance(n, fx.Node) else ())

    def new_value(storage: int, size: int, value: Value) -> int:
        value_of[storage] = len(values)
        values.append(replace(value, size_bytes=size))
        return value_of[storage]

    changed_values: set[int] = set()
    for node in joint.graph.find_nodes(op="placeholder"):
        kind = kinds.get(node, ValueKind.INPUT)
        if J.is_tangent(node):
            kind = ValueKind.TANGENT
        for storage, size in J.storages(node).items():
            if storage not in value_of:
                new_value(storage, size, Value(node.name, 0, kind))
            if node in changed:
                changed_values.add(value_of[storage])
    values.extend(extra)

    drafts: list[_Draft] = []
    numbers: dict[fx.Node, set[int]] = {}  # values of numbers that a node reads, or is
    token: int | None = None
    backward_token: int | None = None
    effect_token: int | None = None  # of the last effect, after which others and writes come
    readers: dict[int, list[int]] = {}
    state_of_node: dict[fx.Node, int] = {}
    first_run: dict[int, _Draft] = {}  # values that only the first run of an op gives
    for node in joint.graph.nodes:
        if node.op == "get_attr":
            for storage, size in J.storages(node).items():
                if storage not in value_of:
                    new_value(storage, size, Value(node.name, 0, ValueKind.BUFFER))
            continue
        if node.op != "call_function":
            continue
        read_numbers = {v for a in node.all_input_nodes for v in numbers.get(a, ())}
        if node.target is operator.getitem or is_arithmetic(node):
            numbers.setdefault(node, set()).update(read_numbers)
            for storage in J.storages(node):
                if owner_of.get(value_of[storage]) is node.args[0]:
                    owner_of[value_of[storage]] = node
            continue
        fresh = {s: b for s, b in J.storages(node).items() if s not in value_of}
        effect = may_have_effect(node.target)
        if not fresh and not effect and J.tensors(node):
            numbers[node] = read_numbers
            continue  # a view: it costs nothing and pins its base
        in_forward = node in forward
        kind = ValueKind.ACTIVATION if in_forward else ValueKind.GRADIENT
        reads = sorted(
            {value_of[s] for a in node.all_input_nodes for s in J.storages(a)} | read_numbers
        )
        writes = []
        for storage, size in fresh.items():
            keeps = storage in kept_storages
            value = new_value(storage, size, Value(node.name, 0, kind, is_output=keeps))
            owner_of[value] = node
            writes.append(value)
        for number in (n for n in (node, *J.getitem_users(node)) if is_number(n)):
            numbers[number] = {len(values)}
            owner_of[len(values)] = number
            writes.append(len(values))
            values.append(Value(number.name, 0, kind, is_output=number in returned))
        old = changed_values.intersection(reads)
        yields_number = len(writes) > len(fresh)  # what was decided by it stays decided
        again = {value_of[s] for a in read_again(node) for s in J.storages(a)} if old else set()
        recomputable = not effect and not yields_number and not changed_values & again
        recomputable = recomputable and not draws_from_own_generator(node)
        if old and effect:  # what is written in place has been read by all that read it before
            reads = sorted({*reads, *(t for v in old for t in readers.get(v, ()))})
        elif old and in_forward:
            for v in old:
                readers.setdefault(v, []).append(len(values))
            writes.append(len(values))
            values.append(Value(f"{node.name}.read", 0, ValueKind.ACTIVATION))
        random = J.is_random(node)
        if random and in_forward and not replay:
            if token is not None:
                reads = sorted([*reads, token])
            token = len(values)
            values.append(Value(f"{node.name}.order", 0, ValueKind.ACTIVATION))
            writes = [*writes, token]
            recomputable = False
        elif random and in_forward:
            state = len(values)
            values.append(
                Value(f"{node.name}.rng_state", state_bytes(device_of(node)), ValueKind.ACTIVATION)
            )
            before = [] if token is None else [token]
            drafts.append(
                _Draft(
                    node,
                    f"{node.name}.rng_state",
                    "memfit.rng_state",
                    before,
                    [state],
                    False,
                    True,
                    state=True,
                )
            )
            state_of_node[node] = state
            token = len(values)
            values.append(Value(f"{node.name}.order", 0, ValueKind.ACTIVATION))
            reads = sorted([*reads, state])
            writes = [*writes, token]
        elif random:  # backward draws keep their order too
            if backward_token is not None:
                reads = sorted([*reads, backward_token])
            backward_token = len(values)
            values.append(Value(f"{node.name}.order", 0, ValueKind.GRADIENT))
            writes = [*writes, backward_token]
        if effect and in_forward and not random:
            if effect_token is not None:
                reads = sorted({*reads, effect_token})
            if has_unnamed_effect(node.target):  # not a write, whose readers are known
                effect_token = len(values)
                values.append(Value(f"{node.name}.order", 0, ValueKind.ACTIVATION))
                writes = [*writes, effect_token]
        # Only what runs once can read what an op gives once.
        sources = [first_run[v] for v in reads if v in first_run]
        if sources and in_forward:
            recomputable = False
        elif sources:
            for source in sources:
                source.recomputable = False
        draft = _Draft(node, node.name, str(node.target), reads, writes, recomputable, in_forward)
        drafts.append(draft)
        outputs_of = J.tensors(node)
        for at in first_run_outputs(node):
            first_run[value_of[outputs_of[at].untyped_storage()._cdata]] = draft
    drafts = [d for d in drafts if d.forward] + _late_constants(
        [d for d in drafts if not d.forward], values
    )
    ops = tuple(
        Op(
            name=d.name,
            target=d.target,
            phase=Phase.FORWARD if d.forward else Phase.BACKWARD,
            inputs=tuple(d.reads),
            outputs=tuple(d.writes),
            cost=0,
            recomputable=d.recomputable and d.forward,
            source=J.source_of(d.node),
        )
        for d in drafts
    )
    graph = TrainingGraph(tuple(values), ops, cost_unit="ns", name=name)
    return CapturedStep(
        graph=graph,
        joint=joint,
        forward_outputs=forward_outputs,
        node_of=tuple(d.node for d in drafts),
        owner_of=owner_of,
        value_of=value_of,
        state_ops=frozenset(i for i, d in enumerate(drafts) if d.state),
        state_of={
            i: state_of_node[d.node]
            for i, d in enumerate(drafts)
            if not d.state and d.node in state_of_node
        },
    )


def _late_constants(drafts: list[_Draft], values: Sequence[Value]) -> list[_Draft]:
    """Backward ops that depend on no tangent stand right before their first consumer."""
    writer = {v: d.name for d in drafts for v in d.writes}
    by_name = {d.name: d for d in drafts}
    constant: set[str] = set()
    for d in drafts:
        if not any(
            values[v].kind is ValueKind.TANGENT or (v in writer and writer[v] not in constant)
            for v in d.reads
        ):
            constant.add(d.name)
    placed: dict[str, _Draft] = {}

    def place(d: _Draft) -> None:
        for v in d.reads:
            if writer.get(v) in constant and writer[v] not in placed:
                place(by_name[writer[v]])
        placed[d.name] = d

    for d in drafts:
        if d.name not in constant:
            place(d)
    for d in drafts:
        if d.name not in placed:
            place(d)
    return list(placed.values())
