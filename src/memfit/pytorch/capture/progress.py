"""How far the tracing of a captured graph is.

AOTAutograd runs a captured graph twice: to learn what it does to its inputs, and to trace it; then
it traces the backward pass. The runs go through marks that are put into the graph and report.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

__all__ = ["CAPTURING", "TRACING", "mark_progress"]

CAPTURING = "capturing the model"
TRACING = "tracing forward and backward"
_MARKS = 50
_FEWEST_NODES = 200
_LEARNING, _FORWARD = 0.2, 0.5  # share of the time that is over after each run, about


def mark_progress(module: fx.GraphModule, progress: Callable[[str, float], object]) -> None:
    """Have the runs of a captured graph report; graphs of a moment are left as they are.

    The backward pass, which is traced without running the graph, reports when it is over.

    Args:
        module: what Dynamo captured; changed in place.
        progress: called with `TRACING` and the share done.
    """
    calls = [n for n in module.graph.nodes if n.op.startswith("call")]
    if len(calls) < _FEWEST_NODES:
        return
    every = -(-len(calls) // _MARKS)
    marked = calls[::every]
    passed = 0

    def mark() -> None:
        nonlocal passed
        passed += 1
        done = passed / len(marked)
        share = _LEARNING * done if done <= 1 else _LEARNING + (_FORWARD - _LEARNING) * (done - 1)
        progress(TRACING, min(share, _FORWARD))

    for node in marked:
        with module.graph.inserting_before(node):
            module.graph.call_function(mark)
    module.recompile()
