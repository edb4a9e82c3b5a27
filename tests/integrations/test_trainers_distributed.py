"""The trainers under DistributedDataParallel: two processes, gloo, launched by torchrun.

`trainer_worker.py` trains with each trainer plain and within 70% of the plain peak.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.ranks import Ranks, finish, start

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which Trainer needs, is not installed")
pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

WORKER = Path(__file__).with_name("trainer_worker.py")
TRAINERS = ["huggingface", "lightning"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("ranks")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = start([*command, str(WORKER), str(folder)], folder / "cache")
    output = finish(process)
    assert process.returncode == 0, output
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def cases(rank: dict[str, Any], trainer: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return rank[f"{trainer} plain"], rank[f"{trainer} planned"]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trains_as_without_memfit(ranks: Ranks, trainer: str) -> None:
    for rank in ranks:
        plain, planned = cases(rank, trainer)
        assert len(plain["losses"]) == 4
        assert planned["losses"] == plain["losses"]
        assert list(planned["state"]) == list(plain["state"])
        for name, value in plain["state"].items():
            assert torch.equal(planned["state"][name], value), name


@pytest.mark.parametrize("trainer", TRAINERS)
def test_ranks_share_one_plan_and_end_with_the_same_weights(ranks: Ranks, trainer: str) -> None:
    first, second = (cases(rank, trainer)[1] for rank in ranks)
    assert first["plan"] == second["plan"]
    assert first["budget"] < first["plain_peak"]
    for name, value in first["state"].items():
        assert torch.equal(second["state"][name], value), name
    # The buckets of DistributedDataParallel are as large as what is trained.
    trained = sum(v.numel() * v.element_size() for v in first["state"].values())
    assert first["buckets"] >= 0.5 * trained


def test_each_ranks_peak_is_within_its_budget(ranks: Ranks) -> None:
    for rank in ranks:
        plain, planned = cases(rank, "huggingface")
        assert planned["measured"] + planned["resident"] <= planned["budget"]
        assert planned["measured"] < plain["measured"]
