"""Everything that is set while a step is traced, and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memfit.pytorch.compat.eager import capture_settings
from memfit.pytorch.compat.layouts import in_place_draws
from memfit.pytorch.layouts.draws import draw_in_place
from memfit.pytorch.layouts.kernel_layouts import real_layouts
from memfit.pytorch.options import MAX_SHAPES

__all__ = ["trace_settings"]


@contextmanager
def trace_settings(shapes: int = MAX_SHAPES) -> Iterator[None]:
    """Settings for the calls of a step, which may trace it; for so many input shapes."""
    with capture_settings(shapes), real_layouts(), in_place_draws(draw_in_place):
        yield
