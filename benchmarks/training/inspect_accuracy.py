"""How far `memfit inspect` is from the measured peak of a plain step.

Each network is predicted and measured in processes of its own, so that what the prediction takes
can be seen: `python -m benchmarks.training.inspect_accuracy [NETWORK …]`. One line of JSON for
each.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.lib import networks
from benchmarks.lib.harness import ROOT, chosen, command_line, module_command
from memfit.graph.plain import store_all_schedule
from memfit.graph.simulator import simulate
from memfit.pytorch.api.unallocated import holds_memory, without_memory
from memfit.pytorch.cost.measure import measure_step

CASES: dict[str, tuple[Callable[..., networks.Case], dict[str, Any]]] = {
    "resnet50": (networks.resnet50, {}),
    "unet": (networks.unet, {}),
    "gpt2": (networks.gpt2, {}),
    "lstm": (networks.lstm, {"steps": 128}),
}


def predict(name: str) -> dict[str, Any]:
    """The peak that `memfit inspect` gives, without memory for the model."""
    build, options = CASES[name]
    before = _resident_kib()
    unallocated = without_memory("cpu")
    with unallocated.building:
        case = build(**options)
    after_building = _resident_kib()
    graph = unallocated.capture(case.model, case.args, case.loss_fn, likely=True).graph
    return {
        "predicted_bytes": simulate(graph, store_all_schedule(graph)).peak_bytes,
        "resident_bytes": graph.resident_bytes,
        "ops": len(graph.ops),
        "model_allocated": holds_memory(case.model),
        "process_grew_building_bytes": 1024 * (after_building - before),
        "process_grew_in_all_bytes": 1024 * (_resident_kib() - before),
    }


def measure(name: str) -> dict[str, Any]:
    """The peak of the plain step above what was there before it."""
    build, options = CASES[name]
    case = build(**options)

    def step() -> object:
        assert case.loss_fn is not None
        loss = case.loss_fn(case.model(*case.args[:-1]), case.args[-1])
        loss.backward()
        return loss

    found = measure_step(step, reset=lambda: case.model.zero_grad(set_to_none=True))
    return {"measured_above_bytes": found.peak_bytes}


def _resident_kib() -> int:
    """Most memory that the process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def compared(name: str) -> dict[str, Any]:
    """Prediction and measurement of a network, each in a process of its own."""
    found: dict[str, Any] = {"network": name, "torch": torch.__version__}
    for what in ("predict", "measure"):
        command = module_command("benchmarks.training.inspect_accuracy", what, name)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        found |= json.loads(done.stdout.splitlines()[-1])
    measured = found["resident_bytes"] + found.pop("measured_above_bytes")
    error = 100 * (found["predicted_bytes"] - measured) / measured
    return {**found, "measured_bytes": measured, "error_percent": round(error, 3)}


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    words = sys.argv[1:]
    if words[:1] in (["predict"], ["measure"]):
        print(json.dumps({"predict": predict, "measure": measure}[words[0]](words[1])))
        return
    parser = command_line(__doc__, names=CASES)
    for name in chosen(parser, parser.parse_args(words).networks, CASES):
        print(json.dumps(compared(name)), flush=True)


if __name__ == "__main__":
    main()
