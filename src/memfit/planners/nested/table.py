"""What the planner `nested` searches: a graph's cuts in a row, and chains of alike steps in it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memfit import _core
from memfit._core.problem import ChainUnit, Cut, FirstStep, SweptStep, TopStage, Tree
from memfit._core.slots import NOTHING, Front
from memfit.cuts.backward import BackwardStages, barred_ends, rank_backward
from memfit.cuts.blocks import Block, Blocks, blocks_at, cut_graph
from memfit.cuts.negligible import links, slight_bytes, useful_ops
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.planners.nested.cuts import crossing_bytes, even_variants, thinned
from memfit.strategies.nested import CutLine, NestedPath

__all__ = ["EFFORT", "NestedEffort", "NestedPlans", "build_nested"]

_MOST_WORK = 10
"""Plans that compute again more than so many times the forward pass are left out."""
_MOST_COST = 1 << 60
"""Costs of strategies have to stay below; a chain's are below its steps squared times one's."""
_LEAST_STEPS = 24
_LONGEST_PERIOD = 24
_UNIT_CUTS = 16


@dataclass(frozen=True)
class NestedEffort:
    """How much to search.

    Attributes:
        steps: most ops to simulate, over all pairs of cuts, about.
        cuts: most cuts of a part.
        cells: most cells (steps times memory levels) of a chain of alike steps.
        levels_per_checkpoint: how finely a chain's memory is divided.
        shares: see `even_variants`.
    """

    steps: int
    cuts: int
    cells: int
    levels_per_checkpoint: int
    shares: tuple[float, ...]


EFFORT = {
    "native": NestedEffort(60_000_000, 64, 8_000_000, 4, (0.75, 0.5, 0.25)),
    "python": NestedEffort(1_500_000, 24, 200_000, 1, ()),
}
"""The most that each core should take on: a few seconds."""


@dataclass(frozen=True)
class _Part:
    """Consecutive blocks that are planned together: one block, or a chain of alike units."""

    first: int  # block
    blocks: int
    table: _core.NestedTable  # of the block, or of one unit
    chain: _core.ChainTable | None = None
    levels: Sequence[int] = ()  # of the labels of the chain's front
    bottom: _core.NestedTable | None = None  # of the chain's first step, if it is another


class NestedPlans:
    """Nested strategies of one graph; plans for any budget are read off it.

    Attributes:
        graph: the graph.
        line: its cuts in a row.
        front: costs and needs of the whole step, `fixed_bytes` left out.
        notes: what a reader of a plan should know.
        fixed_bytes: bytes alive all through the backward pass that no stage counts.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        line: CutLine,
        parts: Sequence[_Part],
        front: Front,
        notes: Sequence[str],
    ) -> None:
        self.graph, self.line, self.notes = graph, line, tuple(notes)
        fit = sum(cost <= _MOST_WORK * max(1, graph.forward_cost) for cost in front[0])
        self.front = front[0][:fit], front[1][:fit]
        if fit < len(front[0]):
            self.notes += (
                f"strategies that compute again more than {_MOST_WORK} times the forward pass were "
                f"left out; the smallest needs {front[1][-1]} bytes beside what is resident",
            )
        self._parts = parts
        self.fixed_bytes = graph.resident_bytes + sum(
            v.size_bytes for v in graph.values if v.kind is ValueKind.TANGENT
        )

    @property
    def cut_count(self) -> int:
        """Number of different cuts."""
        return self.line.starts[-1] + 1

    def path(self, label: int) -> NestedPath:
        """The strategy of a label of `front`."""
        top: list[TopStage] = []
        for part in self._parts:
            start = self.line.starts[part.first]
            if part.chain is None:
                stages, label = part.table.path(label)
                top += [_shift_stage(stage, start) for stage in stages]
                continue
            passes, after = part.chain.first_pass(part.levels[label])
            unit = 0
            for count, option, level in passes:
                i = self.line.starts[part.first + unit]
                k = self.line.starts[part.first + unit + count]
                how: int | Tree = option
                if option < 0:
                    how = self._chain_tree(part, unit, count, level)
                top.append(TopStage(i, k, how))
                unit += count
            label = after
        return NestedPath(self.line, top)

    def _chain_tree(self, part: _Part, unit: int, count: int, level: int) -> Tree:
        """How a chain's steps from `unit` on are reversed at a level."""
        chain = part.chain
        assert chain is not None
        starts = self.line.starts
        # Trees of chains are deep, so that they are made without recursion.
        done: list[Tree] = []
        todo: list[tuple[int, int, int, tuple[int, int] | None]] = [(unit, count, level, None)]
        while todo:
            u, n, s, built = todo.pop()
            at = starts[part.first + u]
            first = u == 0 and part.bottom is not None
            if n == 1:
                table = part.bottom if first and part.bottom is not None else part.table
                done.append(_shift(table.tree(chain.split(1, s, first)[0]), at))
            elif built is None:
                k, option = chain.split(n, s, first)
                todo.append((u, n, s, (k, option)))
                todo.append((u + k, n - k, s - chain.levels_of(k, option, first), None))
                if option < 0:
                    todo.append((u, k, s, None))
            else:
                k, option = built
                rest = done.pop()
                how = done.pop() if option < 0 else option
                middle, top = starts[part.first + u + k], starts[part.first + u + n]
                done.append(Tree(at, middle, top, how, rest))
        return done[0]


