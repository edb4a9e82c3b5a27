"""The graphs that `run` plans: published, captured from PyTorch, random series-parallel.

A random series-parallel graph is a long series of blocks, as networks are. A block is a chain of 1
to 8 ops (3 of 10 blocks) or a random two-terminal series-parallel component of 4 to 32 ops (size
log-uniform). A component of n ops is, by chance:

    one op        n = 1
    parallel      from n = 4 on, half of them, inside a branch 1 of 5: fork -> branches -> join, the
                  n - 2 ops between split at random over 2, 3 or 4 branches (60, 25, 15%), each a
                  component; 3 of 10 have an empty branch too, a skip connection
    series        otherwise: two components of random sizes, one after the other

So a block has a handful of lower sets, at most some tens of thousands, as the blocks of Inception,
and the graph of 50,000 ops about 900,000.

Sizes are log-uniform from 1 KB to 64 MB, costs log-uniform from 1 to 100 units. The backward of an
op reads the op's inputs (half of the ops, as a product does), its output (3 of 10, as an activation
does) or neither (as a sum does). All blocks differ: nothing repeats, so a planner that analyses
equal blocks once gains nothing here. Ops stand in program order, a branch before the next.

All of it comes from one seed, and `random.Random` gives the same numbers on every platform.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lib.captures import facts_of, graph_file, is_kept, keep
from benchmarks.lib.harness import ROOT, reference_folder
from memfit.graph.graph_file import read_graph
from memfit.graph.published import bare_graph
from memfit.graph.training_graph import TrainingGraph

__all__ = [
    "CASES",
    "CaseGraph",
    "SeriesParallel",
    "cached_capture",
    "capture_to_cache",
    "series_parallel",
]

_SMALLEST_BYTES, _LARGEST_BYTES = 1_000, 64_000_000
_LARGEST_COST = 100
_LONGEST_CHAIN = 8
_SMALLEST_BLOCK, _LARGEST_BLOCK = 4, 32
_CHAIN_SHARE, _PARALLEL_SHARE, _NESTED_SHARE, _SKIP_SHARE = 0.3, 0.5, 0.2, 0.3
_BRANCHES, _BRANCH_WEIGHTS = (2, 3, 4), (60, 25, 15)
_READS_INPUTS, _READS_OUTPUT = 0.5, 0.3


@dataclass(frozen=True)
class SeriesParallel:
    """A random series-parallel graph.

    Attributes:
        graph: the graph, with a backward op for each forward op.
        lower_sets: how many lower sets it has, by its construction.
        blocks: ops of each block of the series.
    """

    graph: TrainingGraph
    lower_sets: int
    blocks: tuple[int, ...]


@dataclass
class _Builder:
    rng: random.Random
    predecessors: list[tuple[int, ...]] = field(default_factory=list)

    def op(self, *reads: int) -> int:
        self.predecessors.append(tuple(sorted(reads)))
        return len(self.predecessors) - 1

    def component(
        self, n: int, reads: tuple[int, ...], share: float = _PARALLEL_SHARE
    ) -> tuple[int, int]:
        """A component of n ops whose first op reads `reads`: its last op and its lower sets."""
        rng = self.rng
        if n == 1:
            return self.op(*reads), 2
        if n >= 4 and rng.random() < share:
            return self.parallel(n, reads)
        first = rng.randint(1, n - 1)
        middle, below = self.component(first, reads, share)
        last, above = self.component(n - first, (middle,), share)
        return last, below + above - 1

    def parallel(self, n: int, reads: tuple[int, ...]) -> tuple[int, int]:
        """A fork, branches and a join."""
        rng = self.rng
        fork = self.op(*reads)
        inner = n - 2
        branches = min(inner, rng.choices(_BRANCHES, _BRANCH_WEIGHTS)[0])
        cuts = sorted(rng.sample(range(1, inner), branches - 1))
        ends, inside = [], 1
        for start, stop in itertools.pairwise((0, *cuts, inner)):
            last, lower_sets = self.component(stop - start, (fork,), _NESTED_SHARE)
            ends.append(last)
            inside *= lower_sets
        if rng.random() < _SKIP_SHARE:
            ends.append(fork)
        # Nothing; the fork with a lower set of each branch; everything.
        return self.op(*ends), 1 + inside + 1


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))


def series_parallel(nodes: int, seed: int) -> SeriesParallel:
    """A random series-parallel training graph of `nodes` forward ops; see the module's docstring.

    Args:
        nodes: number of forward ops, 1 or more.
        seed: whence everything random comes.
    """
    rng = random.Random(seed)
    builder = _Builder(rng)
    reads: tuple[int, ...] = ()
    blocks: list[int] = []
    lower_sets = 1
    while len(builder.predecessors) < nodes:
        left = nodes - len(builder.predecessors)
        if rng.random() < _CHAIN_SHARE:
            size = min(left, rng.randint(1, _LONGEST_CHAIN))
            for _ in range(size):
                reads = (builder.op(*reads),)
            found = size + 1
        else:
            size = min(left, _log_uniform(rng, _SMALLEST_BLOCK, _LARGEST_BLOCK))
            last, found = builder.component(size, reads)
            reads = (last,)
        blocks.append(size)
        lower_sets += found - 1
    backward_reads: list[tuple[int, ...]] = []
    for v, before in enumerate(builder.predecessors):
        draw = rng.random()
        if draw < _READS_INPUTS:
            backward_reads.append(before)
        elif draw < _READS_INPUTS + _READS_OUTPUT:
            backward_reads.append((v,))
        else:
            backward_reads.append(())
    graph = bare_graph(
        builder.predecessors,
        [_log_uniform(rng, _SMALLEST_BYTES, _LARGEST_BYTES) for _ in range(nodes)],
        [_log_uniform(rng, 1, _LARGEST_COST) for _ in range(nodes)],
        backward_reads,
        name=f"sp-{nodes}",
    )
    return SeriesParallel(graph, lower_sets, tuple(blocks))


_CAPTURE_THREADS = 2  # analytic costs and workspace depend on it


def _cache_file(name: str) -> Path:
    return graph_file(name, _CAPTURE_THREADS, [ROOT / "benchmarks" / "lib" / "networks.py"])


def cached_capture(name: str) -> Path | None:
    """File of a graph captured before from the same sources; None if there is none."""
    graph = _cache_file(name)
    return graph if is_kept(graph) else None


def capture_to_cache(name: str) -> Path:
    """Capture a network with analytic costs and keep its graph, in a file; imports PyTorch."""
    import torch

    import memfit
    from benchmarks.lib.networks import CAPTURED
    from memfit.pytorch.api.entry import capture

    torch.set_num_threads(_CAPTURE_THREADS)
    build, arguments = CAPTURED[name]
    case = build(**arguments)
    began = time.perf_counter()
    step = capture(case.model, case.args, case.loss_fn, cost="analytic")
    seconds = time.perf_counter() - began
    facts = {
        "capture_seconds": round(seconds, 2),
        "built_with": arguments,
        "costs": "analytic",
        "torch": torch.__version__,
        "memfit": memfit.__version__,
    }
    file = _cache_file(name)
    keep(step.graph, facts, file)
    return file


@dataclass(frozen=True)
class CaseGraph:
    """One graph of the benchmark.

    Attributes:
        name: its name on the command line.
        kind: `published`, `captured` or `series-parallel`.
        nodes: for series-parallel graphs, their number of forward ops; 0 otherwise.
        quick: whether it is part of a quick run.
    """

    name: str
    kind: str
    nodes: int = 0
    quick: bool = False

    def load(self, captured: str | None = None) -> tuple[TrainingGraph, dict[str, Any]]:
        """The graph, and facts about it; a captured one from its file in the cache."""
        if self.kind == "published":
            return read_graph(reference_folder() / "graphs" / f"cg_{self.name}.txt"), {}
        if self.kind == "captured":
            if captured is None:
                raise ValueError(f"{self.name} needs the file that it was captured to")
            return read_graph(captured), facts_of(Path(captured))
        made = series_parallel(self.nodes, seed=self.nodes)
        return made.graph, {
            "all_lower_sets": made.lower_sets,
            "blocks": len(made.blocks),
            "largest_block": max(made.blocks),
            "seed": self.nodes,
        }


def _cases() -> Iterator[CaseGraph]:
    for name in ("vgg19", "unet", "resnet50", "resnet152", "googlenet", "densenet", "pspnet"):
        yield CaseGraph(name, "published", quick=True)
    for name in ("resnet152", "densenet161", "gpt2-12", "gpt2-96", "lstm-512"):
        yield CaseGraph(f"torch-{name}", "captured")
    for nodes in (1_000, 2_000, 5_000, 10_000, 20_000, 50_000):
        yield CaseGraph(f"sp-{nodes}", "series-parallel", nodes, quick=nodes in (1_000, 5_000))


CASES: dict[str, CaseGraph] = {case.name: case for case in _cases()}
