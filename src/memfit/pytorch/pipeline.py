"""From a traced step to a captured one, and what an `Executor` makes of it.

Dynamo's callback (`backend`) calls these in turn: `prepare_module` on Dynamo's graph, then, on
AOTAutograd's joint graph, the executor's `capture` and `make`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx, nn

from memfit.errors import UsageError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph, Value, ValueKind
from memfit.planners.base import Progress
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep, read_joint
from memfit.pytorch.capture.progress import mark_progress
from memfit.pytorch.capture.stored_outputs import StoredOutputs
from memfit.pytorch.cost.cost_step import cost_step
from memfit.pytorch.loops.rewrite import rewrite_loops
from memfit.pytorch.loops.run import LoopProgram
from memfit.pytorch.planning.protocol import Occasion, Planning
from memfit.pytorch.prepare.foreach import write_views_one_by_one
from memfit.pytorch.prepare.unnamed_writes import name_writes
from memfit.pytorch.ranks.replication import Replication

__all__ = [
    "Executor",
    "Made",
    "Modules",
    "Partition",
    "Setting",
    "Traced",
    "parameters_of",
    "prepare_module",
    "priced",
    "read_step",
    "traced_inputs",
]

Modules = tuple[fx.GraphModule, fx.GraphModule]
"""The forward and the backward graph."""

Partition = Callable[..., Modules]
"""What AOTAutograd and Inductor call with a joint graph."""


@dataclass(frozen=True)
class Setting:
    """What holds for every compilation of one step.

    Attributes:
        name: of the model, for messages.
        resident: bytes alive all through the step, by kind, read by the graph or not.
        cost: `measured` or `analytic`.
        progress: called with a label and the share done.
        accumulate: every `.grad` is there from the start.
        replication: how the module runs on several devices.
        loops: what becomes of `scan` and `while_loop`.
        fullgraph: what cannot be traced is an error, not an opaque op.
        branches: branches on data are traced as they went.
    """

    name: str
    resident: Mapping[ValueKind, int]
    cost: str = "measured"
    progress: Progress | None = None
    accumulate: bool = False
    replication: Replication = field(default_factory=Replication)
    loops: str = "unroll"
    fullgraph: bool = True
    branches: bool = False


@dataclass(frozen=True)
class Traced:
    """What is known of one graph of Dynamo's before AOTAutograd takes it.

    Attributes:
        kinds: of the inputs that are parameters or buffers, by their position.
        leaves: positions of the inputs whose gradients autograd accumulates.
        input_bytes: what the other inputs take.
        programs: the rolled loops.
        stored: the outputs that forward stores; None where there are none.
    """

    kinds: Mapping[int, ValueKind]
    leaves: Set[int]
    input_bytes: int = 0
    programs: Sequence[LoopProgram] = ()
    stored: StoredOutputs | None = None


@dataclass(frozen=True)
class Made:
    """A planned step as code to run.

    Attributes:
        graph: what was planned.
        plan: its plan.
        modules: the forward and the backward graph.
        held_peak_bytes: simulated peak of the step while `.grad` is there from the start; 0 where
            it is not known.
        behind: outputs of the step through which alone an input is reached, by its gradient's node.
        believed: calls whose results are looked at when they have run.
    """

    graph: TrainingGraph
    plan: Plan
    modules: Modules
    held_peak_bytes: int = 0
    behind: Mapping[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    believed: Set[Any] = frozenset()


class Executor(Protocol):
    """Runs a planned step: PyTorch's kernels op by op, or code that is generated from it."""

    def capture(self, joint: fx.GraphModule, forward_outputs: int, traced: Traced) -> CapturedStep:
        """The step that a joint graph is."""
        ...

    def make(
        self, step: CapturedStep, traced: Traced, planning: Planning, occasion: Occasion
    ) -> Made:
        """Have the step planned, and lower it.

        Raises:
            InfeasibleBudgetError: no plan fits.
        """
        ...

    def compile(
        self, module: fx.GraphModule, example_inputs: Sequence[Any], partition: Partition
    ) -> Callable[..., Any]:
        """The code of Dynamo's graph, split by `partition`, which calls `capture` and `make`."""
        ...

    def told(self, plan: Plan) -> Plan:
        """The plan, with what only the code's compilation has shown."""
        ...


