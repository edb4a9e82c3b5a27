"""What a training step really takes: peak memory, time, and what the device has free.

CPU peaks are the running sum of the CPU allocator's events, which PyTorch's profiler records: every
tensor that eager or compiled code allocates, in whatever op or autograd node. Not seen: what
libraries allocate past PyTorch's allocator (MKL's packing buffers, Python objects), and frees of
blocks that are older than the measurement. CUDA peaks are `torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from memfit.errors import UsageError
from memfit.pytorch.compat.eager import (
    MemoryEvent,
    kineto_memory_events,
    memory_profiler,
    profiler_active,
)

__all__ = [
    "FREE_MARGIN_PERCENT",
    "StepMeasurement",
    "StepTime",
    "allocated_peak",
    "free_bytes",
    "measure_step",
    "steady_allocator",
    "time_steps",
]

FREE_MARGIN_PERCENT = 10
"""Share of the free memory that `free_bytes` leaves for what no plan sees."""


@dataclass(frozen=True, slots=True)
class StepMeasurement:
    """Memory of one run of a step.

    Attributes:
        peak_bytes: most bytes alive at once above what was alive at the start. Tensors that existed
            before (parameters, inputs) are not in it, even where the step frees them.
        end_bytes: bytes that the step allocated and left alive (gradients, its result).
        events: number of allocations and frees seen; 0 on CUDA, where none are recorded.
        device: where it was measured.
    """

    peak_bytes: int
    end_bytes: int
    events: int
    device: str


@dataclass(frozen=True, slots=True)
class StepTime:
    """Median time of a step.

    Attributes:
        wall_ns: elapsed time.
        cpu_ns: processor time of the whole process, all threads together; other processes do not
            disturb it, but threads that wait by spinning count.
        rounds: number of timed runs.
    """

    wall_ns: int
    cpu_ns: int
    rounds: int


def allocated_peak(events: Sequence[MemoryEvent]) -> tuple[int, int]:
    """Peak and final sum, in bytes, of allocator events in order of time.

    Frees of blocks that no event allocated are left out: they are older than the measurement, and
    the sizes that the allocator remembers for them need not be theirs. Memory that is handed out
    again has been freed, by a thread whose events are not seen.
    """
    alive: dict[int, int] = {}
    current = peak = 0
    for event in events:
        if event.size_bytes > 0:
            current += event.size_bytes - alive.get(event.address, 0)
            alive[event.address] = event.size_bytes
            peak = max(peak, current)
        else:
            current -= alive.pop(event.address, 0)
    return peak, current


def measure_step(
    step: Callable[[], object],
    *,
    device: torch.device | str = "cpu",
    warmup: int = 1,
    reset: Callable[[], object] | None = None,
) -> StepMeasurement:
    """Peak memory of one run of `step`.

    Args:
        step: runs forward and backward once. Its result is dropped after the measurement.
        device: whose memory is measured.
        warmup: runs beforehand, so that compilation and caches are not measured.
        reset: called before every run, outside of the measurement (sets gradients to None).

    Raises:
        UsageError: a profiler is running already; PyTorch allows one at a time.
    """
    device = torch.device(device)
    for _ in range(warmup):
        if reset is not None:
            reset()
        step()
    if reset is not None:
        reset()
    gc.collect()
    if device.type == "cuda":
        return _measure_cuda(step, device)
    if device.type != "cpu":
        raise UsageError(f"memory of device {device} cannot be measured; use cpu or cuda")
    if profiler_active():
        raise UsageError(
            "a PyTorch profiler is running, and peak memory is measured by another one; "
            "measure outside of torch.profiler.profile"
        )
    with memory_profiler() as profiler:
        result = step()
    events = kineto_memory_events(profiler)
    del result
    peak, end = allocated_peak(events)
    return StepMeasurement(peak, end, len(events), str(device))


def _measure_cuda(step: Callable[[], object], device: torch.device) -> StepMeasurement:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    end = torch.cuda.memory_allocated(device) - before
    del result
    return StepMeasurement(peak, end, 0, str(device))


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MMAP_THRESHOLD_LIMIT = 32 * 2**20  # DEFAULT_MMAP_THRESHOLD_MAX of 64-bit glibc
_INT_MAX = 2**31 - 1
_steady_depth = 0


@contextmanager
def steady_allocator() -> Iterator[None]:
    """Keep the C allocator from handing memory back to the system, so that timings repeat.

    By default glibc maps large blocks afresh and returns the top of its heap, so whether an op pays
    for page faults depends on what ran before it; a step that needs less memory then looks faster
    than it is. Inside, all memory comes from the heap and stays there. Afterwards the thresholds
    are those that glibc adapts to by itself once large blocks were freed, and what is unused is
    handed back. With another allocator nothing changes. May be nested.
    """
    global _steady_depth
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:
        yield
        return
    if _steady_depth == 0:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _INT_MAX)
    _steady_depth += 1
    try:
        yield
    finally:
        _steady_depth -= 1
        if _steady_depth == 0:
            _adaptive_allocator(libc, mallopt)


def _adaptive_allocator(libc: ctypes.CDLL, mallopt: Callable[[int, int], int]) -> None:
    mallopt(_M_MMAP_MAX, 65536)
    mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_LIMIT)
    mallopt(_M_TRIM_THRESHOLD, 2 * _MMAP_THRESHOLD_LIMIT)
    trim = getattr(libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


def time_steps(
    steps: Mapping[str, Callable[[], object]],
    *,
    device: torch.device | str = "cpu",
    rounds: int = 5,
    warmup: int = 1,
    reset: Callable[[], object] | None = None,
    steady: bool = True,
) -> dict[str, StepTime]:
    """Median times of several steps, interleaved so that slow drifts hit all of them alike.

    Every second round runs the steps in reverse order.

    Args:
        steps: what to time, by name.
        device: waited for at the end of each run.
        rounds: timed runs of each step.
        warmup: untimed runs of each step.
        reset: called before every run, untimed.
        steady: keep the C allocator from giving memory back (see `steady_allocator`).

    Raises:
        UsageError: no rounds.
    """
    if rounds < 1:
        raise UsageError(f"{rounds} timing rounds; time at least 1")
    wall: dict[str, list[int]] = {name: [] for name in steps}
    cpu: dict[str, list[int]] = {name: [] for name in steps}
    order = list(steps)
    with steady_allocator() if steady else nullcontext():
        for index in range(warmup + rounds):
            for name in order:
                if reset is not None:
                    reset()
                gc.collect()
                elapsed, busy = _time_once(steps[name], torch.device(device))
                if index >= warmup:
                    wall[name].append(elapsed)
                    cpu[name].append(busy)
            order.reverse()
    return {
        name: StepTime(
            int(statistics.median(wall[name])), int(statistics.median(cpu[name])), rounds
        )
        for name in steps
    }


def _time_once(step: Callable[[], object], device: torch.device) -> tuple[int, int]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns() - wall, time.process_time_ns() - cpu


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be allocated on `device`, less `FREE_MARGIN_PERCENT` percent.

    What already lives there (parameters) is not in it: a budget for a whole step is this and those.
    CPU: the system's available memory, or what the control groups of this process leave, whichever
    is less. CUDA: what the driver has free plus what PyTorch's cache holds unused, or what
    `torch.cuda.set_per_process_memory_fraction` leaves, whichever is less.

    Raises:
        UsageError: the device cannot be asked.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_allocated(device)
        allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
        free = max(0, min(free + torch.cuda.memory_reserved(device), allowed) - held)
    elif device.type == "cpu":
        free = _free_cpu_bytes(Path("/"))
    else:
        raise UsageError(
            f'budget "auto" cannot tell what device {device} has free; write the budget in bytes'
        )
    return int(free) * (100 - FREE_MARGIN_PERCENT) // 100


def _free_cpu_bytes(root: Path) -> int:
    found = [*_meminfo_bytes(root), *_cgroup_bytes(root)]
    if not found:
        raise UsageError(
            'budget "auto" cannot tell how much memory this system has free (no /proc/meminfo); '
            "write the budget in bytes"
        )
    return max(0, min(found))


def _meminfo_bytes(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            yield int(rest.split()[0]) * 1024


def _cgroup_bytes(root: Path) -> Iterator[int]:
    """What each control group above this process leaves: version 2 and version 1."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage, cache = "", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, usage = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        top = root / "sys/fs/cgroup" / base
        folder = top / path.strip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(top):
                break
            ceiling, used = _number(group / limit), _number(group / usage)
            if ceiling is not None and used is not None:
                yield ceiling - used + _stat(group / "memory.stat", cache)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _stat(path: Path, name: str) -> int:
    """A field of memory.stat; page cache that nobody uses can be had back."""
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
