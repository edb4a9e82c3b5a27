"""One rank of the tests in test_distributed.py: distributed_worker.py RANK FOLDER."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel as DDP

import memfit
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.planning import shared as plan_sharing
from support.ranks import run_rank

WIDTH = 128
Data = tuple[torch.Tensor, torch.Tensor]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH)) for _ in range(8)
    ]
    return nn.Sequential(*blocks, nn.Linear(WIDTH, 10))


def make_data() -> Data:
    torch.manual_seed(1)
    return torch.randn(1024, WIDTH), torch.randint(0, 10, (1024,))


def half(data: Data, rank: int) -> Data:
    return data[0].chunk(2)[rank], data[1].chunk(2)[rank]


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.detach().clone() for p in model.parameters()]


def one_process(data: Data) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Plain gradients of the mean over both ranks' halves, and of the whole batch at once."""
    halves = []
    for rank in range(2):
        model = make_model()
        x, y = half(data, rank)
        nn.functional.cross_entropy(model(x), y).backward()
        halves.append(gradients(model))
    model = make_model()
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    return [a / 2 + b / 2 for a, b in zip(*halves, strict=True)], gradients(model)


class Clock:
    """When DDP's buckets were launched and reduced, and when the last gradient was computed."""

    def __init__(self, ddp: DDP, last: nn.Parameter) -> None:
        self.launched: list[float] = []
        self.reduced: list[float] = []
        self.end = 0.0
        ddp.register_comm_hook(None, self._hook)
        last.register_hook(self._finish)

    def _hook(self, _: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.launched.append(time.perf_counter())
        # Waiting makes the count certain: how soon a reduction ends by itself depends on when the
        # other rank, and the machine, come round to it.
        future = default_hooks.allreduce_hook(dist.group.WORLD, bucket)
        future.wait()
        self.reduced.append(time.perf_counter())
        return future

    def _finish(self, _: torch.Tensor) -> None:
        self.end = time.perf_counter()

    def clear(self) -> None:
        self.launched, self.reduced = [], []

    def counts(self) -> dict[str, int]:
        return {
            "buckets": len(self.launched),
            "launched": sum(t < self.end for t in self.launched),
            "reduced": sum(t < self.end for t in self.reduced),
        }


def ddp_case(
    data: Data, rank: int, budget: str | int | None, *, bucket_view: bool, overlap: bool | None
) -> dict[str, Any]:
    """One module under DDP; `budget` None for the plain model."""
    x, y = half(data, rank)
    model: nn.Module = make_model()
    last = next(model.parameters())
    if budget is None:
        plain = DDP(model, bucket_cap_mb=0.06, gradient_as_bucket_view=bucket_view)
        ddp, call = plain, lambda: nn.functional.cross_entropy(plain(x), y)
    else:
        fitted = memfit.fit(
            model, nn.functional.cross_entropy, budget=budget, cost="analytic", overlap=overlap
        )
        ddp = DDP(fitted, bucket_cap_mb=0.06, gradient_as_bucket_view=bucket_view)
        call = lambda: ddp(x, y)  # noqa: E731
    torch.manual_seed(rank)
    clock = Clock(ddp, last)
    result: dict[str, Any] = {"counts": []}
    for _ in range(4):  # DDP makes its buckets anew after the first step
        ddp.zero_grad()
        clock.clear()
        call().backward()
        result["counts"].append(clock.counts())
    result["gradients"] = gradients(model)
    measured = measure_step(lambda: call().backward(), reset=ddp.zero_grad)
    result["peak"] = measured.peak_bytes
    if budget is not None:
        plan, graph = fitted.plan, fitted.graph
        result |= {
            "plan": plan.to_json(),
            "budget": plan.budget_bytes,
            "predicted": plan.peak_bytes,
            "resident": graph.resident_bytes,
            "least": plan.smallest_feasible_budget_bytes,
            "costs": [op.cost for op in graph.ops],
            "parts": plan.peak_parts,
        }
    return result


def ddp_scenario(rank: int) -> dict[str, Any]:
    data = make_data()
    summed, whole = one_process(data)
    results: dict[str, Any] = {"summed": summed, "whole": whole}
    for view in (False, True):
        loose = ddp_case(data, rank, "100%", bucket_view=view, overlap=None)
        tight = ddp_case(data, rank, loose["least"], bucket_view=view, overlap=None)
        results[f"view={view}"] = {"loose": loose, "tight": tight}
    results["late"] = ddp_case(data, rank, loose["least"] * 2, bucket_view=False, overlap=False)
    results["plain"] = ddp_case(data, rank, None, bucket_view=False, overlap=None)
    return results


def shapes_scenario(rank: int) -> dict[str, Any]:
    """Two shapes planned ahead, a third one met in training."""
    x, y = half(make_data(), rank)
    fitted = memfit.fit(
        make_model(),
        nn.functional.cross_entropy,
        budget="100%",
        cost="analytic",
        shapes=[(x[:n], y[:n]) for n in (64, 512)],
    )
    ours, plain = DDP(fitted), DDP(make_model())

    def steps(ddp: DDP, call: Callable[..., torch.Tensor]) -> list[list[torch.Tensor]]:
        found = []
        for rows in (512, 64, 256, 512):
            ddp.zero_grad()
            call(x[:rows], y[:rows]).backward()
            found.append(gradients(ddp))
        return found

    results: dict[str, Any] = {
        "fitted": steps(ours, ours),
        "plain": steps(plain, lambda x, y: nn.functional.cross_entropy(plain(x), y)),
    }
    results["plans"] = [plan.to_json() for plan in fitted.plans]
    return results


def failure(call: Callable[[], Any]) -> dict[str, str]:
    try:
        call()
    except memfit.MemfitError as error:
        return {"type": type(error).__name__, "message": str(error)}
    return {"type": "none", "message": ""}


class Block(nn.Module):
    """A residual block whose inside is much larger than its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.inside = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inside(self.norm(x))


class Odd(nn.Module):
    """Cannot be captured where `odd` is set."""

    def __init__(self, odd: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 10)
        self.odd = odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.odd and x.sum() > 0:
            x = -x
        return self.layer(x)


def errors_scenario(rank: int) -> dict[str, Any]:
    x, y = half(make_data(), rank)
    loss = nn.functional.cross_entropy

    def wrapped(model: nn.Module, **options: Any) -> DDP:
        options = {"budget": "120%", "cost": "analytic", **options}
        return DDP(memfit.fit(model, loss, **options))

    rows = 512 - rank  # rank 1 has a smaller batch
    results: dict[str, Any] = {}
    ddp = wrapped(make_model())
    results["differ"] = failure(lambda: ddp(x[:rows], y[:rows]))
    own = wrapped(make_model(), same_plan=False)
    results["own"] = failure(lambda: own(x[:rows], y[:rows]).backward())
    small = wrapped(make_model(), budget=2**10)
    results["infeasible"] = failure(lambda: small(x, y))
    odd = wrapped(Odd(rank == 1))
    results["capture"] = failure(lambda: odd(x, y))
    again = failure(lambda: ddp(x, y).backward())
    results["again"] = again  # the first module goes on once the graphs are the same
    dist.barrier()
    late = wrapped(make_model())
    results["same"] = failure(lambda: late(x, y).backward())
    os.environ[plan_sharing.TIMEOUT_VARIABLE] = "0.2"
    plan_sharing._TELL_S = 0.05
    # Rank 1 meets a new shape while rank 0 finds its step compiled.
    results["alone"] = failure(lambda: late(x[:rows], y[:rows]))
    del os.environ[plan_sharing.TIMEOUT_VARIABLE]
    dist.barrier()
    results["wrapped"] = failure(lambda: memfit.fit(own, loss, budget="50%"))
    return results


def fsdp_case(rank: int, blocks_count: int = 4, **options: Any) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    x, y = half(make_data(), rank)
    results: dict[str, Any] = {}
    for name in ("plain", "fitted"):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(*(Block() for _ in range(blocks_count)), nn.Linear(WIDTH, 10))
        blocks = list(model)[:-1]
        if name == "fitted":
            blocks = memfit.fit_blocks(model, blocks, budget="85%", cost="analytic")
        for block in blocks:
            fully_shard(block, **options)
        fully_shard(model, **options)

        def step(model: nn.Module = model) -> None:
            torch.manual_seed(rank)
            nn.functional.cross_entropy(model(x), y).backward()

        step()
        found = [p.grad.full_tensor().clone() for p in model.parameters()]
        model.zero_grad()
        peak = measure_step(step, reset=model.zero_grad).peak_bytes
        results[name] = {
            "gradients": found,
            "peak": peak,
            "names": [n for n, _ in model.named_parameters()],
            "within": all(
                b.plan.peak_bytes <= b.plan.budget_bytes for b in blocks if name == "fitted"
            ),
            "plans": [b.plan.to_json() for b in blocks] if name == "fitted" else [],
        }
    return results


def fsdp_scenario(rank: int) -> dict[str, Any]:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    return {
        "default": fsdp_case(rank),
        "kept whole": fsdp_case(rank, 2, reshard_after_forward=False),
        "bfloat16": fsdp_case(rank, 2, mp_policy=low),
        "bfloat16, kept whole": fsdp_case(rank, 2, mp_policy=low, reshard_after_forward=False),
    }


SCENARIOS = {
    "ddp": ddp_scenario,
    "shapes": shapes_scenario,
    "fsdp": fsdp_scenario,
    "errors": errors_scenario,
}


if __name__ == "__main__":
    run_rank(SCENARIOS)
