"""Sizes that depend on data, where they are not taken."""

from __future__ import annotations

from torch import fx

from memfit.pytorch.compat.eager import tree_leaves
from memfit.pytorch.compat.symbols import DependsOnData, sized_by_data

__all__ = ["refuse_data_sizes"]


def refuse_data_sizes(joint: fx.GraphModule) -> None:
    """Refuse a step with such sizes to an executor that generates code.

    Raises:
        DependsOnData: there is one.
    """
    for node in joint.graph.nodes:
        if any(map(sized_by_data, tree_leaves(node.meta.get("val")))):
            raise DependsOnData(
                f'a size of {node.name} depends on the data; use executor="eager-graph", which '
                "counts it at its bound"
            )
