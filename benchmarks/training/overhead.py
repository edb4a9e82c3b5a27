"""What memfit costs where there is nothing to save: step time with an ample budget.

Compares a fitted module with the same graph run without memfit's planning: AOTAutograd's joint
graph split by PyTorch's own default partitioner, run op by op. Both trace with the same settings.
Steps are interleaved, every second round in reverse order; figures are medians. Asserts equal
gradients, and that the fitted step takes at most 2% longer.

Run `python -m benchmarks.training.overhead [--quick] [--rounds N]`; it writes
benchmarks/results/overhead.json.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from functorch.compile import default_partition
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop

import memfit
from benchmarks.lib.harness import (
    command_line,
    interleaved,
    medians,
    milliseconds,
    ratios,
    step_facts,
    write_results,
)
from memfit.pytorch.compat.whole_ops import whole_ops
from memfit.pytorch.cost.measure import steady_allocator
from memfit.pytorch.prepare.tracing import trace_settings
from memfit.pytorch.step_call import StepModule

LIMIT_PERCENT = 2.0
ROUNDS, QUICK_ROUNDS = 101, 31
WARMUP = 3


class Small(nn.Module):
    """Many small ops, where the cost of each call shows most."""

    def __init__(self, width: int = 128, depth: int = 24) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Residual layers."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + F.dropout(F.gelu(layer(norm(x))), 0.1, self.training)
        return x


class Conv(nn.Module):
    """Convolutions with batch norm."""

    def __init__(self, width: int = 32, depth: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features."""
        x = self.first(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.relu(norm(conv(x)))
        return x


def loss_of(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (y - target).square().mean()


CASES: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]] = {
    "small ops": lambda: (Small(), (torch.randn(256, 128), torch.randn(256, 128))),
    "convolutions": lambda: (Conv(), (torch.randn(4, 3, 32, 32), torch.randn(4, 32, 32, 32))),
}


def without_planning(model: nn.Module) -> Callable[..., Any]:
    """The captured step, split by PyTorch's default partitioner."""
    aot = aot_autograd(
        fw_compiler=boxed_nop,
        bw_compiler=boxed_nop,
        partition_fn=default_partition,
        keep_inference_input_mutations=True,
    )

    def backend(module: Any, example_inputs: Any) -> Any:
        with whole_ops():
            return aot(module, example_inputs)

    step = StepModule(model, loss_of)
    compiled = torch.compile(step, backend=backend, fullgraph=True, dynamic=False)

    def call(*args: Any) -> Any:
        with trace_settings():
            return compiled(*args)

    return call


def measure(name: str, rounds: int) -> dict[str, Any]:
    """One network's row."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, args = CASES[name]()
    twin = copy.deepcopy(model)
    calls = {
        "memfit": (model, memfit.fit(model, loss_of, budget=2**50, cost="analytic")),
        "without": (twin, without_planning(twin)),
    }
    gradients, runs = [], {}
    for key, (module, call) in calls.items():

        def step(module: nn.Module = module, call: Callable[..., Any] = call) -> None:
            module.zero_grad()
            call(*args).backward()

        torch.manual_seed(1)
        step()
        gradients.append([p.grad.clone() for p in module.parameters()])
        runs[key] = partial(milliseconds, step)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)), name
    fitted = calls["memfit"][1]
    assert fitted.plan.overhead == 0
    with steady_allocator():
        found = interleaved(runs, rounds, warmup=WARMUP)
    middle = medians(found)
    paired = statistics.median(ratios(found["memfit"], found["without"]))
    return {
        "network": name,
        "memfit_ms": middle["memfit"],
        "without_ms": middle["without"],
        "overhead_percent": 100 * (middle["memfit"] / middle["without"] - 1),
        "overhead_percent_paired": 100 * (paired - 1),
        "rounds": rounds,
    }


def main() -> int:
    """Measure, print, write, and say whether the limit holds."""
    parser = command_line(__doc__, quick=f"{QUICK_ROUNDS} rounds")
    parser.add_argument("--rounds", type=int, help=f"timed rounds (default {ROUNDS})")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    rows = [measure(name, rounds) for name in CASES]
    for row in rows:
        print(
            f"{row['network']:14} memfit {row['memfit_ms']:8.2f} ms, "
            f"without {row['without_ms']:8.2f} ms: {row['overhead_percent']:+.2f}% "
            f"(paired {row['overhead_percent_paired']:+.2f}%)"
        )
    write_results("overhead", {**step_facts(), "rows": rows})
    worst = max(row["overhead_percent_paired"] for row in rows)
    if worst > LIMIT_PERCENT:
        print(f"overhead {worst:.2f}% is above {LIMIT_PERCENT}%")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
