"""The integer program of the bound: which values are carried, which ops run again, row by row.

Rows of a schedule are joined to *spans*: a span ends at one of the chosen rows. In a span a,

    S[a,v] = 1  a copy of v is there when the span begins and is read in it or later,
    K[a,v] = 1  such a copy is still there when the span's last backward op runs,
    R[a,i] = 1  op i runs again in the span, once or more,

and least Σ cost(i)·R[a,i] is wanted. With p(v) the op that makes v:

    (1)  K[a,v] ≤ S[a,v]
    (2)  S[a+1,v] ≤ K[a,v] + R[a,p(v)]              what is carried on was there or is made
    (3)  R[a,i] ≤ S[a,v] + R[a,p(v)]                for each v that i reads
    (4)  1 ≤ S[a,v] + R[a,p(v)]                     for each v that a backward op of the span reads;
         1 ≤ K[a,v] + R[a,p(v)]                     where that op is the span's last
    (5)  memory while a backward op of the span runs: for the last one of the span, what is always
         alive, what it reads, and Σ size(v)·S[a+1,v] over all other v; for one inside, the same
         with K[a,v]
    (6)  memory while i runs again: what is always alive in some row of the span, what i reads and
         writes and its workspace where R[a,i] = 1, and Σ size(v)·K[a,v] over all other v
    (7)  memory of the forward pass: what is always alive and Σ size(v)·S[first,v] over the v made
         before that no later forward op reads

These are the variables of Jain et al., "Checkmate" (MLSys 2020), with rows for the backward ops
alone (nothing runs twice in our forward passes), rows joined, and memory left out that depends on
the order of runs within a span. Joining rows forgets constraints: the bound stays valid and gets
weaker.

Sizes and costs are rounded down to whole numbers of a grain, which keeps all coefficients exact.

Why no schedule of the order that fits is cheaper than the optimum: read S, K and R off the
schedule, as they are defined. They obey all constraints, and its overhead is no less than Σ
cost(i)·R[a,i], because each op that runs again in a span is paid for there once or more.

- (1) is the definition. (2): a copy that is there when span a + 1 begins was made in span a or
  before it, and then it was there at the last backward op of a. (3), (4): what is read was there
  when the span began, and is read in it, or was made in it; where the last backward op reads a
  copy from before the span, that copy is K.
- (5): the simulator counts a copy from the step that makes it to the last one that reads it.
  Gradients, outputs and tangents live as long in every schedule of the order. What the op reads
  is alive. The v with S[a+1,v] = 1 were made before and are read after the span's last op, so
  they are alive too; so are those with K[a,v] = 1 while anything in the span runs.
- (6): likewise, with what i reads and writes. Its outputs are new copies, so they count beside a
  copy of the same v that is carried through.
- (7): the forward pass runs each op once, so what is alive is known but for what is kept.
- An op is left out of a span (no R) where nothing that it makes can be of use from there on, even
  to make something else, and a value likewise (no S, no K): without such runs the schedule is a
  schedule still, takes no more memory and costs no more. A value of no bytes may as well be
  there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from memfit.strategies.row_memory import RowMemory

__all__ = ["BinaryProgram", "SpanProgram", "build_program"]

_FINEST = 1 << 20
"""Budget and total cost are at most so many grains, so that sums stay far inside a double."""

Term = int | Literal["one"] | None
"""A variable, 1 or 0."""


@dataclass
class BinaryProgram:
    """Least Σ cost·x with lower ≤ Σ coefficient·x ≤ upper in each row, all x 0 or 1.

    Attributes:
        costs: by variable.
        rows: of each constraint the variables with coefficients, its lower and its upper limit;
            None for no limit.
        contradiction: some constraint cannot be met at all.
    """

    costs: list[int] = field(default_factory=list)
    rows: list[tuple[list[tuple[int, int]], int | None, int | None]] = field(default_factory=list)
    contradiction: bool = False

    def variable(self, cost: int = 0) -> int:
        """A new variable."""
        self.costs.append(cost)
        return len(self.costs) - 1

    def constrain(
        self, terms: Sequence[tuple[int, Term]], lower: int | None, upper: int | None
    ) -> None:
        """Add lower ≤ Σ coefficient·term ≤ upper; left out where it always holds."""
        constant = sum(c for c, term in terms if term == "one")
        sums: dict[int, int] = {}
        for c, term in terms:
            if isinstance(term, int):
                sums[term] = sums.get(term, 0) + c
        row = [(x, c) for x, c in sums.items() if c]
        least = sum(min(c, 0) for _, c in row)
        most = sum(max(c, 0) for _, c in row)
        low = None if lower is None or least >= lower - constant else lower - constant
        high = None if upper is None or most <= upper - constant else upper - constant
        if (low is not None and most < low) or (high is not None and least > high):
            self.contradiction = True
        elif low is not None or high is not None:
            self.rows.append((row, low, high))


@dataclass(frozen=True)
class SpanProgram:
    """The program of one choice of rows.

    Attributes:
        program: the binary program.
        ends: numbers of the spans' last rows, ascending.
        carried_in: S: for each span, the term of each value that it may be given.
        runs: R: for each span, the variable of each op that may run again in it.
        through: K: for each span, the term of each value that may be carried through it.
        cost_grain: the unit of the program's costs, in the graph's cost unit.
    """

    program: BinaryProgram
    ends: tuple[int, ...]
    carried_in: tuple[dict[int, Term], ...]
    through: tuple[dict[int, Term], ...]
    runs: tuple[dict[int, int], ...]
    cost_grain: int


def grain(numbers: Sequence[int], most: int) -> int:
    """The greatest common divisor, or where `most` were too many of it a coarser unit."""
    common = math.gcd(*numbers) or 1
    return common if most // common <= _FINEST else max(1, -(-most // _FINEST))


class _Builder:
    def __init__(self, memory: RowMemory, ends: Sequence[int], budget_bytes: int) -> None:
        self.memory, self.carried = memory, memory.carried
        self.graph = self.carried.graph
        self.ends = tuple(ends)
        self.starts = [1, *(end + 1 for end in ends[:-1])]
        self.budget = budget_bytes
        self.values = [v for v in range(len(self.graph.values)) if self.carried.made >> v & 1]
        again = [op for op in self.carried.order.forward if self.graph.ops[op].recomputable]
        costs = [self.graph.ops[op].cost for op in again]
        self.cost_grain = grain(costs, sum(costs))
        self.byte_grain = grain([self.memory.sizes[v] for v in self.values], budget_bytes)
        self.program = BinaryProgram()
        # Last row in which running an op again can be of use.
        last = self.carried.last_row
        self.op_last = {
            op: max((last[v] for v in self.graph.ops[op].outputs), default=0) for op in again
        }
        self.S: list[dict[int, Term]] = []
        self.K: list[dict[int, Term]] = []
        self.R: list[dict[int, int]] = []

    def size(self, v: int) -> int:
        return self.memory.sizes[v] // self.byte_grain

    def limit(self, fixed_bytes: int) -> int:
        # The sizes are rounded down, so what is left may be, too.
        return (self.budget - fixed_bytes) // self.byte_grain

    def build(self) -> SpanProgram:
        self._variables()
        self._forward()
        for a in range(len(self.ends)):
            self._flow(a)
            self._backward_memory(a)
            self._run_memory(a)
        return SpanProgram(
            self.program,
            self.ends,
            tuple(self.S),
            tuple(self.K),
            tuple(self.R),
            self.cost_grain,
        )

    def _variables(self) -> None:
        last, sizes = self.carried.last_row, self.memory.sizes
        for start, end in zip(self.starts, self.ends, strict=True):
            entering: dict[int, Term] = {}
            through: dict[int, Term] = {}
            for v in self.values:
                if last[v] >= start:
                    fixed = sizes[v] == 0  # it might as well be there
                    entering[v] = "one" if fixed else self.program.variable()
                    if last[v] >= end:
                        through[v] = "one" if fixed else self.program.variable()
            self.S.append(entering)
            self.K.append(through)
            self.R.append(
                {
                    op: self.program.variable(self.graph.ops[op].cost // self.cost_grain)
                    for op, row in self.op_last.items()
                    if row >= start
                }
            )

    def _made(self, a: int, v: int) -> Term:
        producer = self.graph.producer[v]
        return None if producer is None else self.R[a].get(producer)

    def _forward(self) -> None:
        for step in self.memory.forward:
            terms = [(self.size(v), self.S[0].get(v)) for v in step.optional]
            self.program.constrain(terms, None, self.limit(step.fixed_bytes))

    def _flow(self, a: int) -> None:
        constrain = self.program.constrain
        entering, through = self.S[a], self.K[a]
        for v, term in entering.items():
            if v in through:
                constrain([(1, through[v]), (-1, term)], None, 0)
        if a + 1 < len(self.ends):
            for v, term in self.S[a + 1].items():
                constrain([(1, term), (-1, through.get(v)), (-1, self._made(a, v))], None, 0)
        for op, run in self.R[a].items():
            for v in self.graph.ops[op].inputs:
                if self.carried.made >> v & 1:
                    there = [(-1, entering.get(v)), (-1, self._made(a, v))]
                    constrain([(1, run), *there], None, 0)
        for row in range(self.starts[a], self.ends[a] + 1):
            until = through if row == self.ends[a] else entering
            for v in self.memory.reads[row]:
                constrain([(1, until.get(v)), (1, self._made(a, v))], 1, None)

    def _backward_memory(self, a: int) -> None:
        for row in range(self.starts[a], self.ends[a] + 1):
            alive = self.K[a]
            if row == self.ends[a]:
                alive = self.S[a + 1] if a + 1 < len(self.ends) else {}
            reads = self.memory.reads[row]
            terms = [(self.size(v), term) for v, term in alive.items() if v not in reads]
            self.program.constrain(terms, None, self.limit(self.memory.at_backward[row]))

    def _run_memory(self, a: int) -> None:
        for op, run in self.R[a].items():
            last = min(self.ends[a], self.op_last[op])
            fixed = min(self.memory.before_backward[self.starts[a] : last + 1])
            inputs = self.graph.ops[op].inputs
            terms = [(self.size(v), term) for v, term in self.K[a].items() if v not in inputs]
            terms.append((self.memory.run_bytes(op) // self.byte_grain, run))
            self.program.constrain(terms, None, self.limit(fixed))


def build_program(memory: RowMemory, ends: Sequence[int], budget_bytes: int) -> SpanProgram:
    """The program whose spans end at the rows `ends`, the last row among them.

    Args:
        memory: the graph's rows.
        ends: numbers of rows, ascending; the last one is that of the last backward op.
        budget_bytes: peak of the whole step.
    """
    return _Builder(memory, ends, budget_bytes).build()
