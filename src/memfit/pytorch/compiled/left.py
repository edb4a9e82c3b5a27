"""Calls that Dynamo gives up on and leaves to plain PyTorch: where, why, and what to do."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.autograd.graph import GradientEdge

from memfit.planners.several.runs import EagerPart
from memfit.pytorch.compat.autograd import leaves_behind
from memfit.pytorch.compat.dynamo import FrameTraced, user_frames

__all__ = ["Left", "place_and_remedy"]


@dataclass(frozen=True)
class Left:
    """A call that runs as plain PyTorch.

    Attributes:
        line: file and line that Dynamo could not trace.
        reason: what Dynamo says of it.
        owner: gives the module that was called; None where there is none, or where it is gone.
    """

    line: str
    reason: str
    owner: Callable[[], nn.Module | None]

    @classmethod
    def of(cls, frame: FrameTraced) -> Left:
        """The call, of what Dynamo raised."""
        assert frame.error is not None
        frames = user_frames(frame.error)
        line = "{}:{}".format(*frames[-1]) if frames else "an unknown line"
        reason = str(frame.error).strip().partition("\n")[0]
        owner = frame.owner
        if not isinstance(owner, nn.Module):
            return cls(line, reason, lambda: None)
        return cls(line, reason, weakref.ref(owner))

    def is_behind(self, roots: Sequence[Any]) -> bool:
        """Whether gradients reach what the call trains; taken for granted where it is no module."""
        owner = self.owner()
        if owner is None:
            return True
        tensors = [x for x in roots if not isinstance(x, GradientEdge)]
        trained = {id(p) for p in owner.parameters()}
        return any(id(leaf) in trained for leaf in leaves_behind(tensors))


def place_and_remedy(
    eager: Sequence[EagerPart | None], lines: Sequence[str | None], left: Sequence[Left]
) -> tuple[str, str]:
    """Where the code is that holds most outside of the graphs, and what to do, for a warning.

    Args:
        eager: that code.
        lines: for each run of a graph, the source line of the break that ends it.
        left: what Dynamo has given up on.
    """
    if left:
        last = left[-1]
        said = f"which Dynamo leaves to PyTorch because of {last.line} ({last.reason})"
        return said, "fit the model with memfit.fit, which plans such code, too, or "
    most = max(range(len(eager)), key=lambda n: part.own_bytes if (part := eager[n]) else 0)
    line = next((x for x in reversed(lines[:most]) if x), None)
    if line is not None:
        return f"after the graph break at {line}", "remove the break, or "
    if most == len(lines):
        return "after the last of them", "compile the loss together with the model, or "
    return "before the first of them", "compile that code, too, or "
