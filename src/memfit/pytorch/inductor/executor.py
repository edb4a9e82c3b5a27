"""Executor "inductor": plans for what Inductor writes to memory, compiled by Inductor.

AOTAutograd and Inductor's passes make one joint graph; Inductor then calls a partitioner, which is
ours. It plans the fused graph (`memfit.pytorch.inductor.fusion`), expands the schedule to ATen ops,
and lowers it to the forward and the backward graph that Inductor generates code for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.pytorch.branches.sizes import refuse_data_sizes
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.compat.inductor import (
    CustomPartitionerFn,
    compile_with_inductor,
    merge_equal_nodes,
    prefers_channels_last,
)
from memfit.pytorch.cost.cost_step import call_of
from memfit.pytorch.cost.op_calls import OpCall
from memfit.pytorch.execute.lower import lower
from memfit.pytorch.inductor.barriers import keep_products_in_place
from memfit.pytorch.inductor.codegen_patch import generated_code
from memfit.pytorch.inductor.conv_layout import copied_bytes, copy_just_in_time, lay_out_gradients
from memfit.pytorch.inductor.cost import cost_fused
from memfit.pytorch.inductor.fusion import FusedStep, fuse
from memfit.pytorch.inductor.kernel_fusion import (
    WORKSPACE,
    KernelPlan,
    PassLimit,
    PeakExceeded,
    PlanChoices,
    PlanOrder,
    workspace_of,
)
from memfit.pytorch.inductor.scheduler_patch import held_by_caller, use_choices
from memfit.pytorch.pipeline import Made, Partition, Setting, Traced, read_step
from memfit.pytorch.planning.protocol import Draft, Occasion, Planning
from memfit.pytorch.prepare.for_kernels import prepare

__all__ = ["Inductor", "PlanPartitioner"]

_TRIES = 6
UNCHECKED = (
    "the compiled kernels came from Inductor's cache; their order was held to the budget when they "
    "were compiled"
)


class PlanPartitioner(CustomPartitionerFn):
    """The partitioner that Inductor calls; part of the key of its cache of compiled graphs.

    Only the digest is pickled into that key. It names the budget and the options: another budget
    compiles anew, the same one hits the cache.
    """

    def __init__(self, digest: str, partition: Partition | None = None) -> None:
        self._digest = digest
        self._partition = partition

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """The forward and the backward graph."""
        if self._partition is None:
            raise RuntimeError("a partitioner that was pickled is a cache key and cannot partition")
        return self._partition(gm, joint_inputs, **kwargs)

    def uuid(self) -> str:
        """What Inductor's cache tells partitioners apart by."""
        return f"memfit:{self._digest}"

    def __reduce__(self) -> tuple[type[PlanPartitioner], tuple[str]]:
        return PlanPartitioner, (self._digest,)

    def __deepcopy__(self, _: dict[int, object]) -> PlanPartitioner:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlanPartitioner) and other._digest == self._digest

    def __hash__(self) -> int:
        return hash(self._digest)


def _renew_views(joint: fx.GraphModule) -> None:
    """Give each view the storage of its base again; Inductor's passes replace bases only."""
    for node in joint.graph.nodes:
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        if not target.is_view or not J.tensors(node):
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
        with J.tensors(node)[0].fake_mode:
            node.meta["val"] = target(*args, **kwargs)


def _tag_new_nodes(joint: fx.GraphModule) -> None:
    """Nodes that Inductor's passes put in belong to the backward pass if what they read does."""
    for node in joint.graph.nodes:
        if (
            node.op == "call_function"
            and "partitioner_tag" not in node.meta
            and any(n.meta.get("partitioner_tag") == "is_backward" for n in node.all_input_nodes)
        ):
            node.meta["partitioner_tag"] = "is_backward"


