"""What the planner `liveness` searches: the blocks of a graph, their cuts, all stages over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from memfit import _core
from memfit.cuts.backward import BackwardStages
from memfit.cuts.blocks import Block, cut_graph
from memfit.cuts.lower_sets import FAMILIES, choose_family
from memfit.cuts.negligible import links, negligible_bytes, useful_ops, without_links
from memfit.graph.plain import plain_peak_bytes
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.strategies.staged import StagePath, StageSpace

__all__ = [
    "Effort",
    "LivenessTable",
    "build_table",
    "keep_variants",
]

_LABELS = 1 << 25
_LARGEST = 1 << 62
_WEIGHED = 4
_SPARE = 4  # so many times the lower sets are listed, for some are left out
_MOST_SLOTS, _LEAST_SLOTS = 1 << 13, 1 << 8


@dataclass(frozen=True)
class Effort:
    """How much to search.

    Attributes:
        cuts: most cuts of a block.
        steps: most ops to simulate, over all pieces, about.
        states: most cuts of all blocks together, about.
        shares: shares of the backward's forward values, by bytes, that the stages' variants leave
            out between none and all.
    """

    cuts: int
    steps: int
    states: int
    shares: tuple[float, ...] = (0.75, 0.5, 0.25)


FULL = {
    "native": Effort(640, 250_000_000, 60_000),
    "python": Effort(80, 20_000_000, 2_000),
}
"""The most that each core should take on: a few seconds."""

QUICK = {
    "native": Effort(24, 4_000_000, 2_000, ()),
    "python": Effort(8, 300_000, 500, ()),
}
"""What each core does in a moment."""


@dataclass(frozen=True)
class LivenessTable:
    """All stages of one graph, simulated once; plans for any budget are read off it.

    Attributes:
        graph: the graph.
        space: the blocks of the graph and their cuts.
        stages: the stages and the trade-off that they allow.
        family: the smallest family of lower sets that any block was searched with.
        notes: what a reader of the plan should know, such as a family that was reduced.
        fixed_bytes: bytes alive all through the backward pass that no stage counts.
        left_out: number of lower sets that were left out as no better than others.
        complete: whether the search was not cut short by a time limit.
    """

    graph: TrainingGraph
    space: StageSpace
    stages: _core.StageTable
    family: str
    notes: tuple[str, ...]
    fixed_bytes: int
    left_out: int = 0
    complete: bool = True

    @property
    def cut_count(self) -> int:
        """Number of different cuts."""
        return sum(len(cuts) - 1 for cuts in self.space.cuts) + 1

    @property
    def lower_sets(self) -> int:
        """Number of lower sets that the search covers: cuts, and those left out as no better."""
        return self.cut_count + self.left_out

    @cached_property
    def curve(self) -> list[tuple[int, int]]:
        """(overhead, need): each overhead that some budget calls for, ascending, with the least
        bytes that it takes, `fixed_bytes` left out.

        Without forward ops there are no stages that the backward ops could belong to, and nothing
        to choose.
        """
        graph = self.graph
        if not graph.forward_count:
            return [(0, plain_peak_bytes(graph) - self.fixed_bytes)]
        return self.stages.curve()

    def path(self, nominal_bytes: int) -> StagePath | None:
        """Least recomputation where every stage's simulated peak is at most `nominal_bytes`."""
        if not self.graph.forward_count:
            return StagePath(self.space, ())
        steps = self.stages.path(min(nominal_bytes, _LARGEST))
        return None if steps is None else StagePath(self.space, steps)


def keep_variants(
    graph: TrainingGraph, shares: Sequence[float] = (0.75, 0.5, 0.25)
) -> list[list[bool]]:
    """Which values a stage keeps beyond its boundary, for each variant.

    Variant 0 keeps none, the last one all that the backward pass reads. Those between keep only
    what is dear to compute again: values ordered by cost per byte, of which the cheapest are left
    out up to a share of all bytes.
    """
    count = len(graph.values)
    start = graph.forward_count
    threshold = negligible_bytes(graph)
    wanted: list[tuple[float, int]] = []
    for op in graph.forward_ops:
        written = sum(graph.values[v].size_bytes for v in op.outputs)
        for v in op.outputs:
            if graph.values[v].size_bytes > threshold and any(
                c >= start for c in graph.consumers[v]
            ):
                wanted.append((op.cost / max(1, written), v))
    wanted.sort()
    total = sum(graph.values[v].size_bytes for _, v in wanted)
    variants = [[False] * count]
    for share in shares:
        flags = [False] * count
        running = 0
        for _, v in wanted:
            running += graph.values[v].size_bytes
            flags[v] = running > share * total
        if flags not in variants:
            variants.append(flags)
    everything = [False] * count
    for _, v in wanted:
        everything[v] = True
    variants.append(everything)
    return variants


@dataclass(frozen=True)
class _Searched:
    """A kind of block with the lower sets to search it with."""

    block: Block
    family: str
    masks: list[int]
    left_out: int  # lower sets that are no better than others

    @property
    def steps(self) -> int:
        """Ops to simulate for all pieces of one variant, about."""
        ops = len(self.block.forward) + len(self.block.backward)
        return len(self.masks) ** 2 * ops // 6 + ops * len(self.masks)


