"""Tests that train: memory stays with the process, so that steps do not pay for page faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memfit.pytorch.cost.measure import steady_allocator
from support.quiet_trace import no_structured_trace

no_structured_trace()


@pytest.fixture(autouse=True)
def _steady() -> Iterator[None]:
    with steady_allocator():
        yield
