"""What a plan says of modules that run as one op."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from memfit.graph.plan import Plan
from memfit.graph.training_graph import TrainingGraph
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.opaque.call import call_numbered
from memfit.pytorch.opaque.ops import FORWARD_OPS, OPAQUE_OPS
from memfit.units import format_bytes

__all__ = ["is_opaque", "keep_calls", "with_blocks_counted", "with_units_noted"]

_INSIDE = "computed_again_inside_ns"
_TARGETS = frozenset(map(str, FORWARD_OPS))


def keep_calls(joint: fx.GraphModule) -> None:
    """Keep the calls alive that a joint graph, or one that is lowered from it, names."""
    for node in joint.graph.nodes:
        if node.target in OPAQUE_OPS:
            node.meta["memfit_call"] = call_numbered(int(str(node.args[-1])))


def is_opaque(graph: TrainingGraph) -> bool:
    """Whether a module runs as one op."""
    return any(op.target in _TARGETS for op in graph.ops)


def with_units_noted(plan: Plan, step: CapturedStep) -> Plan:
    """The plan, its notes with one on each module that runs as one op."""
    again = set(plan.schedule.recomputed_ops)
    notes = []
    inside_ns = 0
    for i, node in enumerate(step.node_of):
        if node.target not in FORWARD_OPS or i in step.state_ops:
            continue
        call = call_numbered(int(str(node.args[-1])))
        inside_ns += call.taken.again_ns
        how = "run again" if i in again else "kept"
        if call.taken.again_ns:
            how += ", with blocks computed again one by one"
        once = "; it must run once only" if call.once else ""
        notes.append(
            f"{call.name} cannot be traced and runs as one op, {how}: "
            f"{format_bytes(call.taken.saved_bytes)} for its backward pass{once}"
        )
    if not notes:
        return plan
    plan = replace(plan, notes=tuple(dict.fromkeys((*plan.notes, *notes))))
    return with_blocks_counted(plan, inside_ns)


def with_blocks_counted(plan: Plan, inside_ns: int) -> Plan:
    """The plan, what is computed again inside of opaque modules counted as such, once."""
    if not inside_ns or _INSIDE in plan.provenance:
        return plan
    return replace(
        plan,
        overhead=plan.overhead + inside_ns,
        total_cost=plan.total_cost - inside_ns,
        provenance={**plan.provenance, _INSIDE: inside_ns},
    )
