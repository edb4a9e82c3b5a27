"""One budget for all the graphs that Dynamo makes of one training step.

Where Dynamo cannot trace on (a graph break), a step is compiled as several graphs, each when it is
first reached. By then the forward passes of the graphs before it have run, and hold what they keep
for their backward passes, which come after this graph's. So while a graph runs, the graphs before
it hold their parameters, buffers, outputs and kept values; and while a graph runs backward, the
graphs after it hold their parameters, buffers and finished gradients.

A graph that ends in a break is planned before the graphs after it are known. It is given half of
what is left of the budget above its own parameters, buffers and inputs, or the least that it can
run in where that is more, and leaves the rest to them. The last graph gets all that is left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from memfit.errors import InfeasibleBudgetError
from memfit.graph import TrainingGraph, ValueKind
from memfit.plan import Plan
from memfit.units import format_bytes

__all__ = ["BudgetWarning", "GraphShare", "StepBudget"]

DecideWithin = Callable[[TrainingGraph, int], Plan]


class BudgetWarning(UserWarning):
    """A budget that cannot be met by a step of several graphs, or that does not apply."""


@dataclass(frozen=True, slots=True)
class GraphShare:
    """What one graph of a step takes.

    Attributes:
        own_bytes: its parameters and buffers.
        held_bytes: what it holds between its forward and its backward pass beyond these: kept
            values and outputs.
        gradient_bytes: gradients that it hands back.
        peak_bytes: the peak of its plan.
        break_line: source line of the graph break at its end, None where it ends without one.
    """

    own_bytes: int
    held_bytes: int
    gradient_bytes: int
    peak_bytes: int
    break_line: str | None

    @classmethod
    def of(cls, graph: TrainingGraph, plan: Plan, break_line: str | None) -> GraphShare:
        """The share of a planned graph."""
        values = graph.values
        kept = plan.schedule.kept(graph)
        outputs = {
            i for i, v in enumerate(values) if v.kind is ValueKind.ACTIVATION and v.is_output
        }
        return cls(
            own_bytes=_own_bytes(graph),
            held_bytes=sum(values[v].size_bytes for v in kept | outputs),
            gradient_bytes=sum(
                v.size_bytes for v in values if v.kind is ValueKind.GRADIENT and v.is_output
            ),
            peak_bytes=plan.peak_bytes,
            break_line=break_line,
        )


def _own_bytes(graph: TrainingGraph) -> int:
    kinds = (ValueKind.PARAMETER, ValueKind.BUFFER)
    return sum(v.size_bytes for v in graph.values if v.kind in kinds)


@dataclass
class StepBudget:
    """The graphs of one step, in the order in which they run forward.

    Attributes:
        shares: what each graph takes, by the key of its code; a graph that is compiled again (for
            another shape) takes the place of its older version.
    """

    shares: dict[object, GraphShare] = field(default_factory=dict)

    def held_for(self, key: object) -> int:
        """Bytes that the other graphs of the step hold while this one runs, as far as known."""
        keys = list(self.shares)
        at = keys.index(key) if key in self.shares else len(keys)
        before = sum(self.shares[k].own_bytes + self.shares[k].held_bytes for k in keys[:at])
        after = sum(
            self.shares[k].own_bytes + self.shares[k].gradient_bytes for k in keys[at + 1 :]
        )
        return before + after

    def plan(
        self,
        key: object,
        graph: TrainingGraph,
        budget_bytes: int,
        break_line: str | None,
        within: DecideWithin,
    ) -> Plan:
        """A plan for one of the graphs, with what the others leave of the budget.

        Where that is not enough, the graph gets the smallest plan there is, with a warning that
        names the source line of the graph break.

        Args:
            key: the code that the graph is of.
            graph: the graph.
            budget_bytes: the budget of the whole step.
            break_line: source line of the graph break that ends the graph, if one does.
            within: the plan for a graph and a budget.

        Raises:
            InfeasibleBudgetError: the budget is too small for the graph, though it is the only one.
        """
        held = self.held_for(key)
        left = budget_bytes - held
        wanted = left
        if break_line is not None:
            wanted = left - max(0, left - graph.resident_bytes) // 2
        try:
            plan = within(graph, wanted) if wanted > 0 else None
            least = 0
        except InfeasibleBudgetError as error:
            if not held and error.minimum_bytes > left:
                raise InfeasibleBudgetError(
                    budget_bytes=budget_bytes,
                    minimum_bytes=error.minimum_bytes,
                    binding_op=error.binding_op,
                ) from None
            plan, least = None, error.minimum_bytes
        if plan is None:
            plan = within(graph, least or _least(graph, within))
        self.shares[key] = GraphShare.of(graph, plan, break_line)
        self._warn(budget_bytes)
        return plan

    def _warn(self, budget_bytes: int) -> None:
        """Warn where a graph and what the others hold beside it are over the budget."""
        over = [(s.peak_bytes + self.held_for(k), k) for k, s in self.shares.items()]
        need, key = max(over, key=lambda item: item[0])
        if need <= budget_bytes or len(self.shares) < 2:
            return
        lines = [s.break_line for s in self.shares.values() if s.break_line is not None]
        where = f"the graph break at {lines[-1]}" if lines else "a graph break"
        held = self.held_for(key)
        warnings.warn(
            f"budget {format_bytes(budget_bytes)} cannot be met: {where} splits the step into "
            f"{len(self.shares)} graphs, one of which takes {format_bytes(need - held)} while the "
            f"others hold {format_bytes(held)}; remove the break or raise the budget to "
            f"{need} bytes",
            BudgetWarning,
            stacklevel=2,
        )


def _least(graph: TrainingGraph, within: DecideWithin) -> int:
    """The smallest budget that a graph can run in."""
    try:
        return within(graph, 1).peak_bytes
    except InfeasibleBudgetError as error:
        return error.minimum_bytes
