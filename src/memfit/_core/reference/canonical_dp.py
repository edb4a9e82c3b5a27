"""Dynamic programming over stages with a memory budget: the reference in pure Python.

States 0 … N-1 are lower sets in topological order (0 the empty set, N-1 the whole graph), edges
are stages. A *label* of a state is a pair (cost so far, m), m the bytes cached so far; an edge may
be taken where m + peak_bytes <= budget, and leads to (cost + its cost, m + its cached_bytes). Of
the labels of a state only the Pareto front matters: less m never forbids an edge.

Ties are broken by rules that do not depend on how the fronts are found, so that every core gives
the same path; see `EdgeTable.shortest` and `EdgeTable.smallest_budget`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["EdgeTable"]


class EdgeTable:
    """Edges between states, in compressed rows by source.

    Attributes:
        states: number of states, 1 or more.
        row_start: edges row_start[s] … row_start[s + 1] - 1 leave state s.
        sources, targets, variants, costs, cached_bytes, peak_bytes: one entry an edge.
    """

    __slots__ = (
        "cached_bytes",
        "costs",
        "peak_bytes",
        "row_start",
        "sources",
        "states",
        "targets",
        "variants",
    )

    def __init__(
        self,
        states: int,
        row_start: list[int],
        sources: list[int],
        targets: list[int],
        variants: list[int],
        costs: list[int],
        cached_bytes: list[int],
        peak_bytes: list[int],
    ) -> None:
        self.states = states
        self.row_start = row_start
        self.sources = sources
        self.targets = targets
        self.variants = variants
        self.costs = costs
        self.cached_bytes = cached_bytes
        self.peak_bytes = peak_bytes

    @classmethod
    def from_lists(
        cls,
        states: int,
        sources: Sequence[int],
        targets: Sequence[int],
        variants: Sequence[int],
        costs: Sequence[int],
        cached: Sequence[int],
        peaks: Sequence[int],
    ) -> EdgeTable:
        """A table from columns of equal length, in order of source.

        Raises:
            ValueError: the sources do not ascend, an edge does not lead from a state to a later
                one, a cost or size is negative, or the columns differ in length.
        """
        if states < 1:
            raise ValueError(f"a table needs 1 state or more, not {states}")
        row_start = [0] * (states + 1)
        before = 0
        for source, target, variant, *amounts in zip(
            sources, targets, variants, costs, cached, peaks, strict=True
        ):
            if not before <= source < target < states:
                raise ValueError(
                    f"edge {source} -> {target} is out of order or does not lead to a later one of "
                    f"{states} states"
                )
            if variant < 0 or min(amounts) < 0:
                raise ValueError(f"edge {source} -> {target} has a negative cost or size")
            before = source
            row_start[source + 1] += 1
        for s in range(states):
            row_start[s + 1] += row_start[s]
        return cls(
            states,
            row_start,
            list(sources),
            list(targets),
            list(variants),
            list(costs),
            list(cached),
            list(peaks),
        )

    def __len__(self) -> int:
        return len(self.targets)

    def _needs(self) -> list[int | None]:
        """For each state, the bytes beyond m that the cheapest way on to the last state needs.

        From a state with m bytes cached the last state can be reached within a budget exactly
        where m + need <= budget, since m raises the peak of every later stage alike. None where
        no way leads on; the last state needs -1 (less than any edge into it does).
        """
        need: list[int | None] = [None] * self.states
        last = self.states - 1
        need[last] = -1
        for s in range(last - 1, -1, -1):
            best: int | None = None
            for e in range(self.row_start[s], self.row_start[s + 1]):
                target = self.targets[e]
                peak = self.peak_bytes[e]
                if target != last:
                    further = need[target]
                    if further is None:
                        continue
                    peak = max(peak, self.cached_bytes[e] + further)
                if best is None or peak < best:
                    best = peak
            need[s] = best
        return need

    def curve(self) -> list[tuple[int, int]]:
        """(cost, budget): each cost that some budget calls for, with the least such budget.

        One pass from the last state back. A label of a state is (cost still to come, need): from
        the state with m bytes cached the end can be reached at that cost within a budget exactly
        where m + need <= budget. An edge makes max(peak, cached + need) of a need behind it. No
        budget enters, so the front of the first state holds for all of them.

        Raises:
            ValueError: no path leads to the last state.
        """
        fronts: list[list[tuple[int, int]]] = [[] for _ in range(self.states)]
        nothing = -(1 << 62)
        fronts[-1] = [(0, nothing)]
        for s in range(self.states - 2, -1, -1):
            found: list[tuple[int, int]] = []
            for e in range(self.row_start[s], self.row_start[s + 1]):
                cost, cached, peak = self.costs[e], self.cached_bytes[e], self.peak_bytes[e]
                for more, need in fronts[self.targets[e]]:
                    found.append((cost + more, max(peak, cached + need)))
                    if cached + need <= peak:
                        break
            found.sort()
            least = None
            for cost, need in found:
                if least is None or need < least:
                    least = need
                    fronts[s].append((cost, need))
        if not fronts[0]:
            raise ValueError("no path leads from the first state to the last")
        return [(cost, max(0, need)) for cost, need in fronts[0]]

    def _incoming(self) -> list[list[int]]:
        incoming: list[list[int]] = [[] for _ in range(self.states)]
        for e, target in enumerate(self.targets):
            incoming[target].append(e)
        return incoming

    def smallest_budget(self) -> tuple[int, list[int]]:
        """The smallest budget with a path to the last state, and such a path, as edge indices.

        Of the paths within that budget it is the one found from the first state on by taking, at
        each state, the smallest edge index that still leads to the last state.

        Raises:
            ValueError: no path leads to the last state.
        """
        need = self._needs()
        budget = need[0]
        if budget is None:
            raise ValueError("no path leads from the first state to the last")
        last = self.states - 1
        left = budget = max(0, budget)
        path: list[int] = []
        s = 0
        while s != last:
            for e in range(self.row_start[s], self.row_start[s + 1]):
                target = self.targets[e]
                further = need[target]
                if further is None or self.peak_bytes[e] > left:
                    continue
                if target == last or self.cached_bytes[e] + further <= left:
                    path.append(e)
                    left -= self.cached_bytes[e]
                    s = target
                    break
            else:
                raise AssertionError("a state without a way on")
        return budget, path

    def shortest(self, budget_bytes: int, longest: bool = False) -> list[int] | None:
        """Edge indices of the best path to the last state within the budget; None if there is none.

        Best is the least cost, then the least m at the last state. With `longest` it is the
        largest cost on the Pareto front of (cost, m) at the last state (the memory-centric strategy
        of Kusumoto et al. 2019, section 4.4). Of paths that are equal in both, it is the one found
        backwards from the last state by taking, at each state, the smallest edge index whose source
        has the label that fits on its Pareto front.

        Args:
            budget_bytes: an edge is allowed where m + peak_bytes <= budget_bytes.
            longest: memory-centric instead of time-centric.
        """
        need = self._needs()
        if need[0] is None or need[0] > budget_bytes:
            return None
        if self.states == 1:
            return []
        incoming = self._incoming()
        # A label is one integer, cost << shift | m, so that a front is a flat sorted list.
        shift = (budget_bytes + max(self.cached_bytes)).bit_length() + 1
        fronts = self._fronts(budget_bytes, need, incoming, shift)
        front = fronts[-1]
        label = front[-1] if longest else front[0]
        return self._trace(fronts, label, budget_bytes, incoming, shift)

    def _fronts(
        self,
        budget_bytes: int,
        need: Sequence[int | None],
        incoming: Sequence[Sequence[int]],
        shift: int,
    ) -> list[list[int]]:
        """The Pareto front of each state, by rising cost and so by falling m.

        Labels from which the last state cannot be reached within the budget are left out: they are
        no part of an answer, and neither is what they dominate.
        """
        last = self.states - 1
        mask = (1 << shift) - 1
        fronts: list[list[int]] = [[] for _ in range(self.states)]
        negative_m: list[list[int]] = [[] for _ in range(self.states)]
        fronts[0], negative_m[0] = [0], [0]
        sources, cached, peaks = self.sources, self.cached_bytes, self.peak_bytes
        for s in range(1, self.states):
            further = need[s]
            if further is None:
                continue
            room = budget_bytes - further
            candidates: list[int] = []
            for e in incoming[s]:
                source = sources[e]
                front = fronts[source]
                if not front:
                    continue
                most = budget_bytes - peaks[e]
                if s != last:
                    most = min(most, room - cached[e])
                first = bisect_left(negative_m[source], -most)
                step = self.costs[e] << shift | cached[e]
                candidates += [label + step for label in front[first:]]
            candidates.sort()
            kept, keys = fronts[s], negative_m[s]
            least = mask + 1
            for label in candidates:
                m = label & mask
                if m < least:
                    least = m
                    kept.append(label)
                    keys.append(-m)
        return fronts

    def _trace(
        self,
        fronts: Sequence[Sequence[int]],
        label: int,
        budget_bytes: int,
        incoming: Sequence[Sequence[int]],
        shift: int,
    ) -> list[int]:
        mask = (1 << shift) - 1
        path = []
        s = self.states - 1
        while s:
            for e in incoming[s]:
                cost = (label >> shift) - self.costs[e]
                m = (label & mask) - self.cached_bytes[e]
                if cost < 0 or m < 0 or m + self.peak_bytes[e] > budget_bytes:
                    continue
                before = cost << shift | m
                front = fronts[self.sources[e]]
                at = bisect_left(front, before)
                if at < len(front) and front[at] == before:
                    path.append(e)
                    label, s = before, self.sources[e]
                    break
            else:
                raise AssertionError("a label without a way to it")
        path.reverse()
        return path
