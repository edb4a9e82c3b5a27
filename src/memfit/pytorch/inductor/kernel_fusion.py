"""Inductor's fusions and its order of kernels, held to the peak that a plan allows.

Inductor fuses wherever that saves memory traffic. Two kernels far apart may become one, and then
everything that the later one needs runs earlier: recomputation of a stage moves in front of the
stages that should have been done with by then. `PlanChoices` lets a fusion pass only where some
order of the kernels stays within the limit, or where it makes the peak no higher than it is without
any fusion. `PlanOrder` then picks the best order. What the code that is generated for it takes is
known to `KernelPlan.generated`, which refuses what is above the limit.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import Any

from memfit.pytorch.inductor.kernel_memory import Buffers, play
from memfit.pytorch.inductor.kernel_order import Kernels, best_order, live_bytes
from memfit.pytorch.inductor.scheduler_patch import (
    CustomSchedulerPass,
    InductorChoices,
    compiles_backward,
    current_scheduler,
    fused_kernels,
    scheduled_ops,
)

__all__ = [
    "WORKSPACE",
    "KernelPlan",
    "PassLimit",
    "PeakExceeded",
    "PlanChoices",
    "PlanOrder",
    "workspace_of",
]

WORKSPACE = "memfit_workspace_bytes"
"""Key of an FX node's `meta`: what its kernel takes beside its inputs and outputs."""


class PeakExceeded(Exception):
    """Inductor's kernels do not stay within the limit.

    Attributes:
        excess_bytes: by how much they are above it.
    """

    def __init__(self, excess_bytes: int) -> None:
        super().__init__(f"the kernels peak {excess_bytes} bytes above the limit")
        self.excess_bytes = excess_bytes

    @staticmethod
    def within(error: BaseException | None) -> PeakExceeded | None:
        """The one that `error` is, or that it was raised for."""
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            if isinstance(error, PeakExceeded):
                return error
            seen.add(id(error))
            inner = getattr(error, "inner_exception", None)
            error = inner or error.__cause__ or error.__context__
        return None


@dataclass(frozen=True)
class PassLimit:
    """What one pass may take.

    Attributes:
        limit_bytes: its most bytes, without what is alive throughout the step.
        held_inputs: inputs of the pass that outlive it, though they are no parameters.
        inputs: the storages of inputs that are freed after their last use, and these storages'
            bytes, by the inputs' names.
    """

    limit_bytes: int
    held_inputs: frozenset[str] = frozenset()
    inputs: tuple[tuple[str, tuple[str, int]], ...] = ()

    @property
    def held_storages(self) -> frozenset[str]:
        """Storages of the inputs that outlive the pass."""
        return frozenset(storage for name, (storage, _) in self.inputs if name in self.held_inputs)


@dataclass
class KernelPlan:
    """The limits of both passes, and the peaks that Inductor's kernels have.

    Attributes:
        limits: by pass; True is the backward pass.
        peak_bytes: by pass, of the code that Inductor generated; empty where it took compiled code
            from its cache.
        alive: of the pass that is being compiled, the bytes alive while each kernel runs; None
            before its kernels are in order.
    """

    limits: dict[bool, PassLimit] = field(default_factory=dict)
    peak_bytes: dict[bool, int] = field(default_factory=dict)
    alive: list[int] | None = None
    _known: tuple[object, tuple[str, ...], Kernels, int] | None = None
    _codes: tuple[str, str] = ("", "")
    _found: dict[tuple[str, PassLimit], int] = field(default_factory=dict)

    def begin(self, codes: tuple[str, str], forward: PassLimit, backward: PassLimit) -> None:
        """New graphs are going to be compiled, whose code is given."""
        self._codes = codes
        self.limits = {False: forward, True: backward}
        # Inductor takes a graph that it has compiled before from its cache.
        found = {b: self._found.get((codes[b], limit)) for b, limit in self.limits.items()}
        self.peak_bytes = {b: peak for b, peak in found.items() if peak is not None}
        self._known = None

    def generated(self, code: str, buffers: Buffers) -> None:
        """Code has been generated for the pass that is being compiled.

        Raises:
            PeakExceeded: it takes more than the pass may.
        """
        backward = compiles_backward()
        limit = self.limits[backward]
        inputs, held = dict(limit.inputs), limit.held_storages
        moments = play(code, replace(buffers, inputs=inputs, held=held))
        peak_bytes = max(moment.live_bytes for moment in moments)
        self.peak_bytes[backward] = peak_bytes
        self._found[self._codes[backward], limit] = peak_bytes
        if peak_bytes > limit.limit_bytes:
            raise PeakExceeded(peak_bytes - limit.limit_bytes)

    def ops(self, scheduler: Any) -> tuple[tuple[str, ...], Kernels, int]:
        """Names of a scheduler's ops, the ops, and the peak that no fusion must raise further."""
        if self._known is None or self._known[0] is not scheduler:
            limit = self.limits[compiles_backward()]
            names, ops = scheduled_ops(scheduler, workspace_of, dict(limit.inputs))
            ops = _holding(ops, limit.held_storages)
            alone = best_order(ops, range(len(names)), lambda peak: peak <= limit.limit_bytes)
            allowed = max(alone.peak_bytes, limit.limit_bytes)
            self._known = (scheduler, names, ops, allowed)
            self.alive = None
        return self._known[1:]


