"""Tests against the real trainers: everything on the CPU, with random data and tiny models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from memfit.pytorch.cost.measure import steady_allocator
from support.quiet_trace import no_structured_trace

no_structured_trace()


@pytest.fixture(autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "costs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _steady() -> Iterator[None]:
    with steady_allocator():
        yield
