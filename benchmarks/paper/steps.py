"""The seven networks trained for real within budgets, at sizes that a small machine takes.

For each: the plain step, and plans of `liveness` at 60% of its measured peak and at the smallest
feasible budget. Asserted: gradients and loss equal, bit for bit, those of the captured graph saving
everything; buffers equal plain PyTorch's; the measured peak within the budget; and the predicted
peak within 0.1% of the measured one above resident memory. They differ where a kernel takes another
workspace in the step than when it was measured alone, by what its threads buffer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["real_steps"]

TOLERANCE_PERCENT = 0.1
_ROUNDS = 1
_SHARE = 0.6


def real_steps(name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The rows of one network."""
    import torch

    import memfit
    from benchmarks.paper.graphs import THREADS
    from benchmarks.paper.networks import NETWORKS
    from memfit.pytorch.cost.measure import measure_step, steady_allocator
    from memfit.pytorch.step_call import StepModule

    torch.set_num_threads(THREADS)
    network = NETWORKS[name]
    case = network.case(network.run_batch, network.run_size)
    step = StepModule(case.model, case.loss_fn)

    def reset() -> None:
        case.model.zero_grad(set_to_none=True)

    def run() -> None:
        torch.manual_seed(1)
        step(*case.args).backward()

    say("the plain step")
    plain = measure_step(run, reset=reset).peak_bytes
    reset()
    say("measuring ops and planning")
    began = time.perf_counter()
    ample = memfit.plan(case.model, case.args, case.loss_fn, budget=2**61, planner="liveness")
    seconds = time.perf_counter() - began
    resident = sum(ample.peak_parts[p] for p in ("parameters", "buffers", "inputs"))
    smallest = ample.smallest_feasible_budget_bytes
    budgets = {"60%": resident + int(_SHARE * plain), "smallest": smallest}
    rows = []
    for label, wanted in budgets.items():
        torch._dynamo.reset()
        say(f"training at {label}")
        budget = max(wanted, smallest)
        with steady_allocator():
            found = memfit.verify(
                case.model,
                case.args,
                case.loss_fn,
                budget=budget,
                planner="liveness",
                rounds=_ROUNDS,
            )
        rows.append(
            {
                "label": label,
                "budget_bytes": budget,
                "feasible_at_label": wanted >= smallest,
                **{k: v for k, v in found.to_dict().items() if k != "plan"},
            }
        )
        where = f"{name} at {label}"
        assert found.gradients_equal, f"{where}: gradients differ from the captured graph's"
        assert found.buffers_equal, f"{where}: buffers differ from plain PyTorch's"
        assert found.within_budget, (where, found.planned_peak_bytes, budget)
        error = found.prediction_error_percent
        assert abs(error) <= TOLERANCE_PERCENT, f"{where}: prediction off by {error:.3f}%"
    return {
        "batch": network.run_batch,
        "size": network.run_size,
        "resident_bytes": resident,
        "plain_bytes": resident + plain,
        "plan_seconds": seconds,
        "torch": torch.__version__,
        "rows": rows,
    }
