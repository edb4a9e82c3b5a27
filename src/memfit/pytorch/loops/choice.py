"""How much of a step's memory its rolled loops get, and what they hold in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memfit.errors import InfeasibleBudgetError, PlanMismatchError
from memfit.graph.plain import plain_peak_bytes
from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.capture.storage_sizes import block_bytes
from memfit.pytorch.loops.run import FORWARD_OPS, LOOP_OPS, LoopProgram
from memfit.strategies.loops import LoopPlan, fastest_plan

__all__ = ["LoopSite", "find_sites", "keeping_everything", "plan_loops", "with_loop_plans"]

_ROUNDS = 24  # halvings of the memory of the loops: 1 byte in 16 MiB
_LARGE_GRAPH = 2_000  # ops; plans of larger graphs take seconds each
_SHARES = (1.0, 0.8, 0.6, 0.4)


@dataclass(frozen=True)
class LoopSite:
    """Where a rolled loop stands in a captured step.

    Attributes:
        program: the loop.
        forward, backward: its ops (backward None where no gradient goes through it).
        held: for each tensor of `LoopProgram.held`, its value; None where nothing reads it.
    """

    program: LoopProgram
    forward: int
    backward: int | None
    held: tuple[int | None, ...]

    def sizes(self, plan: LoopPlan) -> list[int]:
        """Bytes of each tensor of `LoopProgram.held`."""
        body = self.program.body
        device = body.carry[0].device
        saved = [body.carry[i] for i in body.saved_carries]
        states = [f.size_bytes * plan.slots for f in body.carry]
        records = [f.size_bytes * plan.kept_records for f in (*saved, *body.record)]
        generator = body.sizes.state_bytes - sum(f.size_bytes for f in body.carry)
        random = (plan.slots + 1) * generator if body.random_device is not None else 0
        return [block_bytes(size, device) for size in (*states, random, *records)]

    def within(self, memory_bytes: int, tail: bool) -> LoopPlan:
        """The fastest plan of the loop alone within a size."""
        sizes = self.program.body.sizes
        return fastest_plan(
            self.program.steps,
            memory_bytes=memory_bytes,
            state_bytes=sizes.state_bytes,
            record_bytes=sizes.record_bytes,
            tail=tail,
        )

    @property
    def whole(self) -> LoopPlan:
        """The plan that repeats nothing."""
        return LoopPlan(self.program.steps, 0, self.program.steps)

    @property
    def whole_bytes(self) -> int:
        """What that holds."""
        return self.program.steps * self.program.body.sizes.record_bytes


def find_sites(step: CapturedStep, programs: Sequence[LoopProgram]) -> list[LoopSite]:
    """The rolled loops of a captured step."""
    by_key = {p.key: p for p in programs}
    forward: dict[int, int] = {}
    backward: dict[int, int] = {}
    for op_id, node in enumerate(step.node_of):
        if op_id in step.state_ops or node.target not in LOOP_OPS:
            continue
        key = int(node.args[-1])
        (forward if node.target in FORWARD_OPS else backward)[key] = op_id
    sites = []
    for key, op_id in forward.items():
        program = by_key[key]
        signature = program.body.signature
        tensors = J.tensors(step.node_of[op_id])[signature.carry + signature.ys :]
        held = [step.value_of.get(t.untyped_storage()._cdata) for t in tensors]
        sites.append(LoopSite(program, op_id, backward.get(key), tuple(held)))
    return sites


def with_loop_plans(
    step: CapturedStep, sites: Sequence[LoopSite], plans: Sequence[LoopPlan]
) -> CapturedStep:
    """The step with the sizes and costs that its loops have under these plans."""
    values, ops = list(step.graph.values), list(step.graph.ops)
    for site, plan in zip(sites, plans, strict=True):
        sizes = site.program.body.sizes
        for value, size in zip(site.held, site.sizes(plan), strict=True):
            if value is not None:
                values[value] = replace(values[value], size_bytes=size)
        ops[site.forward] = replace(
            ops[site.forward],
            cost=plan.steps * sizes.forward_ns,
            # The last state is an output, which counts from the start; until then there is another.
            workspace_bytes=sizes.forward_bytes - sizes.state_bytes,
        )
        if site.backward is None:
            continue
        again = plan.forward_steps - plan.steps
        ops[site.backward] = replace(
            ops[site.backward],
            cost=plan.steps * sizes.backward_ns + again * sizes.forward_ns,
            workspace_bytes=_backward_workspace(site, plan),
        )
    graph = replace(step.graph, values=tuple(values), ops=tuple(ops))
    return replace(step, graph=graph)


def _backward_workspace(site: LoopSite, plan: LoopPlan) -> int:
    """Most memory of the backward op beyond what it is given and returns.

    The records kept from the forward pass are given back before others are made, but count as given
    all along.
    """
    sizes = site.program.body.sizes
    kept = plan.kept_records
    begin = sizes.backward_bytes - sizes.record_bytes if kept else 0
    if kept == plan.steps:
        return begin
    records = (min(plan.leaf, plan.steps) - 1 - kept) * sizes.record_bytes
    return max(begin, records + max(sizes.backward_bytes, sizes.forward_bytes))


def keeping_everything(step: CapturedStep, programs: Sequence[LoopProgram]) -> CapturedStep:
    """The step with its rolled loops as they are where they repeat nothing."""
    sites = find_sites(step, programs)
    return replace(with_loop_plans(step, sites, [s.whole for s in sites]), loops=tuple(programs))


def plan_loops(
    step: CapturedStep,
    programs: Sequence[LoopProgram],
    decide: Callable[[TrainingGraph, TrainingGraph], Plan],
    prepared: Plan | None = None,
) -> tuple[CapturedStep, Plan]:
    """A plan of a step with rolled loops, and the step as planned; the loops' plans are set.

    The memory of the loops is searched: as much as leaves a plan for the rest of the step, and
    less where that makes the whole faster.

    Args:
        step: with costs.
        programs: its rolled loops.
        decide: the plan of a graph, given the graph of the step that repeats nothing.
        prepared: a plan made before; its loops are taken from its provenance.

    Raises:
        InfeasibleBudgetError: the step does not fit whatever the loops hold.
    """
    sites = find_sites(step, programs)
    if not sites:
        return step, decide(step.graph, step.graph)
    whole = with_loop_plans(step, sites, [s.whole for s in sites])
    if prepared is not None:
        return _prepared(step, sites, prepared)
    least = [_least(s) for s in sites]
    top = sum(s.whole_bytes for s in sites)

    def attempt(plans: Sequence[LoopPlan]) -> tuple[CapturedStep, Plan] | None:
        planned = with_loop_plans(step, sites, plans)
        try:
            made = decide(planned.graph, whole.graph)
        except InfeasibleBudgetError:
            return None
        return planned, made

    def divided(memory_bytes: int) -> list[LoopPlan]:
        shares = [memory_bytes * s.whole_bytes // max(1, top) for s in sites]
        return [s.within(share, tail=True) for s, share in zip(sites, shares, strict=True)]

    found: list[tuple[int, CapturedStep, Plan, Sequence[LoopPlan]]] = []

    def note(plans: Sequence[LoopPlan]) -> bool:
        made = attempt(plans)
        if made is not None:
            planned, plan = made
            found.append((plan.total_cost + plan.overhead, planned, plan, plans))
        return made is not None

    if not note([s.whole for s in sites]):
        low, high = 0, top
        rounds = _ROUNDS if len(step.graph.ops) < _LARGE_GRAPH else _ROUNDS // 3
        for _ in range(rounds):
            middle = (low + high) // 2
            low, high = (middle, high) if note(divided(middle)) else (low, middle)
        for share in _SHARES:
            note(divided(int(low * share)))
    if not found:
        planned = with_loop_plans(step, sites, least)
        made = decide(planned.graph, whole.graph)
        found.append((made.total_cost + made.overhead, planned, made, least))
    _, planned, made, plans = min(found, key=lambda item: item[0])
    return planned, _settle(sites, planned, made, plans, whole.graph)


def _least(site: LoopSite) -> LoopPlan:
    """The plan that holds least."""
    return LoopPlan(site.program.steps, 0, 1, tail=False)


def _settle(
    sites: Sequence[LoopSite],
    step: CapturedStep,
    made: Plan,
    plans: Sequence[LoopPlan],
    whole: TrainingGraph,
) -> Plan:
    for site, plan in zip(sites, plans, strict=True):
        site.program.plan = plan
    again = sum(
        (p.forward_steps - p.steps) * s.program.body.sizes.forward_ns
        for s, p in zip(sites, plans, strict=True)
    )
    notes = [_describe(s, p) for s, p in zip(sites, plans, strict=True)]
    provenance: Mapping[str, Any] = {
        **made.provenance,
        "loops": [[p.steps, p.slots, p.leaf, p.tail] for p in plans],
    }
    return replace(
        made,
        notes=(*made.notes, *notes),
        provenance=provenance,
        plain_peak_bytes=plain_peak_bytes(whole),
        overhead=made.overhead + again,
        total_cost=made.total_cost - again,
    )


def _describe(site: LoopSite, plan: LoopPlan) -> str:
    return (
        f"loop {site.program.name}: rolled, {plan.steps} steps; holds {plan.slots} states and the "
        f"records of {min(plan.leaf, plan.steps)} steps at once, and runs {plan.forward_steps} "
        f"steps forward ({plan.forward_steps / plan.steps:.2f} for each)"
    )


def _prepared(
    step: CapturedStep, sites: Sequence[LoopSite], prepared: Plan
) -> tuple[CapturedStep, Plan]:
    given = [LoopPlan(*one) for one in prepared.provenance.get("loops", ())]
    if [p.steps for p in given] != [s.program.steps for s in sites]:
        raise PlanMismatchError(
            f"the plan is for loops of {[p.steps for p in given]} steps, this step has loops of "
            f"{[s.program.steps for s in sites]}; plan again for these input shapes"
        )
    planned = with_loop_plans(step, sites, given)
    prepared.check_schedule(planned.graph)
    for site, plan in zip(sites, given, strict=True):
        site.program.plan = plan
    return planned, prepared
