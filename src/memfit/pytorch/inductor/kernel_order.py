"""Orders of the kernels that a compiler fuses ops into, and the peak memory of each order.

A compiler decides which ops become one kernel, and each such decision moves ops: those that the
kernel needs must run before it, and what it writes is there from its one place on. So whether two
ops may be fused is a question of memory, answered here by playing the whole order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

__all__ = ["Kernels", "Order", "best_order", "live_bytes", "orders", "peak_bytes"]


@dataclass(frozen=True)
class Kernels:
    """Ops and the buffers that they write and read, numbered in the order of the program.

    Attributes:
        names: of the buffers.
        writes: for each op, the buffers that it makes, or a part of; a buffer is there from the
            first of its parts on.
        reads: for each op, the buffers that must be alive while it runs.
        follows: for each op, the ops that it must come after.
        workspace_bytes: for each op, what it takes beside what it reads and writes.
        allocated_bytes: for each buffer, what is allocated when it is made; 0 for inputs.
        freed_bytes: for each buffer, what is freed after its last use.
        is_output: for each buffer, whether it outlives the program.
        input_bytes: of the inputs that are freed on the way.
    """

    names: tuple[str, ...]
    writes: tuple[tuple[int, ...], ...]
    reads: tuple[tuple[int, ...], ...]
    follows: tuple[frozenset[int], ...]
    workspace_bytes: tuple[int, ...]
    allocated_bytes: tuple[int, ...]
    freed_bytes: tuple[int, ...]
    is_output: tuple[bool, ...]
    input_bytes: int

    @cached_property
    def makers(self) -> tuple[tuple[int, ...], ...]:
        """For each buffer, the ops that write it; none for inputs."""
        made: list[list[int]] = [[] for _ in self.is_output]
        for op, buffers in enumerate(self.writes):
            for b in buffers:
                made[b].append(op)
        return tuple(map(tuple, made))

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each buffer, the ops that read it."""
        found: list[set[int]] = [set() for _ in self.is_output]
        for op, buffers in enumerate(self.reads):
            for b in buffers:
                found[b].add(op)
        return tuple(tuple(sorted(ops)) for ops in found)


class Order(NamedTuple):
    """An order of kernels.

    Attributes:
        peak_bytes: most bytes alive at once, inputs that are freed on the way included.
        kernels: numbers of the kernels, in the order in which they run.
    """

    peak_bytes: int
    kernels: list[int]


def orders(ops: Kernels, kernel_of: Sequence[int]) -> Iterator[list[int]]:
    """Several orders of the kernels, each as close to the program's as the fusions let it be.

    Args:
        ops: the ops.
        kernel_of: for each op, the number of its kernel; numbers have no gaps.

    Raises:
        ValueError: kernels need each other.
    """
    count = max(kernel_of, default=-1) + 1
    first, last = [len(kernel_of)] * count, [-1] * count
    before: list[set[int]] = [set() for _ in range(count)]
    for op, kernel in enumerate(kernel_of):
        first[kernel] = min(first[kernel], op)
        last[kernel] = max(last[kernel], op)
        before[kernel].update(kernel_of[d] for d in ops.follows[op])
    for kernel, found in enumerate(before):
        found.discard(kernel)
    yield _when_needed(first, before)
    yield _when_needed(last, before)
    yield _when_ready(last, before)


def _when_needed(key: Sequence[int], before: Sequence[set[int]]) -> list[int]:
    """By `key`, each kernel preceded by what it needs."""
    done, begun = [False] * len(key), [False] * len(key)
    order: list[int] = []

    def needs(kernel: int) -> Iterator[int]:
        return iter(sorted(before[kernel], key=key.__getitem__))

    for kernel in sorted(range(len(key)), key=key.__getitem__):
        if done[kernel]:
            continue
        begun[kernel] = True
        stack = [(kernel, needs(kernel))]
        while stack:
            top, rest = stack[-1]
            for need in rest:
                if done[need]:
                    continue
                if begun[need]:
                    raise ValueError(f"kernels {need} and {top} need each other")
                begun[need] = True
                stack.append((need, needs(need)))
                break
            else:
                done[top] = True
                order.append(top)
                stack.pop()
    return order


def _when_ready(key: Sequence[int], before: Sequence[set[int]]) -> list[int]:
    """Of the kernels that could run, always the one with the least `key`."""
    waits = [len(found) for found in before]
    after: list[list[int]] = [[] for _ in key]
    for kernel, found in enumerate(before):
        for need in found:
            after[need].append(kernel)
    ready = [(key[k], k) for k, wait in enumerate(waits) if not wait]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        _, kernel = heapq.heappop(ready)
        order.append(kernel)
        for follower in after[kernel]:
            waits[follower] -= 1
            if not waits[follower]:
                heapq.heappush(ready, (key[follower], follower))
    if len(order) < len(key):
        raise ValueError("some kernels need each other")
    return order


def peak_bytes(ops: Kernels, kernel_of: Sequence[int], order: Sequence[int]) -> int:
    """Most bytes alive at once when kernels run in `order`, each buffer freed at its last use."""
    return max([ops.input_bytes, *live_bytes(ops, kernel_of, order)])


def live_bytes(ops: Kernels, kernel_of: Sequence[int], order: Sequence[int]) -> list[int]:
    """Bytes alive while each kernel runs, its workspace included, in `order`.

    A buffer that only its own kernel reads is counted while that kernel runs: whether it is in
    memory at all is decided later, when code is generated.
    """
    place = [0] * len(order)
    for at, kernel in enumerate(order):
        place[kernel] = at
    when = [place[kernel] for kernel in kernel_of]
    more, less, beside = [0] * len(order), [0] * len(order), [0] * len(order)
    for b, (makers, readers) in enumerate(zip(ops.makers, ops.readers, strict=True)):
        last = max([when[op] for op in (*makers, *readers)], default=-1)
        if makers:
            more[min(when[op] for op in makers)] += ops.allocated_bytes[b]
        if last >= 0 and not ops.is_output[b]:
            less[last] += ops.freed_bytes[b]
    for op, size in enumerate(ops.workspace_bytes):
        beside[when[op]] += size
    alive, found = ops.input_bytes, []
    for added, freed, workspace in zip(more, less, beside, strict=True):
        alive += added
        found.append(alive + workspace)
        alive -= freed
    return found


def best_order(
    ops: Kernels, kernel_of: Sequence[int], enough: Callable[[int], bool] = lambda _: False
) -> Order:
    """The order of `orders` with the least peak, or the first whose peak is `enough`.

    Raises:
        ValueError: kernels need each other.
    """
    best: Order | None = None
    for order in orders(ops, kernel_of):
        found = Order(peak_bytes(ops, kernel_of, order), order)
        if best is None or found.peak_bytes < best.peak_bytes:
            best = found
        if enough(best.peak_bytes):
            break
    assert best is not None, "there is always an order"
    return best
