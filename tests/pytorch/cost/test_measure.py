from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memfit.errors import UsageError
from memfit.pytorch.compat.eager import MemoryEvent
from memfit.pytorch.cost.measure import (
    FREE_MARGIN_PERCENT,
    _free_cpu_bytes,
    allocated_peak,
    free_bytes,
    measure_step,
    steady_allocator,
    time_steps,
)

MIB = 2**20


def floats(size_bytes: int) -> torch.Tensor:
    return torch.empty(size_bytes // 4)


def test_peak_is_the_running_sum_of_live_bytes() -> None:
    assert allocated_peak(
        [
            MemoryEvent(0, 10, 1),
            MemoryEvent(1, 20, 2),
            MemoryEvent(2, -10, 1),
            MemoryEvent(3, 15, 1),
            MemoryEvent(4, -20, 2),
        ]
    ) == (35, 15)


def test_frees_of_older_blocks_do_not_count() -> None:
    assert allocated_peak([MemoryEvent(0, -50, 9), MemoryEvent(1, 10, 1)]) == (10, 10)


def test_memory_that_is_handed_out_again_was_freed_unseen() -> None:
    assert allocated_peak([MemoryEvent(0, 50, 1), MemoryEvent(1, 20, 1)]) == (50, 20)


def test_no_events_no_peak() -> None:
    assert allocated_peak([]) == (0, 0)


def test_measured_peak_is_exact() -> None:
    def step() -> torch.Tensor:
        a = floats(3 * MIB)
        b = floats(2 * MIB)
        del a
        c = floats(4 * MIB)
        del b
        return c

    measured = measure_step(step)
    assert measured.peak_bytes == 6 * MIB
    assert measured.end_bytes == 4 * MIB
    assert measured.events == 5
    assert measured.device == "cpu"


def test_memory_that_was_there_before_is_not_counted() -> None:
    old = [floats(8 * MIB)]

    def step() -> None:
        old.clear()
        floats(MIB)

    measured = measure_step(step, warmup=0)
    assert (measured.peak_bytes, measured.end_bytes) == (MIB, 0)


def test_backward_pass_is_measured() -> None:
    x = torch.ones(MIB // 4, requires_grad=True)

    def step() -> None:
        # exp keeps its result; in the backward pass that, its gradient and x's are alive at once.
        x.exp().mul(2.0).sum().backward()

    def reset() -> None:
        x.grad = None

    measured = measure_step(step, reset=reset)
    assert measured.end_bytes == MIB
    assert 3 * MIB <= measured.peak_bytes < 3 * MIB + 1024


def test_measuring_repeats_exactly() -> None:
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Dropout(0.5)
    )
    x = torch.randn(2, 3, 32, 32)
    seen = {
        measure_step(
            lambda: layers(x).sum().backward(),
            reset=lambda: layers.zero_grad(set_to_none=True),
        )
        for _ in range(3)
    }
    assert len(seen) == 1


def test_warm_up_and_reset_run_as_often_as_asked() -> None:
    calls: list[str] = []
    measure_step(lambda: calls.append("step"), warmup=2, reset=lambda: calls.append("reset"))
    assert calls == ["reset", "step"] * 3


def test_a_running_profiler_is_refused_and_left_alone() -> None:
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        acc_events=True,  # 2.11 and 2.12 warn without it
    ) as profiler:
        with pytest.raises(UsageError, match="profiler is running"):
            measure_step(lambda: None)
        torch.ones(3).add(1)
    assert any(event.key == "aten::add" for event in profiler.key_averages())


def test_other_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="device meta"):
        measure_step(lambda: None, device="meta")


def test_nothing_is_written_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    measure_step(lambda: floats(MIB))
    assert capfd.readouterr().err == ""


def test_steps_are_timed_in_turns() -> None:
    order: list[str] = []
    times = time_steps(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1
    )
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert set(times) == {"a", "b"}
    assert times["a"].rounds == 3


def test_longer_steps_take_longer() -> None:
    small, large = torch.ones(64, 64), torch.ones(1500, 1500)
    times = time_steps({"large": lambda: large @ large, "small": lambda: small @ small}, rounds=5)
    assert times["large"].wall_ns > times["small"].wall_ns > 0
    assert times["large"].cpu_ns > times["small"].cpu_ns


def test_no_rounds_are_refused() -> None:
    with pytest.raises(UsageError, match="0 timing rounds"):
        time_steps({}, rounds=0)


