"""Runs architectures in processes of their own, so many at once, each with a time limit."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.lib.harness import ROOT, module_command

__all__ = ["run_all", "run_one"]

WORKER = "benchmarks.zoo.worker"

Row = dict[str, Any]


def run_one(name: str, limit_s: float) -> Row:
    """The row of an architecture; what ended its process, where that did not give one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        module_command(WORKER, name),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"outcome": "time limit", "line": f"not done after {limit_s:.0f} s"}
    return row_from(out, err, process.returncode)


def row_from(out: str, err: str, status: int) -> Row:
    """The row that a process printed last, or how it ended."""
    lines = out.strip().splitlines()
    if status == 0 and lines:
        row: Row = json.loads(lines[-1])
        return row
    said = err.strip().splitlines() or [""]
    return {"outcome": "crashed", "error": f"exit status {status}", "line": said[-1][:300]}


def run_all(
    names: Sequence[str], limit_s: float, jobs: int, done: Callable[[str, Row], None]
) -> None:
    """Run architectures; `done` is called with each one's row, in the caller's thread."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {name: pool.submit(run_one, name, limit_s) for name in names}
        try:
            for name, future in waiting.items():
                done(name, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
