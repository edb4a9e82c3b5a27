"""Tests that train: memory stays with the process, so that steps do not pay for page faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from memfit.pytorch.cost.measure import steady_allocator
from support.quiet_trace import no_structured_trace

no_structured_trace()


@pytest.fixture(autouse=True)
def _steady() -> Iterator[None]:
    with steady_allocator():
        yield


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Nothing is compiled before the test or stays after it; its random numbers are fixed."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()