def test_steady_allocator_leaves_a_working_allocator() -> None:
    with steady_allocator():
        kept = torch.ones(10 * MIB // 4)
    with steady_allocator():
        more = torch.ones(40 * MIB // 4)
    assert float(kept.sum() + more.sum()) == 50 * MIB // 4


def make_root(folder: Path, available_kib: int | None, groups: str, files: dict[str, str]) -> Path:
    (folder / "proc/self").mkdir(parents=True)
    if available_kib is not None:
        (folder / "proc/meminfo").write_text(
            f"MemTotal:       99999999 kB\nMemAvailable:   {available_kib} kB\n"
        )
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_free_memory_without_groups(tmp_path: Path) -> None:
    assert _free_cpu_bytes(make_root(tmp_path, 1000, "", {})) == 1000 * 1024


def test_free_memory_in_a_version_2_group(tmp_path: Path) -> None:
    files = {
        "job/memory.max": "500000\n",
        "job/memory.current": "300000\n",
        "job/memory.stat": "anon 250000\ninactive_file 40000\n",
        "job/inner/memory.max": "max\n",
        "job/inner/memory.current": "1000\n",
    }
    root = make_root(tmp_path, 1000, "0::/job/inner\n", files)
    assert _free_cpu_bytes(root) == 240_000


def test_free_memory_in_a_version_1_group(tmp_path: Path) -> None:
    files = {
        "memory/box/memory.limit_in_bytes": "700000\n",
        "memory/box/memory.usage_in_bytes": "100000\n",
    }
    root = make_root(tmp_path, 1000, "3:cpu,cpuacct:/\n4:memory:/box\n", files)
    assert _free_cpu_bytes(root) == 600_000


def test_an_overdrawn_group_leaves_nothing(tmp_path: Path) -> None:
    files = {"memory.max": "1000\n", "memory.current": "2000\n"}
    assert _free_cpu_bytes(make_root(tmp_path, 1000, "0::/\n", files)) == 0


def test_unknown_free_memory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write the budget in bytes"):
        _free_cpu_bytes(make_root(tmp_path, None, "", {}))


def test_free_bytes_keeps_a_margin() -> None:
    free = free_bytes("cpu")
    unmargined = _free_cpu_bytes(Path("/"))
    assert free > 0
    assert free == pytest.approx(unmargined * (1 - FREE_MARGIN_PERCENT / 100), rel=0.2)
    with pytest.raises(UsageError, match="device meta"):
        free_bytes("meta")


COUNTER = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
static _Atomic long now, top;
static void add(long d) {
  long c = atomic_fetch_add(&now, d) + d, t = atomic_load(&top);
  while (c > t && !atomic_compare_exchange_weak(&top, &t, c)) {}
}
static void *in(void *p) { if (p) add((long)malloc_usable_size(p)); return p; }
long counter_now(void) { return now; }
long counter_top(void) { return top; }
void counter_reset(void) { top = (long)now; }
void *malloc(size_t n) { return in(__libc_malloc(n)); }
void *calloc(size_t a, size_t b) { return in(__libc_calloc(a, b)); }
void *memalign(size_t a, size_t n) { return in(__libc_memalign(a, n)); }
void *aligned_alloc(size_t a, size_t n) { return memalign(a, n); }
void free(void *p) { if (p) add(-(long)malloc_usable_size(p)); __libc_free(p); }
void *realloc(void *p, size_t n) {
  long old = p ? (long)malloc_usable_size(p) : 0;
  void *q = __libc_realloc(p, n);
  if (q) add((long)malloc_usable_size(q) - old);
  return q;
}
int posix_memalign(void **r, size_t a, size_t n) {
  void *p = memalign(a, n);
  if (!p) return ENOMEM;
  *r = p;
  return 0;
}
"""

COUNTED = """
import ctypes, gc, torch
from memfit.pytorch.api.demo_model import demo_case
from memfit.pytorch.cost.measure import measure_step
counter = ctypes.CDLL(None)
for name in ("counter_now", "counter_top"):
    getattr(counter, name).restype = ctypes.c_long
case = demo_case(batch=2)
def step():
    case.loss_fn(case.model(*case.inputs), case.target).backward()
def reset():
    case.model.zero_grad(set_to_none=True)
seen = measure_step(step, reset=reset, warmup=2).peak_bytes
reset()
gc.collect()
counter.counter_reset()
before = counter.counter_now()
step()
print(seen, counter.counter_top() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the counter replaces glibc's malloc")
def test_peak_agrees_with_a_count_of_every_malloc(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the counter")
    (tmp_path / "counter.c").write_text(COUNTER)
    library = tmp_path / "counter.so"
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", library, tmp_path / "counter.c"], check=True
    )
    done = subprocess.run(
        ["env", f"LD_PRELOAD={library}", sys.executable, "-c", COUNTED],
        check=True,
        capture_output=True,
        text=True,
    )
    seen, counted = map(int, done.stdout.split())
    # The rest is what MKL, oneDNN and Python allocate for themselves.
    assert seen == pytest.approx(counted, abs=MIB)
