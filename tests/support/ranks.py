"""Several processes, one for each rank, and what each of them found."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

__all__ = ["Ranks", "finish", "found_by_ranks", "run_rank", "start"]

# These end what hangs. On a machine that others use, ranks that take a minute have taken seven.
TIMEOUT_S = 1200
COLLECTIVE_TIMEOUT = datetime.timedelta(seconds=600)
Ranks = list[dict[str, Any]]


def finish(process: subprocess.Popen[str]) -> str:
    """What a process printed; its whole group is ended where it takes too long."""
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"still running after {TIMEOUT_S} s:\n{output}")
    return output


def start(arguments: list[str], cache: Path) -> subprocess.Popen[str]:
    """Python with these arguments, as the first process of a group of its own."""
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "MEMFIT_CACHE_DIR": str(cache),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def found_by_ranks(worker: Path, folder: Path, options: tuple[str, ...] = ()) -> dict[str, Ranks]:
    """What two ranks of a worker found, by scenario; the worker calls `run_rank`."""
    command = ["-W", "error", *options, str(worker)]
    ranks = [start([*command, str(i), str(folder)], folder / f"cache{i}") for i in range(2)]
    outputs = [finish(process) for process in ranks]
    # One rank's failure ends the other: both outputs are needed to see which came first.
    assert all(process.returncode == 0 for process in ranks), "\n".join(outputs)
    results = [torch.load(folder / f"{i}.pt") for i in range(2)]
    return {name: [rank[name] for rank in results] for name in results[0]}


def run_rank(scenarios: Mapping[str, Callable[[int], Any]], setup: bool = True) -> None:
    """Run every scenario as the rank that the command line names, and leave what it returned.

    Args:
        scenarios: called with the rank; they return what `torch.save` can write.
        setup: set up the process group; otherwise the scenarios do, in the environment of torchrun.
    """
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    if setup:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=2,
            timeout=COLLECTIVE_TIMEOUT,
        )
    results = {}
    for name, run in scenarios.items():
        torch._dynamo.reset()
        results[name] = run(rank)
    torch.save(results, folder / f"{rank}.pt")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
