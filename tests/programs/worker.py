"""A process that runs programs: a JSON line in, a JSON line out."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TextIO

import torch

from memfit.pytorch.compat.eager import quiet_logs
from programs.check import Finding, cause_of, check
from programs.generate import generate
from programs.program import source
from programs.shrink import shrink
from programs.trial import Trial

__all__ = ["main", "run_seed"]


def is_measured(seed: int) -> bool:
    """Whether costs and peaks of this seed's program are measured."""
    return seed % 3 == 0


def run_seed(seed: int, most: int = 14) -> dict[str, Any]:
    """What comes of a seed, as JSON."""
    began = time.process_time()
    program = generate(seed, most)
    if program is None:
        return {"seed": seed, "status": "none", "cause": "no program", "findings": []}
    try:
        verdict = check(program, measured=is_measured(seed), fresh=seed % 7 == 0)
    except Exception as error:
        finding = Finding("raw error", f"outside of a step: {cause_of(error)}")
        return {"seed": seed, "status": "found", "cause": "", "findings": [asdict(finding)]}
    return {"seed": seed, **asdict(verdict), "seconds": round(time.process_time() - began, 3)}


def _run_plain(seed: int, most: int = 14) -> dict[str, Any]:
    """Make the program and run it in plain PyTorch, to see whether that ends the process."""
    program = generate(seed, most)
    if program is not None:
        trial = Trial(program)
        with suppress(Exception):
            trial.run(trial.plain)
    return {"seed": seed}


def _shrunk(seed: int, finding: dict[str, Any], seconds: float) -> dict[str, Any]:
    program = generate(seed)
    assert program is not None
    small = shrink(program, Finding(**finding), measured=is_measured(seed), seconds=seconds)
    return {"source": source(small), "program": json.loads(small.to_json())}


def _serve(answers: TextIO) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "plain" in asked:
            answer = _run_plain(asked["seed"])
        elif "finding" in asked:
            answer = _shrunk(asked["seed"], asked["finding"], asked["seconds"])
        else:
            answer = run_seed(asked["seed"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        gc.collect()
        gc.freeze()  # what stays, Dynamo's memory above all, need not be looked through again


def main() -> None:
    """Serve until the input ends; what PyTorch prints goes to the error stream."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    quiet_logs()
    logging.disable(logging.CRITICAL)
    gc.collect()
    gc.freeze()
    gc.disable()
    _serve(answers)


if __name__ == "__main__":
    main()