def traced_inputs(
    example_inputs: Sequence[Any],
) -> tuple[dict[int, ValueKind], frozenset[int]]:
    """Kinds of the inputs that are parameters or buffers, and positions of the leaves."""
    kinds = {}
    for i, example in enumerate(example_inputs):
        if isinstance(example, nn.Parameter):
            kinds[i] = ValueKind.PARAMETER
        elif isinstance(example, torch.Tensor) and getattr(
            example, "_dynamo_static_input_type", None
        ):
            kinds[i] = ValueKind.BUFFER
    leaves = frozenset(
        i
        for i, x in enumerate(example_inputs)
        if isinstance(x, torch.Tensor) and x.requires_grad and x.is_leaf
    )
    return kinds, leaves


def prepare_module(module: fx.GraphModule, setting: Setting) -> list[LoopProgram]:
    """Make Dynamo's graph one that can be read: loops rolled or unrolled, writes named.

    Args:
        module: Dynamo's graph; changed in place.
        setting: of the step.

    Returns:
        The rolled loops.

    Raises:
        UsageError: rolled loops were asked for where ranks share a plan.
    """
    loops = setting.loops
    if setting.replication.share and loops == "roll":
        raise UsageError(
            'loops="roll" makes plans that ranks do not share; add same_plan=False, '
            'or use loops="unroll"'
        )
    write_views_one_by_one(module)
    name_writes(module)
    programs = rewrite_loops(
        module,
        "unroll" if setting.replication.share else loops,
        lambda step: priced(step, setting),
    )
    if setting.progress is not None:
        mark_progress(module, setting.progress)
    return programs


def parameters_of(joint: fx.GraphModule, traced: Traced) -> set[fx.Node]:
    """The placeholders of a joint graph that are parameters."""
    kinds = J.kinds_of(joint, traced.kinds)
    return {p for p, kind in kinds.items() if kind is ValueKind.PARAMETER}


def read_step(
    joint: fx.GraphModule,
    forward_outputs: int,
    traced: Traced,
    setting: Setting,
    *,
    replay: bool = True,
) -> CapturedStep:
    """A joint graph, read into a graph for planners, with all that is resident.

    Args:
        joint: the joint graph.
        forward_outputs: number of the step's outputs.
        traced: what it was traced from.
        setting: of the step.
        replay: whether random numbers are drawn again from the state they were drawn from.
    """
    if traced.stored is not None:
        traced.stored.read(joint, forward_outputs)
    kinds = J.kinds_of(joint, traced.kinds)
    places = zip(J.primals(joint), J.positions(joint), strict=True)
    leaves = {p for p, i in places if i in traced.leaves}
    J.own_gradients(joint, forward_outputs, parameters_of(joint, traced) | leaves)

    def read(extra: Sequence[Value]) -> CapturedStep:
        return read_joint(joint, forward_outputs, kinds, extra, name=setting.name, replay=replay)

    first = read(())
    extra = []
    inputs = traced.input_bytes + setting.resident.get(ValueKind.INPUT, 0)
    for kind, size in {**setting.resident, ValueKind.INPUT: inputs}.items():
        seen = sum(v.size_bytes for v in first.graph.values if v.kind is kind)
        if size > seen and kind is not ValueKind.ACCUMULATED:
            extra.append(Value(f"other {kind.value}s", size - seen, kind))
    return read(extra) if extra else first


def priced(
    step: CapturedStep, setting: Setting, times: Mapping[int, int] | None = None
) -> CapturedStep:
    """The step with costs; given estimated times, workspaces alone are measured."""
    return cost_step(step, setting.cost, setting.progress, times=times)
