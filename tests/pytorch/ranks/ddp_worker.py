"""One rank of the tests in test_ddp_modes.py: ddp_worker.py RANK FOLDER."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import memfit
from memfit.graph.training_graph import ValueKind
from memfit.pytorch.cost.measure import measure_step
from support.ranks import run_rank

WIDTH = 96
BATCH = 256
BUDGET = "70%"
Batch = tuple[torch.Tensor, torch.Tensor]


class Branches(nn.Module):
    """A trunk, two branches of which one or both are taken, and a parameter that may get none."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH))
                for _ in range(4)
            )
        )
        self.left, self.right = nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 10)
        self.detached = nn.Parameter(torch.ones(WIDTH))
        self.branch = "left"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the branch."""
        h = self.trunk(x)
        if self.branch == "both":
            return self.left(h) + self.right(h * self.detached)
        return (self.left if self.branch == "left" else self.right)(h * self.detached.detach())


@dataclass(frozen=True)
class Mode:
    """How DDP trains.

    Attributes:
        cycles: for each optimizer step, the branch of each of its passes; only the last reduces.
        ddp: arguments of DistributedDataParallel.
        fit: arguments of `memfit.fit`.
        set_to_none: how gradients are zeroed.
    """

    cycles: list[list[str]]
    ddp: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    set_to_none: bool = True


class Listener(logging.Handler):
    """Keeps memfit's messages, but those that a rank waits: they come where the machine is busy."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        if " waits for " not in record.getMessage():
            self.messages.append(record.getMessage())


def batches(rank: int, count: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(100 + rank)
    return [
        (
            torch.randn(BATCH, WIDTH, generator=draw),
            torch.randint(0, 10, (BATCH,), generator=draw),
        )
        for _ in range(count)
    ]


def train(rank: int, mode: Mode, budget: str | None) -> dict[str, Any]:
    """Gradients after each cycle of passes, and the peak of one more."""
    torch.manual_seed(0)
    model = Branches()
    module: nn.Module = model
    if budget is not None:
        module = memfit.fit(model, F.cross_entropy, budget=budget, cost="analytic", **mode.fit)
    ddp = DDP(module, bucket_cap_mb=0.06, **mode.ddp)
    data = batches(rank, max(map(len, mode.cycles)))

    def call(batch: Batch) -> torch.Tensor:
        return F.cross_entropy(ddp(batch[0]), batch[1]) if budget is None else ddp(*batch)

    def cycle(branches: list[str]) -> None:
        for i, branch in enumerate(branches):
            model.branch = branch
            with nullcontext() if i == len(branches) - 1 else ddp.no_sync():
                call(data[i]).backward()

    gradients = []
    for branches in mode.cycles:
        ddp.zero_grad(mode.set_to_none)
        cycle(branches)
        gradients.append(
            {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
        )
    measured = measure_step(
        lambda: cycle(mode.cycles[-1]), reset=lambda: ddp.zero_grad(mode.set_to_none)
    )
    found = {"gradients": gradients, "peak": measured.peak_bytes}
    if budget is not None:
        held = sum(v.size_bytes for v in module.graph.values if v.kind is ValueKind.ACCUMULATED)
        found |= {
            "resident": module.graph.resident_bytes - held,
            "held": held,
            "budget": module.plan.budget_bytes,
        }
    return found


def listening(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `call` returns, with memfit's messages meanwhile."""
    listener = Listener()
    logger = logging.getLogger("memfit")
    logger.addHandler(listener)
    found = call()
    logger.removeHandler(listener)
    return found | {"messages": listener.messages}


THRICE = [["both"] * 3] * 3
TURNS = [["left"], ["right"], ["both"], ["left"]]
ONCE = [["both"]] * 3
HELD = {"accumulate": True}
VIEW = {"gradient_as_bucket_view": True}
UNUSED = {"find_unused_parameters": True}
STATIC = {"static_graph": True}
MODES = {
    "no_sync": Mode(THRICE, {}, HELD),
    "no_sync, bucket view": Mode(THRICE, VIEW, HELD),
    "no_sync, late": Mode(THRICE, {}, {**HELD, "overlap": False}),
    "zeroed, bucket view": Mode(ONCE, VIEW, set_to_none=False),
    "unused, bucket view": Mode(TURNS, {**UNUSED, **VIEW}),
    "unused, no_sync": Mode([["left", "right", "left"]] * 3, UNUSED, HELD),
    "static, unused, bucket view": Mode([["left"]] * 3, {**STATIC, **VIEW}),
    # PyTorch itself fails where the very first pass of a static graph is not reduced.
    "static, no_sync": Mode([["both"], ["both"] * 2, ["both"] * 2], STATIC, HELD),
}
UNCOUNTED = {"no_sync": Mode(THRICE), "no_sync, bucket view": Mode(THRICE, VIEW)}


def modes(rank: int) -> dict[str, Any]:
    """Each mode plain, and within a budget."""
    results = {}
    for name, mode in MODES.items():
        torch._dynamo.reset()
        results[name] = {
            "plain": train(rank, mode, None),
            "planned": listening(lambda mode=mode: train(rank, mode, BUDGET)),
        }
    return results


def uncounted(rank: int) -> dict[str, Any]:
    """Gradients are accumulated that the budget does not know of."""
    return {
        name: listening(lambda mode=mode: train(rank, mode, "60%"))
        for name, mode in UNCOUNTED.items()
    }


if __name__ == "__main__":
    run_rank({"modes": modes, "uncounted": uncounted})