class Inductor:
    """Runs what Inductor generates from the lowered graphs; an `Executor`.

    Plans are for fused graphs. Inductor's kernels are held to the budget as well: fusions that
    would break it are left out, and where no order of the kernels keeps it, the step is planned
    again with that much less.

    Args:
        setting: of the step.
        digest: what the plan depends on beyond the graph.
        within: the plan for a graph and a budget in bytes; None where the plan is given.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        digest: str,
        within: Callable[[TrainingGraph, int], Plan] | None = None,
    ) -> None:
        self._setting = setting
        self._digest = digest
        self._within = within
        self._kernels = KernelPlan()
        self._order = PlanOrder(digest, self._kernels)
        self._excess_bytes = 0
        self._plans: list[Plan] = []  # of the attempt that is going on

    def compile(
        self, module: fx.GraphModule, example_inputs: Sequence[Any], partition: Partition
    ) -> Callable[..., Any]:
        """See `Executor`.

        Raises:
            InfeasibleBudgetError: the code that Inductor generates takes more than the budget.
        """
        self._excess_bytes = 0
        partitioner = PlanPartitioner(self._digest, partition)
        settings = {"reorder_for_peak_memory": False, "_post_fusion_custom_pass": self._order}
        for attempt in range(_TRIES):
            self._plans.clear()
            try:
                with (
                    use_choices(PlanChoices(self._kernels), lambda: self._kernels.alive),
                    generated_code(workspace_of, self._kernels.generated),
                ):
                    return compile_with_inductor(module, example_inputs, partitioner, settings)
            except Exception as error:
                exceeded = PeakExceeded.within(error)
                if exceeded is None:
                    raise
                plan = self._plans[-1]
                # Another plan has other kernels, so that just enough is often not enough; the last
                # attempt is the smallest plan.
                if attempt + 2 == _TRIES:
                    self._excess_bytes = plan.budget_bytes
                else:
                    self._excess_bytes += exceeded.excess_bytes << attempt
                least = plan.peak_bytes <= plan.smallest_feasible_budget_bytes
                if least or self._within is None or attempt + 1 == _TRIES:
                    raise _too_small(plan, exceeded.excess_bytes) from None
        raise AssertionError("the last attempt raises or returns")

    def capture(self, joint: fx.GraphModule, forward_outputs: int, traced: Traced) -> CapturedStep:
        """See `Executor`."""
        merge_equal_nodes(joint)
        refuse_data_sizes(joint)
        _renew_views(joint)
        _tag_new_nodes(joint)
        prepare(joint)
        return read_step(joint, forward_outputs, traced, self._setting, replay=False)

    def make(
        self, step: CapturedStep, traced: Traced, planning: Planning, occasion: Occasion
    ) -> Made:
        """See `Executor`."""
        fused, plan = self._planned(fuse(step), planning, occasion)
        budget_bytes = plan.budget_bytes
        if self._excess_bytes and self._within is not None:
            least = plan.smallest_feasible_budget_bytes
            plan = self._within(fused.graph, max(budget_bytes - self._excess_bytes, least))
            plan = replace(plan, budget_bytes=budget_bytes)
        plan.check_graph(fused.graph)
        copies = prefers_channels_last(step.joint)
        for op, i in zip(fused.graph.ops, fused.ops, strict=True):
            node = step.node_of[i]
            copied = copied_bytes(node) if copies else 0
            node.meta[WORKSPACE] = max(0, op.workspace_bytes - copied)
        modules = lower(step, fused.expand(plan.schedule), look=False)
        for module in modules:
            keep_products_in_place(module)
            if copies:
                copy_just_in_time(module)
        if copies:
            lay_out_gradients(modules[1], J.primals(step.joint))
        codes = (modules[0].code, modules[1].code)
        forward, backward = _limits(fused, plan, budget_bytes)
        forward = replace(forward, inputs=_inputs(modules[0]))
        backward = replace(backward, inputs=_inputs(modules[1]))
        self._kernels.begin(codes, forward, backward)
        self._plans.append(plan)
        return Made(fused.graph, plan, modules)

    def _planned(
        self, fused: FusedStep, planning: Planning, occasion: Occasion
    ) -> tuple[FusedStep, Plan]:
        setting = self._setting

        def costed(fused: FusedStep, times: Mapping[int, int] | None) -> FusedStep:
            return cost_fused(fused, setting.cost, setting.progress, times)

        def every() -> list[OpCall]:
            return [call_of(node) for node in fused.step.node_of]

        def calls() -> list[OpCall]:
            known = every()
            return [known[op] for op in fused.ops]

        made = planning.plan(Draft(fused, costed, calls, every), occasion)
        return made.step, made.plan

    def told(self, plan: Plan) -> Plan:
        """See `Executor`: what was found of the kernels."""
        notes = plan.notes
        found: dict[str, Any] = {}
        if len(self._kernels.peak_bytes) == 2:
            peak = max(
                plan.budget_bytes - limit.limit_bytes + self._kernels.peak_bytes[backward]
                for backward, limit in self._kernels.limits.items()
            )
            found = {"kernels_peak_bytes": peak}
        else:
            notes = (*notes, UNCHECKED)
        return replace(plan, notes=notes, provenance={**plan.provenance, **found})


def _too_small(plan: Plan, excess_bytes: int) -> InfeasibleBudgetError:
    return InfeasibleBudgetError(
        budget_bytes=plan.budget_bytes,
        minimum_bytes=plan.budget_bytes + excess_bytes,
        binding_op=None,
        detail="the peak of the code that Inductor generates",
    )


def _limits(fused: FusedStep, plan: Plan, budget_bytes: int) -> tuple[PassLimit, PassLimit]:
    """What each pass may take beside what is alive throughout the step."""
    graph = fused.graph
    limit = budget_bytes - graph.resident_bytes
    kept = plan.schedule.kept(graph)
    outputs = {
        i for i, v in enumerate(graph.values) if v.kind is ValueKind.ACTIVATION and v.is_output
    }
    held = {fused.step.owner_of[fused.values[v]].name for v in outputs & kept}
    # The gradient that `loss.backward()` starts from is the caller's.
    held |= {n.name for n in fused.step.joint.graph.nodes if J.is_tangent(n) and _is_scalar(n)}
    beside = sum(graph.values[v].size_bytes for v in outputs - kept)
    return PassLimit(limit), PassLimit(limit - beside, frozenset(held))


def _inputs(module: fx.GraphModule) -> tuple[tuple[str, tuple[str, int]], ...]:
    """Inputs of a pass that are freed after their last use: storages, by their first input's name,
    and these storages' bytes."""
    first: dict[int, str | None] = {}
    found = []
    for node in module.graph.find_nodes(op="placeholder"):
        for storage, size in J.storages(node).items():
            owner = first.setdefault(storage, None if held_by_caller(node.name) else node.name)
            if owner is not None:
                found.append((node.name, (owner, size)))
    return tuple(found)


def _is_scalar(node: fx.Node) -> bool:
    return all(t.dim() == 0 for t in J.tensors(node))
