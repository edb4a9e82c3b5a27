"""Worker processes, which may hang or die without harm to the others."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["Worker"]

LIFE = 200  # programs after which a process is replaced: Dynamo remembers every module
TESTS = Path(__file__).parents[1]


def _cpu_s(pid: int) -> float:
    """Processor time of a process; other processes on a busy machine do not add to it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A process that answers one question at a time.

    Args:
        cache: folder of its caches of costs and plans.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._process: subprocess.Popen[str] | None = None
        self._asked = 0

    def ask(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Its answer; `{"died": …}` where the process ended or took that much processor time."""
        if self._process is None or self._asked >= LIFE:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        self._asked += 1
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            ready = self._wait(process, timeout_s)
            line = process.stdout.readline() if ready else ""
        except OSError:
            line, ready = "", True
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.close()
        return {"died": f"the process ended with {process.returncode}" if ready else "it hangs"}

    @staticmethod
    def _wait(process: subprocess.Popen[str], timeout_s: float) -> bool:
        """Whether there is something to read before the time is over."""
        began = _cpu_s(process.pid)
        while True:
            ready, _, _ = select.select([process.stdout], [], [], 2)
            if ready:
                return True
            if _cpu_s(process.pid) - began > timeout_s:
                return False

    def _start(self) -> None:
        self.close()
        environment = {
            **os.environ,
            "MEMFIT_CACHE_DIR": str(self._cache),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "PYTHONPATH": str(TESTS),
        }
        self._asked = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "programs.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=TESTS.parent,
        )

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process = None
