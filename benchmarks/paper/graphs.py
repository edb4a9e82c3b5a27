"""The graphs of the paper's experiments: published ones, and PyTorch's, captured without memory.

Captured graphs have analytic costs (a roofline for two CPU threads). Their ops keep no workspace
unless asked for: the paper's cost model has none, and what a K40 took is not what a CPU takes. With
`workspace=True` ops take what `memfit inspect` predicts for a CPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.lib.captures import facts_of, graph_file, is_kept, keep
from benchmarks.lib.harness import ROOT, reference_folder
from memfit.graph.graph_file import read_graph
from memfit.graph.training_graph import TrainingGraph

__all__ = ["THREADS", "Batches", "captured", "published"]

THREADS = 2
_SOURCES = [
    ROOT / "benchmarks" / "paper" / "networks.py",
    ROOT / "benchmarks" / "lib" / "googlenet.py",
]


def published(name: str) -> TrainingGraph | None:
    """A published graph, under the paper's cost model; None where the reference data is absent."""
    path = reference_folder() / "graphs" / f"cg_{name}.txt"
    return read_graph(path) if path.is_file() else None


def captured(
    name: str, batch: int | None = None, *, workspace: bool = False
) -> tuple[TrainingGraph, dict[str, Any]]:
    """A network's training graph and facts about its capture, kept in a cache on disk.

    Args:
        name: a name of `networks.NETWORKS`.
        batch: batch size; the paper's if None.
        workspace: count the workspace that ops likely take on a CPU.
    """
    file = graph_file(f"paper-{name}-{batch or 'paper'}", THREADS, _SOURCES)
    if not is_kept(file):
        keep(*_capture(name, batch), file)
    graph = read_graph(file)
    if not workspace:
        graph = replace(graph, ops=tuple(replace(op, workspace_bytes=0) for op in graph.ops))
    return graph, facts_of(file)


def _capture(name: str, batch: int | None) -> tuple[TrainingGraph, dict[str, Any]]:
    import torch

    from benchmarks.paper.networks import NETWORKS
    from memfit.pytorch.api.unallocated import holds_memory, without_memory

    torch.set_num_threads(THREADS)
    network = NETWORKS[name]
    began = time.perf_counter()
    unallocated = without_memory("cpu")
    with unallocated.building:
        case = network.case(batch)
    step = unallocated.capture(case.model, case.args, case.loss_fn, likely=True)
    facts = {
        "batch": batch or network.batch,
        "size": network.size,
        "torch": torch.__version__,
        "model_allocated": holds_memory(case.model),
        "capture_seconds": round(time.perf_counter() - began, 2),
    }
    return replace(step.graph, name=network.title), facts


@dataclass(frozen=True)
class Batches:
    """A network's graph at any batch size between two at which it was captured.

    Sizes of values are affine in the batch size, which is asserted at a third one. So are costs,
    but for ops that arithmetic bounds at some sizes and bandwidth at others.

    Attributes:
        low, high: the batch sizes captured.
        low_graph, high_graph: the graphs there.
    """

    low: int
    high: int
    low_graph: TrainingGraph
    high_graph: TrainingGraph

    @classmethod
    def of(cls, name: str, low: int, middle: int, high: int) -> tuple[Batches, float]:
        """Capture at three sizes; the largest relative error of a total cost in the middle too."""
        graphs = [captured(name, batch)[0] for batch in (low, middle, high)]
        made = cls(low, high, graphs[0], graphs[2])
        between = made.at(middle)
        same = [v.size_bytes for v in between.values] == [v.size_bytes for v in graphs[1].values]
        assert same, f"{name}: sizes of values are not affine in the batch size"
        assert [o.inputs for o in between.ops] == [o.inputs for o in graphs[1].ops]
        return made, between.total_cost / graphs[1].total_cost - 1

    def at(self, batch: int) -> TrainingGraph:
        """The graph at a batch size."""

        def between(low: int, high: int) -> int:
            return low + (high - low) * (batch - self.low) // (self.high - self.low)

        low, high = self.low_graph, self.high_graph
        assert len(low.values) == len(high.values)
        assert len(low.ops) == len(high.ops)
        values = tuple(
            replace(a, size_bytes=between(a.size_bytes, b.size_bytes))
            for a, b in zip(low.values, high.values, strict=True)
        )
        ops = tuple(
            replace(a, cost=between(a.cost, b.cost)) for a, b in zip(low.ops, high.ops, strict=True)
        )
        return replace(low, values=values, ops=ops)
