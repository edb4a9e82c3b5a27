"""Runs entries of the op database in processes that are started again where a kernel ends one."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.lib.harness import ROOT, module_command

__all__ = ["EntryResult", "run_entries"]

WORKER = "benchmarks.ops.worker"
SILENT_S = 600.0  # after which a call is taken to hang


@dataclass
class EntryResult:
    """What an entry gave.

    Attributes:
        name: of the entry.
        runs, refused: how many runs there were, and how many eager itself refused.
        calls: the calls that its process had not seen before, as `worker.compact` gives them.
        crashed: for each run that ended its process: the op, the run, the exit status.
        trouble: why there are no samples.
    """

    name: str
    runs: int = 0
    refused: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)
    crashed: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""


class _Worker:
    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def run(self, name: str) -> EntryResult:
        result = EntryResult(name)
        first = 0
        while first >= 0:
            first = self._run_from(result, first)
        return result

    def _run_from(self, result: EntryResult, first: int) -> int:
        """Run an entry from one of its runs on; the run to go on with after a crash, or -1."""
        if self._process is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                module_command(WORKER, str(self._samples)),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            self._buffer = b""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{result.name} {first}\n".encode())
        self._process.stdin.flush()
        number, label, op = first - 1, "", ""
        while True:
            line = self._line()
            if line is None:
                status = self.close(kill=True)
                result.crashed.append({"op": op, "run": label, "status": status})
                return number + 1
            kind, value = json.loads(line)
            if kind == "run":
                number, label = value
                result.runs += 1
                op = ""
            elif kind == "op":
                op = value
            elif kind == "call":
                result.calls.append({**value, "run": number})
            elif kind == "refused":
                result.refused += 1
            elif kind == "no samples":
                result.trouble = value
            elif kind == "done":
                return -1

    def _line(self) -> bytes | None:
        """The next line; None where the process has ended or is silent for too long."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(SILENT_S):
                    return None
                found = os.read(descriptor, 1 << 16)
                if not found:
                    return None
                self._buffer += found
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def close(self, *, kill: bool = False) -> int:
        """End the process; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None
        process.stdin.close()
        if kill and process.poll() is None:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        assert process.stdout is not None
        process.stdout.close()
        return process.wait()


def run_entries(
    names: Sequence[str],
    samples: int,
    jobs: int,
    done: Callable[[EntryResult], None] = lambda _: None,
) -> list[EntryResult]:
    """Results of entries, of so many samples each, in the order given, from so many processes."""
    shares = [names[i::jobs] for i in range(jobs)]

    def work(share: Sequence[str]) -> list[EntryResult]:
        worker = _Worker(samples)
        try:
            found = []
            for name in share:
                found.append(worker.run(name))
                done(found[-1])
            return found
        finally:
            worker.close()

    with ThreadPoolExecutor(jobs) as pool:
        results = {r.name: r for part in pool.map(work, shares) for r in part}
    return [results[name] for name in names]