def _thin(block: Block, masks: list[int], limit: int) -> list[int]:
    """At most `limit` lower sets: of each run of neighbours the one with the smallest boundary."""
    inner = masks[1:-1]
    if len(masks) <= limit or not inner:
        return masks
    # Weighing a cut takes a look at every value, so of very many only some are weighed.
    inner = inner[:: max(1, len(inner) // (_WEIGHED * limit))]
    window = math.ceil(len(inner) / max(1, limit - 2))
    size = block.problem.value_bytes

    def weight(mask: int) -> tuple[int, int]:
        cut = block.cut(mask)
        return sum(size[s] for s in cut.boundary) + cut.base_bytes, mask

    chosen = [min(inner[i : i + window], key=weight) for i in range(0, len(inner), window)]
    return [masks[0], *chosen, masks[-1]]


def _choose_masks(
    kinds: Sequence[Block],
    kind_of: Sequence[int],
    useful: Sequence[bool],
    linked: Sequence[bool],
    wanted: str,
    most: int,
    effort: Effort,
    variants: int,
) -> tuple[list[_Searched], int]:
    """The lower sets of each kind of block, as many as the effort allows, and the most of a block.

    Args:
        kinds: the different blocks.
        kind_of: for each block of the graph, its kind.
        useful: for each forward op, whether a cut after it may help.
        linked: for each forward op, whether it is a link.
        wanted: the family asked for.
        most: most lower sets of a block that were asked for.
        effort: how much to search.
        variants: number of variants of a stage.
    """

    def choose(block: Block, family: str, limit: int) -> _Searched:
        here = slice(block.forward.start, block.forward.stop)
        for name in FAMILIES[FAMILIES.index(family) :]:
            chosen, listed = choose_family(block.predecessors, name, _SPARE * limit, useful[here])
            masks = without_links(listed, linked[here])
            if name != "all" or len(masks) <= limit:
                break
        return _Searched(block, chosen, masks, len(listed) - len(masks))

    def too_many() -> bool:
        steps = sum(s.steps for s in searched) * variants
        states = sum(len(searched[k].masks) - 1 for k in kind_of)
        return steps > effort.steps or states > effort.states

    limit = min(most, effort.cuts)
    searched = [choose(block, wanted, limit) for block in kinds]
    while limit > 2 and too_many():
        limit = max(2, limit * 3 // 4)
        for k, s in enumerate(searched):
            if len(s.masks) > limit:
                smaller = choose(s.block, s.family, limit)
                thinned = _thin(s.block, smaller.masks, limit)
                searched[k] = replace(smaller, masks=thinned)
    return searched, limit


def build_table(
    graph: TrainingGraph,
    *,
    family: str,
    max_lower_sets: int | None,
    effort: Effort,
    progress: Callable[[str, float], None] | None,
) -> LivenessTable:
    """Simulate all stages over a family of lower sets.

    Raises:
        UsageError: an unknown family.
    """

    def report(label: str, share: float) -> None:
        if progress is not None:
            progress(label, share)

    report("cutting the graph into blocks", 0.0)
    useful = useful_ops(graph)
    linked = links(graph, useful)
    backward = BackwardStages(graph)
    flags = keep_variants(graph, effort.shares)
    blocks = cut_graph(
        graph,
        useful,
        linked,
        flags,
        negligible_bytes(graph),
        paired=backward.paired,
        constant=backward.constant,
    )
    # Blocks that are alike are analysed once.
    number: dict[str, int] = {}
    kinds: list[Block] = []
    kind_of: list[int] = []
    for block in blocks.blocks:
        here = slice(block.forward.start, block.forward.stop)
        signature = f"{block.signature}{useful[here]}{linked[here]}"
        if signature not in number:
            number[signature] = len(kinds)
            kinds.append(block)
        kind_of.append(number[signature])
    wanted = "all" if family == "auto" else family
    most = max_lower_sets or 1 << 30
    searched, limit = _choose_masks(
        kinds, kind_of, useful, linked, wanted, most, effort, len(flags)
    )
    smallest = max((s.family for s in searched), key=FAMILIES.index, default=wanted)
    notes = []
    reduced = sum(searched[k].family != wanted for k in kind_of)
    if reduced:
        notes.append(
            f"family {wanted} has too many lower sets in {reduced} of {len(kind_of)} blocks; "
            f"family {smallest} was searched there instead, at most {limit} lower sets a block"
        )
    if blocks.partial_ends:
        notes.append(
            f"lower sets that part the ops before {blocks.partial_ends} of "
            f"{len(kind_of) - 1} block ends were left out"
        )
    total_steps = sum(s.steps for s in searched) or 1
    done = 0
    tables = []
    cuts_of = []
    for s in searched:
        cuts = tuple(s.block.cut(mask) for mask in s.masks)
        cuts_of.append(cuts)

        def inner(share: float, before: int = done, part: int = s.steps) -> None:
            report("simulating stages", (before + share * part) / total_steps * 0.8)

        tables.append(_core.block_table(s.block.problem, cuts, inner))
        done += s.steps
    states = sum(len(cuts_of[k]) - 1 for k in kind_of) + 1
    stages = _core.stage_table(
        [tables[k] for k in kind_of],
        blocks.base_bytes,
        graph.forward_cost,
        min(_MOST_SLOTS, max(_LEAST_SLOTS, _LABELS // states)),
        lambda share: report("searching stages", 0.8 + 0.2 * share),
    )
    fixed = graph.resident_bytes + sum(
        v.size_bytes for v in graph.values if v.kind is ValueKind.TANGENT
    )
    return LivenessTable(
        graph,
        StageSpace(blocks, tuple(cuts_of[k] for k in kind_of)),
        stages,
        smallest,
        tuple(notes),
        fixed,
        sum(searched[k].left_out for k in kind_of),
    )