def _shift(tree: Tree, by: int) -> Tree:
    return Tree(
        tree.start + by,
        tree.middle + by,
        tree.end + by,
        tree.how if isinstance(tree.how, int) else _shift(tree.how, by),
        None if tree.rest is None else _shift(tree.rest, by),
    )


def _shift_stage(stage: TopStage, by: int) -> TopStage:
    how = stage.how if isinstance(stage.how, int) else _shift(stage.how, by)
    return TopStage(stage.start + by, stage.end + by, how)


@dataclass(frozen=True)
class _Run:
    """Alike units of consecutive blocks."""

    start: int  # block
    period: int
    units: int

    def stops(self, ends: Sequence[int]) -> list[list[int]]:
        """The last ops of the units, with the end of what comes before them; once for each block
        that a unit may begin with.

        Args:
            ends: the last op of each block.
        """
        found = []
        for turn in range(min(self.period, 1 + self.units - _LEAST_STEPS)):
            units = self.units - (turn > 0)
            blocks = [self.start + turn + self.period * u for u in range(units + 1)]
            found.append([ends[block - 1] for block in blocks if block > 0])
        return found


def _find_run(kinds: Sequence[str]) -> _Run | None:
    """The run of alike units that covers the most blocks, if any is long enough."""
    best: _Run | None = None
    count = len(kinds)
    for period in range(1, min(_LONGEST_PERIOD, count // _LEAST_STEPS) + 1):
        at = 0
        while at + period < count:
            end = at
            while end + period < count and kinds[end] == kinds[end + period]:
                end += 1
            units = (end + period - at) // period
            covered = 0 if best is None else best.units * best.period
            if units >= _LEAST_STEPS and units * period > covered:
                best = _Run(at, period, units)
            at = end + 1
    return best


class _Builder:
    """Builds the tables of a graph's parts from the last one to the first."""

    def __init__(
        self,
        graph: TrainingGraph,
        effort: NestedEffort,
        progress: Callable[[str, float], None] | None,
    ) -> None:
        self.graph, self.effort, self.progress = graph, effort, progress
        self.backward = BackwardStages(graph)
        self.ranks = rank_backward(graph, self.backward.paired, self.backward.constant)
        self.slight = slight_bytes(graph)
        self.flags = even_variants(graph, effort.shares)
        self.useful = useful_ops(graph, self.slight)
        linked = links(graph, self.useful)
        barred = barred_ends(graph, self.ranks)
        self.allowed = [
            u and not (x or b) for u, x, b in zip(self.useful, linked, barred, strict=True)
        ]
        self.linked = linked
        self.notes: list[str] = []

    def report(self, label: str, share: float) -> None:
        if self.progress is not None:
            self.progress(label, share)

    def find_run(self) -> tuple[_Run, list[int], list[bool]] | None:
        """A chain of alike steps: the run, the cuts of all blocks and what passes over them."""
        graph = self.graph
        if graph.forward_count < _LEAST_STEPS:
            return None
        blocks = cut_graph(
            graph,
            self.useful,
            self.linked,
            self.flags,
            self.slight,
            paired=self.backward.paired,
            constant=self.backward.constant,
        )
        run = _find_run([block.signature for block in blocks.blocks])
        if run is None:
            return None
        ends = [block.forward.stop - 1 for block in blocks.blocks]
        small = [False] * len(graph.values)
        for block in blocks.blocks:
            for s, flag in zip(block.values, block.problem.always_keep, strict=True):
                small[s] = small[s] or flag
        last = run.start + run.period * run.units
        grown = blocks.base_bytes[run.start] - blocks.base_bytes[last - 1]
        bytes_of = [sum(graph.values[v].size_bytes for v in op.outputs) for op in graph.forward_ops]
        first_op = ends[run.start - 1] + 1 if run.start else 0
        if grown * 20 > sum(bytes_of[first_op : ends[last - 1] + 1]):
            return None  # gradients that pile up along the way count, and steps are not alike
        return run, ends, small

    def build(self) -> NestedPlans:
        graph = self.graph
        # A strategy has fewer splits than cuts, and each computes no op more than three times.
        if graph.forward_cost * 3 * (graph.forward_count + 2) >= _MOST_COST:
            note = "nested strategies were left out, their costs are too large to add up"
            return NestedPlans(graph, CutLine(graph, (), ()), (), ((), ()), (note,))
        found = self.find_run()
        if found is None:
            return self._without_run()
        run, ends, small = found
        last = graph.forward_count - 1
        stops = min(run.stops(ends), key=lambda stops: crossing_bytes(graph, stops))
        small = self._passing(small, stops)
        blocks = self._blocks([end for end in stops if end < last], small)
        signatures = [block.signature for block in blocks.blocks]
        # At its ends the run may differ in what surrounds it.
        middle = len(signatures) // 2
        begin, end = middle, middle + 1
        while begin > 0 and signatures[begin - 1] == signatures[middle]:
            begin -= 1
        while end < len(signatures) and signatures[end] == signatures[middle]:
            end += 1
        if end - begin < _LEAST_STEPS:
            return self._without_run()
        stops = [block.forward.stop - 1 for block in blocks.blocks[max(0, begin - 1) : end]]
        blocks = self._blocks([stop for stop in stops if stop < last], small)
        first = min(begin, 1)
        return self._with_run(blocks, first, first + end - begin) or self._without_run()

    def _passing(self, small: Sequence[bool], stops: Sequence[int]) -> list[bool]:
        """Which values are kept where they pass over whole units: of those that may pass over
        whole blocks, the slight ones, and any that more than one unit's end parts from a reader."""
        graph = self.graph
        found = [False] * len(small)
        for s, flag in enumerate(small):
            made, count = graph.producer[s], graph.forward_count
            if flag and made is not None:
                last = max((r for r in graph.consumers[s] if r < count), default=made)
                crossed = bisect_left(stops, last) - bisect_left(stops, made)
                found[s] = crossed > 1 or graph.values[s].size_bytes <= self.slight
        return found

    def _blocks(self, cuts: Sequence[int], small: Sequence[bool]) -> Blocks:
        return blocks_at(self.graph, cuts, self.flags, self.slight, self.ranks, small)

    def _without_run(self) -> NestedPlans:
        graph = self.graph
        small = [False] * len(graph.values)
        blocks = blocks_at(graph, [], self.flags, self.slight, self.ranks, small)
        if not blocks.blocks:
            return NestedPlans(graph, CutLine(graph, (), ()), (), ((), ()), ())
        (block,) = blocks.blocks
        cuts = self.cuts_of(block, self.effort.cuts)
        table = _core.nested_table(
            block.problem,
            cuts,
            0,
            ([0], [NOTHING]),
            lambda share: self.report("nesting stages", share),
        )
        line = CutLine(graph, blocks.blocks, (cuts,))
        return NestedPlans(graph, line, (_Part(0, 1, table),), table.front(), self.notes)

    def _with_run(self, blocks: Blocks, begin: int, end: int) -> NestedPlans | None:
        """A chain of the blocks from `begin` to `end`, what comes before it as its first step;
        None where no budget that its levels reach is enough."""
        graph = self.graph
        cuts: list[Sequence[Cut]] = [()] * len(blocks.blocks)
        parts: list[_Part] = []
        after: Front = ([0], [NOTHING])
        for at in range(len(blocks.blocks) - 1, end - 1, -1):
            block = blocks.blocks[at]
            cuts[at] = self.cuts_of(block, self.effort.cuts // 2)
            table = _core.nested_table(block.problem, cuts[at], blocks.base_bytes[at], after, None)
            parts.append(_Part(at, 1, table))
            after = table.front()
        block = blocks.blocks[begin]
        unit_cuts = self.cuts_of(block, _UNIT_CUTS)
        cuts[begin:end] = [unit_cuts] * (end - begin)
        self.report("nesting stages", 0.3)
        table = _core.nested_table(block.problem, unit_cuts, 0, ([0], [NOTHING]), None)
        # Bytes alive beyond the cache are largest at the run's lower end.
        base = blocks.base_bytes[begin]
        unit = _chain_unit(table, base, base)
        first, bottom = None, None
        always = table.stretch().always_bytes * (end - begin)
        if begin:
            cuts[0] = self.cuts_of(blocks.blocks[0], self.effort.cuts // 2)
            problem = blocks.blocks[0].problem
            bottom = _core.nested_table(problem, cuts[0], 0, ([0], [NOTHING]), None)
            first = _chain_unit(bottom, base, blocks.base_bytes[0])
            always += bottom.stretch().always_bytes
        self.report("nesting stages", 0.5)
        steps = end
        if any(_dearest(u) * steps**2 >= _MOST_COST for u in (unit, first) if u is not None):
            return None
        found = self._levels(unit, steps, after)
        if found is None:
            return None
        levels, fraction = found
        chain = _core.chain_table(unit, steps, after, levels, fraction, first)
        costs, needs, at_levels = chain.front()
        if not costs:
            return None
        parts.append(_Part(0, steps, table, chain, at_levels, bottom))
        self.notes.append(
            f"{end - begin} alike steps of {len(block.forward)} ops were planned as a chain"
        )
        # What is always kept lies in the cache when the part after the chain begins.
        front = costs, [need + always for need in needs]
        return NestedPlans(
            graph, CutLine(graph, blocks.blocks, cuts), parts[::-1], front, self.notes
        )

    def _levels(self, unit: ChainUnit, steps: int, after: Front) -> tuple[int, int] | None:
        """How many levels of memory a chain is searched with, and how many a checkpoint takes;
        None where so many are too many that reach what comes after the chain."""
        # What comes after may need more than the chain, whatever the chain does.
        beyond = max(0, after[1][-1] - unit.leaf[1][-1])
        most = self.effort.cells // steps
        fraction = min(self.effort.levels_per_checkpoint, unit.held_bytes)
        while fraction:
            needed = beyond * fraction // unit.held_bytes + 2
            if needed + min(steps, _LEAST_STEPS) * fraction <= most:
                return min(most, needed + 2 * steps * fraction), fraction
            fraction //= 2
        return None

    def cuts_of(self, block: Block, most: int) -> tuple[Cut, ...]:
        """Prefixes of the program order in a block, where few bytes cross; both ends included."""
        graph = self.graph
        first, count = block.forward.start, len(block.forward)
        places = [v for v in range(count - 1) if self.allowed[first + v]]
        ops = count + len(block.backward)
        fits = 2
        while (
            fits < most and (fits + 1) ** 2 * ops // 6 * (len(self.flags) + 3) < self.effort.steps
        ):
            fits += 1
        if len(places) > fits - 1:
            self.notes.append(
                f"{fits - 1} of {len(places)} cuts between ops {first} and {first + count - 1} "
                "were searched, those that the fewest bytes cross"
            )
            places = thinned(graph, block, places, fits - 1)
        masks = [0, *((2 << v) - 1 for v in places), (1 << count) - 1]
        return tuple(block.cut(mask) for mask in masks)


def _dearest(unit: ChainUnit) -> int:
    """The largest cost of a step of a chain."""
    costs = [*(step.cost for step in unit.staged), *(step.cost for step in unit.top)]
    return max(unit.sweep_cost, unit.leaf[0][-1], *costs, 0)


def _chain_unit(table: _core.NestedTable, base: int, own_base: int) -> ChainUnit:
    """One step of a chain, what is always kept left out.

    Args:
        table: nested strategies of the step.
        base: bytes alive beyond the cache on the way back at the chain's upper end, at most.
        own_base: bytes alive beyond the cache on the way back at the step's upper end, at most.
    """
    whole = table.stretch()
    always = whole.always_bytes
    costs, needs = table.reversal_front()
    return ChainUnit(
        held_bytes=whole.held_bytes,
        sweep_cost=whole.sweep_cost,
        sweep_bytes=whole.sweep_bytes + base,
        lent_bytes=whole.lent_bytes + base,
        first_bytes=whole.first_bytes,
        leaf=(costs, [need - always + own_base for need in needs]),
        staged=[
            SweptStep(again + cost, cached - always, max(0, back - always + own_base), sweep + base)
            for cost, cached, _, back, again, sweep in whole.staged
        ],
        top=[
            FirstStep(cost, cached - always, forward, max(0, back - always + own_base))
            for cost, cached, forward, back, _, _ in whole.staged
        ],
    )


def build_nested(
    graph: TrainingGraph,
    effort: NestedEffort,
    progress: Callable[[str, float], None] | None = None,
) -> NestedPlans:
    """Simulate and search nested strategies over a row of cuts."""
    return _Builder(graph, effort, progress).build()
