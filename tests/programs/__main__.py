"""`python -m programs`: random programs for a time or a number, in several processes."""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from programs.pool import Worker
from programs.summary import Summary

PATIENCE_S = 120.0  # of processor time


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m programs", description=__doc__)
    parser.add_argument("--programs", type=int, default=0, help="how many that PyTorch trains")
    parser.add_argument("--seconds", type=float, default=0, help="how long, if no number is given")
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--seeds", help="file of seeds to run instead, one a line")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shrink", type=float, default=60, help="seconds for each finding")
    parser.add_argument("--out", type=Path, default=Path("build/programs"))
    return parser.parse_args()


def _dead(worker: Worker, seed: int, cause: str) -> dict[str, Any]:
    """What to say of a program with which a process ended: plain PyTorch's kernels crash too."""
    plain = worker.ask({"seed": seed, "plain": True}, PATIENCE_S)
    if "died" in plain:
        cause = f"plain PyTorch: {plain['died']}"
        return {"seed": seed, "status": "unfit", "cause": cause, "findings": []}
    finding = {"kind": "raw error", "cause": cause, "planner": "", "budget": "", "detail": ""}
    return {"seed": seed, "status": "found", "findings": [finding]}


class Run:
    """Hands out seeds and collects what comes back."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.began = time.monotonic()
        self.summary = Summary(options.seed)
        self.lock = threading.Lock()
        self.next = options.seed
        self.listed: queue.SimpleQueue[int] | None = None
        if options.seeds:
            self.listed = queue.SimpleQueue()
            for line in Path(options.seeds).read_text().split():
                self.listed.put(int(line))
        self.told = 0.0
        self.log = (options.out / "programs.jsonl").open("w", encoding="utf-8")

    def seed(self) -> int | None:
        """The next seed; None at the end."""
        with self.lock:
            if self.listed is not None:
                try:
                    return self.listed.get_nowait()
                except queue.Empty:
                    return None
            options = self.options
            if options.programs:
                if self.summary.programs >= options.programs:
                    return None
            elif time.monotonic() - self.began > (options.seconds or 60):
                return None
            self.next += 1
            return self.next - 1

    def work(self, cache: Path) -> None:
        """One worker's share."""
        worker = Worker(cache)
        while (seed := self.seed()) is not None:
            answer = worker.ask({"seed": seed}, PATIENCE_S)
            if "died" in answer:
                answer = _dead(worker, seed, answer["died"])
            with self.lock:
                fresh = self.summary.add(answer)
                self.log.write(json.dumps(answer) + "\n")
                self.log.flush()
                self._tell()
            for finding in fresh:
                self._shrink(worker, seed, finding)
        worker.close()

    def _shrink(self, worker: Worker, seed: int, finding: dict[str, Any]) -> None:
        lines = [f"# {finding['kind']}: {finding['cause']}",
                 f"# planner {finding['planner']}, budget {finding['budget']}",
                 *(f"# {line}" for line in finding["detail"].splitlines())]  # fmt: skip
        answer: dict[str, Any] = {}
        if self.options.shrink and finding["cause"] != "it hangs":
            asked = {"seed": seed, "finding": finding, "seconds": self.options.shrink}
            answer = worker.ask(asked, self.options.shrink + PATIENCE_S)
        name = f"{finding['kind'].replace(' ', '-')}-{seed}"
        text = "\n".join([*lines, answer.get("source", "")])
        with self.lock:
            (self.options.out / f"{name}.py").write_text(text, encoding="utf-8")
            print(f"\n{name}.py\n{text}", flush=True)

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self.told > 15:
            self.told = now
            print(f"{now - self.began:6.0f} s  {self.summary.line()}", flush=True)
            self.save()

    def save(self) -> None:
        """Write the summary."""
        data = self.summary.to_json(time.monotonic() - self.began)
        path = self.options.out / "summary.json"
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Run; 1 where something was found."""
    options = _arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    with tempfile.TemporaryDirectory() as caches:
        threads = [
            threading.Thread(target=run.work, args=(Path(caches) / str(i),))
            for i in range(options.jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    run.save()
    summary = run.summary
    print(f"\n{time.monotonic() - run.began:6.0f} s  {summary.line()}")
    for cause, count in summary.causes["refused"].most_common():
        print(f"  refused {count:4}  {cause}")
    for group in sorted(summary.groups.values(), key=lambda g: -g["programs"]):
        print(f"  {group['kind']} {group['programs']:4}  {group['cause']}  seeds {group['seeds']}")
    print(f"counts in {options.out / 'summary.json'}")
    return 1 if summary.groups else 0


if __name__ == "__main__":
    sys.exit(main())
