"""`memfit.verify`: a step plain, captured saving everything, and planned, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import torch
from torch import nn

from memfit.errors import MemfitError, UsageError
from memfit.graph.plan import Plan
from memfit.planners.base import Progress
from memfit.pytorch.api.entry import LOSS, fit
from memfit.pytorch.api.training_mode import as_it_trains
from memfit.pytorch.arguments import check_callable, check_count, check_inputs, check_module
from memfit.pytorch.cost.measure import StepTime, measure_step, steady_allocator, time_steps
from memfit.pytorch.options import StepKeywords, step_options
from memfit.pytorch.step_call import StepModule

__all__ = ["VerifyResult", "verify"]

_WITHOUT = ("overlap", "same_plan", "shapes", "max_shapes")

_AMPLE_BYTES = 2**61


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What a planned step does, beside the plain one. Peaks are of the whole step, in bytes.

    Attributes:
        plan: the plan that ran.
        budget_bytes: the budget.
        within_budget: the planned step's measured peak is at most the budget.
        gradients_equal: gradients of the planned step equal, bit for bit, those of the same
            captured graph saving everything; so does the loss.
        plain_gradients_equal: gradients of the planned step equal plain PyTorch's, bit for bit.
        plain_largest_difference: largest difference of a gradient entry from plain PyTorch's,
            relative to the largest entry of that gradient.
        plain_largest_difference_in: name of the parameter where it occurs, None if there is none.
        buffers_equal: buffers (running statistics) after the step equal plain PyTorch's.
        plain_peak_bytes: measured peak of the plain step.
        captured_peak_bytes: that of the captured step that keeps everything.
        planned_peak_bytes: that of the planned step.
        predicted_peak_bytes: simulated peak of the plan.
        prediction_error_percent: (predicted - measured) / measured above resident memory.
        resident_bytes: parameters, buffers and inputs, part of all peaks.
        plain_time_ns: median time of a plain step.
        captured_time_ns: that of a captured step that keeps everything.
        planned_time_ns: that of a planned step.
        measured_overhead_percent: planned against captured.
        predicted_overhead_percent: from the plan.
    """

    plan: Plan
    budget_bytes: int
    within_budget: bool
    gradients_equal: bool
    plain_gradients_equal: bool
    plain_largest_difference: float
    plain_largest_difference_in: str | None
    buffers_equal: bool
    plain_peak_bytes: int
    captured_peak_bytes: int
    planned_peak_bytes: int
    predicted_peak_bytes: int
    prediction_error_percent: float
    resident_bytes: int
    plain_time_ns: int
    captured_time_ns: int
    planned_time_ns: int
    measured_overhead_percent: float
    predicted_overhead_percent: float

    @property
    def ok(self) -> bool:
        """Gradients and buffers right, and within budget."""
        return self.within_budget and self.gradients_equal and self.buffers_equal

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON; the plan without its schedule."""
        data = {k: v for k, v in asdict(self).items() if k != "plan"}
        plan = {k: v for k, v in asdict(self.plan).items() if k not in ("schedule", "stages")}
        return {**data, "ok": self.ok, "stages": len(self.plan.stages), "plan": plan}


@dataclass(frozen=True)
class _Observed:
    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]


class _Bench:
    """Runs steps of one model from the same starting point, and puts everything back."""

    def __init__(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], accumulate: bool
    ) -> None:
        self.model = model
        self.accumulate = accumulate
        self.args = tuple(args)
        self.kwargs = dict(kwargs)
        self.buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
        self.gradients = {n: p.grad for n, p in model.named_parameters()}
        self.random = torch.random.get_rng_state()
        self.cuda_random = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def reset(self) -> None:
        """Gradients None, or zeros to accumulate on; buffers and generators as at the start."""
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self.buffers[name])
        for p in self.model.parameters():
            held = self.accumulate and p.requires_grad
            p.grad = torch.zeros_like(p) if held else None
        torch.random.set_rng_state(self.random)
        if self.cuda_random:
            torch.cuda.set_rng_state_all(self.cuda_random)

    def restore(self) -> None:
        """The model as it was handed over."""
        self.reset()
        for name, p in self.model.named_parameters():
            p.grad = self.gradients[name]

    def step(self, call: Callable[..., Any]) -> Callable[[], torch.Tensor]:
        """A step: forward, loss, backward."""

        def run() -> torch.Tensor:
            loss = objective(call(*self.args, **self.kwargs))
            loss.backward()
            return loss.detach()

        return run

    def observe(self, run: Callable[[], torch.Tensor]) -> _Observed:
        """Loss, gradients and buffers of one step."""
        self.reset()
        loss = run()
        gradients = {
            n: p.grad.detach().clone()
            for n, p in self.model.named_parameters()
            if p.grad is not None
        }
        buffers = {n: b.detach().clone() for n, b in self.model.named_buffers()}
        return _Observed(loss, gradients, buffers)


def objective(result: Any) -> torch.Tensor:
    """The scalar to differentiate: the result if it is one, its `loss`, or the sum of its outputs.

    Raises:
        UsageError: nothing in the result depends on a parameter.
    """
    if isinstance(result, torch.Tensor) and result.ndim == 0:
        return result
    loss = getattr(result, "loss", None)
    if isinstance(loss, torch.Tensor):
        return loss
    leaves = [
        t.sum()
        for t in torch.utils._pytree.tree_leaves(result)
        if isinstance(t, torch.Tensor) and t.requires_grad
    ]
    if not leaves:
        raise UsageError(
            "the model returns nothing that requires gradients; give a loss_fn, or a model whose "
            "output depends on trainable parameters"
        )
    return torch.stack(leaves).sum() if len(leaves) > 1 else leaves[0]


def _equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def _largest_difference(
    a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]
) -> tuple[float, str | None]:
    largest, where = 0.0, None
    for name in a.keys() & b.keys():
        scale = float(b[name].abs().max()) if b[name].numel() else 0.0
        if a[name].numel():
            gap = float((a[name] - b[name]).abs().max())
            relative = gap / scale if scale else gap
            if not relative <= largest:
                largest, where = relative, name
    missing = sorted(a.keys() ^ b.keys())
    return (float("inf"), missing[0]) if missing else (largest, where)


def _observed(
    bench: _Bench, runs: Mapping[str, Callable[[], torch.Tensor]], name: str
) -> _Observed:
    """What a step computes.

    Raises:
        UsageError: it fails, and the plain step does, too.
    """
    try:
        return bench.observe(runs[name])
    except MemfitError:
        raise
    except Exception as error:
        bench.reset()
        try:
            runs["plain"]()
        except Exception as own:
            said = " ".join(str(own).split())
            raise UsageError(
                f"{type(bench.model).__name__} fails on these inputs without memfit too: "
                f"{type(own).__name__}: {said.rstrip('.')}; check values, shapes and dtypes of the "
                "inputs, and of the target if there is one"
            ) from own
        raise error


def _run_all(
    bench: _Bench,
    runs: Mapping[str, Callable[[], torch.Tensor]],
    device: torch.device,
    rounds: int,
    say: Progress,
) -> tuple[dict[str, _Observed], dict[str, int], dict[str, StepTime]]:
    """What each kind of step computes, its peak and its time."""
    seen: dict[str, _Observed] = {}
    peaks: dict[str, int] = {}
    for i, name in enumerate(("planned", "plain", "captured")):
        say(f"running the {name} step", i / 4)
        seen[name] = _observed(bench, runs, name)
        # Observing has warmed it up.
        peaks[name] = measure_step(
            runs[name], device=device, warmup=0, reset=bench.reset
        ).peak_bytes
    say("timing", 0.75)
    times = time_steps(runs, device=device, rounds=rounds, warmup=0, reset=bench.reset)
    say("timing", 1.0)
    return seen, peaks, times


def verify(
    model: nn.Module,
    example_inputs: Sequence[Any],
    loss_fn: Callable[..., Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    rounds: int = 5,
    **options: Unpack[StepKeywords],
) -> VerifyResult:
    """Run one step plain, one captured and saving everything, and one planned; compare them.

    All three start from the same parameters, buffers and random state. Afterwards the model is as
    it was. Without a loss, the model's `loss` output or the sum of its outputs is differentiated.
    Arguments that are not listed here are those of `memfit.fit`.

    Args:
        example_inputs: as for `memfit.plan`.
        example_kwargs: likewise.
        rounds: timed steps of each kind, interleaved.

    Raises:
        InfeasibleBudgetError: no plan fits.
        CaptureError: the model cannot be captured.
        UsageError: an argument is wrong; the plain step fails, too.
    """
    check_module(model)
    check_inputs(example_inputs, example_kwargs)
    check_callable("loss_fn", loss_fn, LOSS)
    check_count("rounds", rounds)
    asked = step_options("memfit.verify", options, without=_WITHOUT)
    bench = _Bench(model, example_inputs, example_kwargs or {}, asked.capture.accumulate)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    say = asked.progress or (lambda label, share: None)
    try:
        with as_it_trains(model):
            bench.reset()
            saving = fit(
                model,
                loss_fn,
                budget=_AMPLE_BYTES,
                planner="store-all",
                cost=asked.capture.cost,
                accumulate=asked.capture.accumulate,
            )
            planned = fit(model, loss_fn, **options)
            runs = {
                "plain": bench.step(StepModule(model, loss_fn)),
                "captured": bench.step(saving),
                "planned": bench.step(planned),
            }
            with steady_allocator():
                seen, peaks, times = _run_all(bench, runs, device, rounds, say)
    finally:
        bench.restore()
    plan, graph = planned.plan, planned.graph
    if plan is None or graph is None:
        raise UsageError(
            f"{type(model).__name__} has no backward pass for these inputs; set requires_grad on "
            "what you train"
        )
    resident = graph.resident_bytes
    difference, where = _largest_difference(seen["planned"].gradients, seen["plain"].gradients)
    measured = peaks["planned"]
    predicted = plan.peak_bytes - resident
    return VerifyResult(
        plan=plan,
        budget_bytes=plan.budget_bytes,
        within_budget=resident + measured <= plan.budget_bytes,
        gradients_equal=_equal(seen["planned"].gradients, seen["captured"].gradients)
        and torch.equal(seen["planned"].loss, seen["captured"].loss),
        plain_gradients_equal=_equal(seen["planned"].gradients, seen["plain"].gradients),
        plain_largest_difference=difference,
        plain_largest_difference_in=where,
        buffers_equal=_equal(seen["planned"].buffers, seen["plain"].buffers),
        plain_peak_bytes=resident + peaks["plain"],
        captured_peak_bytes=resident + peaks["captured"],
        planned_peak_bytes=resident + measured,
        predicted_peak_bytes=plan.peak_bytes,
        prediction_error_percent=100.0 * (predicted - measured) / measured if measured else 0.0,
        resident_bytes=resident,
        plain_time_ns=times["plain"].wall_ns,
        captured_time_ns=times["captured"].wall_ns,
        planned_time_ns=times["planned"].wall_ns,
        measured_overhead_percent=100.0
        * (times["planned"].wall_ns - times["captured"].wall_ns)
        / times["captured"].wall_ns,
        predicted_overhead_percent=plan.overhead_percent,
    )
