"""For all tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _short_collections() -> Iterator[None]:
    """Garbage collections pass over what was there before.

    PyTorch's modules alone are over a million objects, and a step that is captured or measured
    collects garbage each time.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
