"""What a plan says of branches and sizes that depend on data."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from memfit.graph.plan import Plan
from memfit.pytorch.branches.ops import CHECKS, is_branch
from memfit.pytorch.compat.eager import tree_leaves
from memfit.pytorch.compat.symbols import sized_by_data

__all__ = ["is_checked", "with_branches_noted"]


def is_checked(joint: fx.GraphModule) -> bool:
    """Whether a step may end because a branch goes another way, or a size is too large."""
    return any(node.target in CHECKS for node in joint.graph.nodes)


def with_branches_noted(plan: Plan, joint: fx.GraphModule) -> Plan:
    """The plan, its notes with one on branches on data, and one on sizes that depend on data."""
    nodes = joint.graph.find_nodes
    branches = sum(
        is_branch(str(node.args[-1]))
        for op in CHECKS
        for node in nodes(op="call_function", target=op)
    )
    sized = sum(
        node.op == "call_function" and any(map(sized_by_data, tree_leaves(node.meta.get("val"))))
        for node in joint.graph.nodes
    )
    notes = list(plan.notes)
    if branches:
        many = "a branch on data is" if branches == 1 else f"{branches} branches on data are"
        notes.append(
            f"{many} planned as they went in one step; each step checks that they still do"
        )
    if sized:
        notes.append(
            f"the results of {sized} ops have sizes that depend on data, and count at the largest "
            "that they can be; memfit.bound_size says that they are smaller"
        )
    known = tuple(dict.fromkeys(notes))
    return plan if known == plan.notes else replace(plan, notes=known)
