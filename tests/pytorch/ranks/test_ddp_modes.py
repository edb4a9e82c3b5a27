"""DistributedDataParallel's modes: no_sync, unused parameters, static graphs; two processes, gloo.

`ddp_worker.py` runs one rank of each mode, plain and within 70% of the plain peak.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.ranks import Ranks, found_by_ranks

# Two processes through eighteen trainings; test_distributed.py shows DDP by default.
pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("ddp_worker.py")
MODES = [
    "no_sync",
    "no_sync, bucket view",
    "no_sync, late",
    "zeroed, bucket view",
    "unused, bucket view",
    "unused, no_sync",
    "static, unused, bucket view",
    "static, no_sync",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ranks]:
    """What two ranks found, by scenario."""
    return found_by_ranks(WORKER, tmp_path_factory.mktemp("ranks"))


def test_every_mode_is_here(found: dict[str, Ranks]) -> None:
    assert list(found["modes"][0]) == MODES


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_plain_ddp(found: dict[str, Ranks], mode: str) -> None:
    for rank in found["modes"]:
        plain, planned = (rank[mode][name]["gradients"] for name in ("plain", "planned"))
        assert len(plain) == len(planned) >= 3
        for want, got in zip(plain, planned, strict=True):
            assert want.keys() == got.keys()
            for name, value in want.items():
                same = got[name] is None if value is None else torch.equal(got[name], value)
                assert same, name
    first, second = (rank[mode]["planned"]["gradients"][-1] for rank in found["modes"])
    assert all(v is None or torch.equal(v, second[n]) for n, v in first.items())
    assert any(v is not None and float(v.abs().max()) > 0 for v in first.values())


@pytest.mark.parametrize("mode", MODES)
def test_the_peak_of_a_whole_cycle_is_within_the_budget(found: dict[str, Ranks], mode: str) -> None:
    for rank in found["modes"]:
        planned = rank[mode]["planned"]
        assert planned["peak"] + planned["resident"] <= planned["budget"]
        assert planned["peak"] < rank[mode]["plain"]["peak"]
        assert planned["messages"] == []


def test_gradients_that_the_budget_does_not_count_are_told(found: dict[str, Ranks]) -> None:
    for rank in found["uncounted"]:
        for run in rank.values():
            (message,) = run["messages"]
            assert "accumulate=True" in message
