"""A compilation that is only there to capture."""

from __future__ import annotations

from typing import NoReturn

from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.loops.choice import keeping_everything
from memfit.pytorch.planning.protocol import Draft, Occasion

__all__ = ["CaptureEnds", "CaptureOnly"]


class CaptureEnds(Exception):
    """Ends a compilation that is only there to capture.

    Args:
        step: what was captured, with costs.
    """

    def __init__(self, step: CapturedStep) -> None:
        super().__init__("captured")
        self.step = step


class CaptureOnly:
    """A `Planning` that ends where there would be a plan."""

    def plan(self, draft: Draft[CapturedStep], occasion: Occasion) -> NoReturn:
        """See `Planning`.

        Raises:
            CaptureEnds: always.
        """
        raise CaptureEnds(keeping_everything(draft.priced(), draft.programs))
