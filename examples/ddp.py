"""Train within a memory budget on several processes, with gradients reduced as they are ready.

    torchrun --standalone --nproc-per-node=2 examples/ddp.py [BUDGET]

BUDGET is the peak of one rank's whole step: a share of the plain step's peak ("70%", the default)
or bytes ("20MiB"). Runs on the CPU.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import memfit
from memfit.units import format_bytes


def make_model() -> nn.Module:
    """A multilayer perceptron."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [nn.Linear(256, 256), nn.GELU(), nn.LayerNorm(256), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def note_buckets(ddp: DistributedDataParallel, times: list[float]) -> None:
    """Write down when each bucket of gradients is sent off (only to show the overlap)."""

    def hook(_: Any, bucket: Any) -> Any:
        times.append(time.perf_counter())
        return allreduce_hook(dist.group.WORLD, bucket)

    hook.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}
    ddp.register_comm_hook(None, hook)


def main(budget: str = "70%") -> None:
    """Train for a few steps on random data, each rank on its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    say: Callable[..., None] = print if rank == 0 else lambda *_: None

    model = make_model()
    # The only two lines that matter: fit, then wrap. Rank 0 plans, and the others run its plan.
    fitted = memfit.fit(model, nn.CrossEntropyLoss(), budget=budget)
    ddp = DistributedDataParallel(fitted, bucket_cap_mb=0.25, gradient_as_bucket_view=True)

    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    torch.manual_seed(rank)
    inputs, labels = torch.randn(512, 256), torch.randint(10, (512,))
    sent: list[float] = []
    note_buckets(ddp, sent)
    ends: list[float] = []
    next(model.parameters()).register_hook(lambda _: ends.append(time.perf_counter()))
    for step in range(10):
        optimizer.zero_grad()
        sent.clear()
        loss = ddp(inputs, labels)
        loss.backward()
        optimizer.step()
        say(f"step {step}: loss {loss.item():.4f}")

    plan = fitted.plan
    assert plan is not None
    early = sum(t < ends[-1] for t in sent)
    say(f"buckets sent early: {early} of {len(sent)}")
    say(f"plain step:   {format_bytes(plan.plain_peak_bytes)}")
    say(f"budget:       {format_bytes(plan.budget_bytes)}")
    say(f"planned step: {format_bytes(plan.peak_bytes)} on each rank")
    mine = torch.cat([p.detach().flatten() for p in ddp.parameters()])
    everybody = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everybody, mine)
    say(f"all ranks have the same parameters: {all(torch.equal(mine, p) for p in everybody)}")
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except memfit.MemfitError as error:
        sys.exit(f"error: {error}")
