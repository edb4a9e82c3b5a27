"""What ops cost: time and workspace of each, measured on synthetic tensors.

Each distinct call is measured once. Ops run outside of every mode that is active around (they are
often profiled while a graph is being traced), and the random generators are left as they were, so
that profiling never changes training.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from memfit.pytorch.compat.eager import (
    MemoryEvent,
    OpInterval,
    kineto_memory_events,
    kineto_op_intervals,
    memory_profiler,
    plain_mode,
    profiler_active,
    tree_leaves,
)
from memfit.pytorch.cost.analytic import analytic_cost
from memfit.pytorch.cost.measure import allocated_peak, steady_allocator
from memfit.pytorch.cost.on_disk import CostCache
from memfit.pytorch.cost.op_calls import OpCall, OpCost
from memfit.pytorch.cost.synthetic import SyntheticData

__all__ = ["DEFAULT_TIME_BUDGET_S", "OpProfile", "profile_calls"]

DEFAULT_TIME_BUDGET_S = 10.0
_MAX_ROUNDS = 7
_BATCH = 64  # calls per profiler session: starting one takes about a millisecond
_MIN_SAMPLE_NS = 100_000  # shorter runs are repeated within a sample
_LONG_NS = 20_000_000  # longer runs get one sample a round, shorter ones `_RUNS_A_ROUND`
_RUNS_A_ROUND = 4  # right after one another: the threads that a run had to wait for are awake
_MAX_REPEATS = 50
_MARK = "memfit:op:"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class OpProfile:
    """Costs of calls.

    Attributes:
        costs: one for each call, in order.
        notes: what was estimated instead of measured and why, one line for each distinct call.
        distinct: number of distinct calls.
        cached: how many of them came from the cache.
        rounds: timing rounds that the time budget allowed, 1 at least where anything was measured.
        seconds: time it took.
    """

    costs: tuple[OpCost, ...]
    notes: tuple[str, ...]
    distinct: int
    cached: int
    rounds: int
    seconds: float


@dataclass
class _Pending:
    """A distinct call while it is being measured."""

    call: OpCall
    signature: str | None
    workspace_bytes: int = 0
    output_bytes: int = 0
    first: _Sample | None = None
    samples: list[_Sample] = field(default_factory=list)
    error: str = ""

    def cost(self) -> OpCost:
        if self.error or self.first is None:
            return replace(analytic_cost(self.call), note=self.error)
        time_ns = max(1, _undisturbed_ns(self.samples or [self.first]))
        return OpCost(time_ns, self.workspace_bytes, self.output_bytes, "measured")


@dataclass(frozen=True, slots=True)
class _Sample:
    """One timed run: elapsed time, processor time of this thread and of the whole process."""

    wall_ns: int
    thread_ns: int
    process_ns: int


class _Clock:
    """Times one sample."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[int, int, int]:
        return time.perf_counter_ns(), time.thread_time_ns(), time.process_time_ns()

    def sample(self, repeats: int = 1) -> _Sample:
        return _Sample(*((b - a) // repeats for a, b in zip(self._start, self._now(), strict=True)))


def _undisturbed_ns(samples: Sequence[_Sample]) -> int:
    """Time of a run on a machine that does nothing else.

    Other processes only ever add to elapsed time, and where they hold the processors a wait lasts
    milliseconds, many times a short op. Minima over rounds meet that, and where no round is clean,
    processor time: of this thread, which takes part in every parallel loop, and at least its share
    of the whole process's. Without disturbance all of it equals the elapsed time.
    """
    wall = min(sample.wall_ns for sample in samples)
    own = min(sample.thread_ns for sample in samples)
    share = min(sample.process_ns for sample in samples) // max(1, torch.get_num_threads())
    return min(wall, max(own, share))


def profile_calls(
    calls: Sequence[OpCall],
    *,
    time_budget_s: float = DEFAULT_TIME_BUDGET_S,
    cache: CostCache | None = None,
    progress: Progress | None = None,
) -> OpProfile:
    """Time and workspace of each call.

    Time is that of a warmed-up run on an undisturbed machine, estimated from interleaved rounds; as
    many rounds as the time budget allows, at most 7. Workspace is the largest of two runs'
    allocator peaks, less the bytes of the storages that the op returns; of four runs where a mask
    is given, which selects by chance, nothing, and all.

    A call that fails on made-up data, or whose device is not there, gets an analytic estimate and a
    note.

    Args:
        calls: the calls.
        time_budget_s: seconds after which no further timing round starts. Whatever the budget,
            each distinct call is run three times, five where it takes a mask.
        cache: costs measured before are taken from it, new ones are added and saved.
        progress: called with the number of distinct calls done so far and of all that must be
            measured; only measurements that are not cached count.
    """
    started = time.monotonic()
    keys: list[object] = []
    pending: dict[object, _Pending] = {}
    known: dict[object, OpCost] = {}
    for index, call in enumerate(calls):
        signature = call.signature()
        key: object = index if signature is None else signature
        keys.append(key)
        if key in pending or key in known:
            continue
        found = cache.get(call) if cache is not None else None
        if found is not None:
            known[key] = found
        else:
            pending[key] = _Pending(call, signature)
    cached = len(known)
    rounds = _measure(list(pending.values()), started + time_budget_s, progress) if pending else 0
    notes = []
    for key, item in pending.items():
        known[key] = cost = item.cost()
        if cost.note:
            notes.append(f"{item.call.name or item.signature}: estimated, {cost.note}")
        elif cache is not None:
            cache.put(item.call, cost)
    if cache is not None:
        cache.save()
    return OpProfile(
        tuple(known[key] for key in keys),
        tuple(notes),
        len(known),
        cached,
        rounds,
        time.monotonic() - started,
    )


def _measure(items: list[_Pending], deadline: float, progress: Progress | None) -> int:
    data = SyntheticData()
    with _quiet_process(items):
        for start in range(0, len(items), _BATCH):
            _measure_workspaces(items[start : start + _BATCH], data)
            if progress is not None:
                progress(min(start + _BATCH, len(items)), len(items))
        rounds = 1
        for number in range(_MAX_ROUNDS):
            order = items if number % 2 == 0 else items[::-1]
            for item in order:
                if time.monotonic() > deadline:
                    return rounds
                if not item.error:
                    _add_sample(item, data)
            rounds = number + 1
    return rounds


@contextmanager
def _quiet_process(items: list[_Pending]) -> Iterator[None]:
    """No modes, random generators restored, allocator steady, no garbage collection."""
    with plain_mode():
        devices = {item.call.device for item in items if item.call.device.type == "cuda"}
        indices = {d.index or 0 for d in devices} if torch.cuda.is_available() else set()
        collecting = gc.isenabled()
        gc.collect()
        with torch.random.fork_rng(devices=sorted(indices)), steady_allocator():
            gc.disable()
            try:
                yield
            finally:
                if collecting:
                    gc.enable()


def _measure_workspaces(items: list[_Pending], data: SyntheticData) -> None:
    """Workspace and output bytes of each call, and a first time sample."""
    on_cpu = []
    for item in items:
        device = item.call.device
        if device.type == "cuda" and torch.cuda.is_available():
            _try(item, partial(_cuda_workspace, item, data))
        elif device.type == "cpu":
            on_cpu.append(item)
        else:
            item.error = f"device {device} is not available"
    if profiler_active():
        for item in on_cpu:
            item.error = "its workspace cannot be measured while a PyTorch profiler is running"
        return
    with memory_profiler() as profiler:
        for number, item in enumerate(on_cpu):
            _try(item, partial(_marked_runs, item, number, data))
    events = kineto_memory_events(profiler)
    position = 0
    for interval in kineto_op_intervals(profiler, _MARK):
        item = on_cpu[int(interval.name.removeprefix(_MARK))]
        inside, position = _events_inside(events, interval, position)
        peak, _ = allocated_peak(inside)
        item.workspace_bytes = max(item.workspace_bytes, peak - item.output_bytes)


def _events_inside(
    events: list[MemoryEvent], interval: OpInterval, position: int
) -> tuple[list[MemoryEvent], int]:
    """Events in an interval, searched from `position`: intervals are in order, none overlap."""
    while position < len(events) and events[position].time_ns < interval.start_ns:
        position += 1
    end = position
    while end < len(events) and events[end].time_ns <= interval.end_ns:
        end += 1
    return events[position:end], end


def _try(item: _Pending, run: Callable[[], None]) -> None:
    try:
        run()
    except Exception as error:  # an op may refuse made-up data in any way it likes
        reason = str(error).strip().splitlines()
        item.error = f"failed on made-up data ({type(error).__name__}: {(reason or [''])[0]})"


def _marked_runs(item: _Pending, number: int, data: SyntheticData) -> None:
    args, kwargs = data.arguments(item.call)
    item.call.run(*args, **kwargs)  # first calls also build primitives and caches
    for masks in _masks(item.call):
        if masks is not None:
            args, kwargs = data.arguments(item.call, masks)
        clock = _Clock()
        with torch.profiler.record_function(f"{_MARK}{number}"):
            result = item.call.run(*args, **kwargs)
        if masks is None:
            item.first = clock.sample()
            item.output_bytes = _new_storage_bytes(result, (args, kwargs))
        del result


def _masks(call: OpCall) -> tuple[bool | None, ...]:
    """How masks are filled, run for run: what a mask selects may take memory of its own."""
    coins = (None, None)
    return (*coins, False, True) if any(s.dtype == torch.bool for s in call.tensors) else coins


def _new_storage_bytes(result: Any, arguments: Any) -> int:
    def storages(tree: Any) -> dict[int, int]:
        tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        memory = [tensor.untyped_storage() for tensor in tensors]
        return {storage.data_ptr(): storage.nbytes() for storage in memory}

    given = storages(arguments)
    return sum(size for address, size in storages(result).items() if address not in given)


def _add_sample(item: _Pending, data: SyntheticData) -> None:
    args, kwargs = data.arguments(item.call)
    target, device = item.call.run, item.call.device
    first_ns = _undisturbed_ns([item.first]) if item.first else _MIN_SAMPLE_NS
    repeats = max(1, min(_MAX_REPEATS, _MIN_SAMPLE_NS // max(1, first_ns)))
    target(*args, **kwargs)
    _wait(device)
    run = partial(target, *args, **kwargs)
    for _ in range(_RUNS_A_ROUND if first_ns < _LONG_NS else 1):
        if device.type == "cuda":
            item.samples.append(_cuda_sample(run, repeats, device))
            continue
        clock = _Clock()
        for _ in range(repeats):
            run()
        item.samples.append(clock.sample(repeats))


def _cuda_sample(run: Callable[[], object], repeats: int, device: torch.device) -> _Sample:
    """Time between two events on the device's current stream: waiting for them is not in it."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        elapsed_ns = int(start.elapsed_time(end) * 1e6) // repeats
    return _Sample(elapsed_ns, elapsed_ns, 0)


def _elapsed_only(sample: _Sample) -> _Sample:
    """A device's work takes no processor time."""
    return _Sample(sample.wall_ns, sample.wall_ns, 0)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cuda_workspace(item: _Pending, data: SyntheticData) -> None:
    device = item.call.device
    args, kwargs = data.arguments(item.call)
    item.call.run(*args, **kwargs)
    for masks in _masks(item.call):
        if masks is not None:
            args, kwargs = data.arguments(item.call, masks)
        _wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        clock = _Clock()
        result = item.call.run(*args, **kwargs)
        _wait(device)
        if masks is None:
            item.first = _elapsed_only(clock.sample())
        peak = torch.cuda.max_memory_allocated(device) - before
        item.output_bytes = torch.cuda.memory_allocated(device) - before
        item.workspace_bytes = max(item.workspace_bytes, peak - item.output_bytes)
        del result
