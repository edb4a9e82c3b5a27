"""A Dynamo graph that runs without a plan, for whatever sizes: plainly, or computed again.

Sizes that are others in each step are not worth a plan each. Where the plans of a graph have no
room for all that it keeps, it is run without one in the same spirit: what it keeps is given up, and
computed again when its backward pass begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

__all__ = ["Unplanned"]

_WRITE_STATISTICS = ("batch_norm", "instance_norm")


class Unplanned:
    """Runs a graph without a plan.

    Args:
        module: the graph.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._repeats: bool | None = False if _writes_statistics(module) else None

    def watch(self, args: Sequence[Any], run: Callable[[], Any]) -> Any:
        """Run the graph with a plan; the first time, see whether it writes what it is given.

        That must not be written again.
        """
        if self._repeats is not None:
            return run()
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        before = [x._version for x in tensors]
        results = run()
        self._repeats = [x._version for x in tensors] == before
        return results

    def __call__(self, args: Sequence[Any], *, again: bool) -> Any:
        """The graph's results.

        Args:
            args: what it is given.
            again: compute it again in the backward pass where that is possible.
        """
        if again and self._repeats:
            return checkpoint(self._module, *args, use_reentrant=False)
        return self._module(*args)


def _writes_statistics(module: fx.GraphModule) -> bool:
    """Whether there is a call that writes buffers and does not say so."""
    names = (str(getattr(node.target, "__name__", node.target)) for node in module.graph.nodes)
    return any(part in name for name in names for part in _WRITE_STATISTICS)