def workspace_of(node: Any) -> int:
    """Bytes that an FX node's kernel takes beside its inputs and outputs."""
    return int(node.meta.get(WORKSPACE, 0))


def _holding(ops: Kernels, held: Set[str]) -> Kernels:
    """The ops with some inputs alive to the end."""
    if not held:
        return ops
    outlives = tuple(
        out or name in held for out, name in zip(ops.is_output, ops.names, strict=True)
    )
    return replace(ops, is_output=outlives)


def _numbered(kernels: list[Any]) -> tuple[list[int], list[Any]]:
    """For each op, the number of its kernel; and the kernels by number."""
    number: dict[int, int] = {}
    found: list[Any] = []
    result = []
    for kernel in kernels:
        if id(kernel) not in number:
            number[id(kernel)] = len(found)
            found.append(kernel)
        result.append(number[id(kernel)])
    return result, found


class PlanChoices(InductorChoices):
    """Inductor's heuristics, and the limit on the peak."""

    def __init__(self, plan: KernelPlan) -> None:
        super().__init__()
        self._plan = plan

    def can_fuse_vertical(self, scheduler: Any, node1: Any, node2: Any, score: int) -> bool:
        """Whether a kernel may be fused with one that reads what it writes."""
        may = InductorChoices.can_fuse_vertical(scheduler, node1, node2, score)
        return bool(may) and self._fits(scheduler, node1, node2)

    def can_fuse_horizontal(self, scheduler: Any, node1: Any, node2: Any, score: int) -> bool:
        """Whether two kernels that read the same buffers may be fused."""
        may = InductorChoices.can_fuse_horizontal(scheduler, node1, node2, score)
        return bool(may) and self._fits(scheduler, node1, node2)

    def _fits(self, scheduler: Any, node1: Any, node2: Any) -> bool:
        names, ops, allowed = self._plan.ops(scheduler)
        joined = [node1 if k is node2 else k for k in fused_kernels(scheduler, names)]
        kernel_of, _ = _numbered(joined)
        try:
            found = best_order(ops, kernel_of, lambda peak: peak <= allowed)
        except ValueError:
            return False
        return found.peak_bytes <= allowed


class PlanOrder(CustomSchedulerPass):
    """Orders the kernels after fusion; known to Inductor's cache by a digest alone."""

    def __init__(self, digest: str, plan: KernelPlan | None = None) -> None:
        self._digest = digest
        self._plan = plan

    def __call__(self, nodes: list[Any]) -> list[Any]:
        """The kernels in the order with the least peak."""
        if self._plan is None:
            raise RuntimeError("a pass that was pickled is a cache key and cannot order kernels")
        scheduler = current_scheduler()
        names, ops, _ = self._plan.ops(scheduler)
        kernel_of, kernels = _numbered(fused_kernels(scheduler, names))
        order = best_order(ops, kernel_of)
        self._plan.alive = live_bytes(ops, kernel_of, order.kernels)
        return [kernels[k] for k in order.kernels]

    def uuid(self) -> str:
        """What Inductor's cache tells passes apart by."""
        return f"memfit:{self._digest}"

    def __reduce__(self) -> tuple[type[PlanOrder], tuple[str]]:
        return PlanOrder, (self._digest,)

    def __deepcopy__(self, _: dict[int, object]) -> PlanOrder:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlanOrder) and other._digest == self._digest

    def __hash__(self) -> int:
        return hash(self._digest)
