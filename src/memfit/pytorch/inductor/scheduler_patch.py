"""Private names of Inductor's scheduler (see `compat`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch._inductor.choices import InductorChoices

from memfit.pytorch.compat.versions import torch_version
from memfit.pytorch.inductor.kernel_order import Kernels

TORCH = torch_version()
if TORCH >= (2, 13):
    from torch._inductor.custom_graph_pass import CustomSchedulerPass
else:  # any callable is a pass, and the key of Inductor's cache has it pickled
    CustomSchedulerPass = object

__all__ = [
    "CustomSchedulerPass",
    "InductorChoices",
    "compiles_backward",
    "current_scheduler",
    "fused_kernels",
    "held_by_caller",
    "scheduled_ops",
    "use_choices",
]

Workspace = Callable[[Any], int]
Alive = Callable[[], list[int] | None]
# Inputs that the caller holds, by AOTAutograd's names; the others die with their last use.
_CALLERS = ("primals_", "arg", "fwd_rng_state", "bwd_rng_state")


@contextmanager
def use_choices(choices: InductorChoices, alive: Alive) -> Iterator[None]:
    """Have Inductor fuse what `choices` lets it, and free what a kernel read when it has run.

    The C++ backend makes one function of all loops up to the next library kernel, and frees nothing
    before its end, in whatever order they run. And a buffer that is dead may be held to be used
    again: Inductor asks its own estimate of the peak, which knows of no workspace, whether it may.

    Args:
        choices: asked about fusions.
        alive: of what is being compiled, the bytes alive while each kernel runs, if that is known.
    """
    from torch._inductor.codegen import wrapper
    from torch._inductor.codegen.cpp import CppScheduling
    from torch._inductor.virtualized import V

    most, estimate = CppScheduling.MAX_FUSED_KERNEL_ARGS_NUM, wrapper.EfficientPeakEstimate

    def ours() -> Any:
        found = alive()
        return estimate() if found is None else _Reuse(found)

    CppScheduling.MAX_FUSED_KERNEL_ARGS_NUM = 0
    wrapper.EfficientPeakEstimate = ours
    try:
        with V.set_choices_handler(choices):
            yield
    finally:
        CppScheduling.MAX_FUSED_KERNEL_ARGS_NUM = most
        wrapper.EfficientPeakEstimate = estimate


class _Reuse:
    """Whether a dead buffer may wait for one like it: asked as Inductor's estimate of the peak is.

    Args:
        alive: bytes alive while each kernel runs, which grow with each buffer that waits.
    """

    def __init__(self, alive: list[int]) -> None:
        from torch._inductor.virtualized import V

        known = len(alive) == len(V.graph.scheduler.nodes)
        self.overall_peak_memory = max(alive, default=0) if known else -1
        self._alive = list(alive)

    def peak_between(self, freed: Any, allocated: Any) -> int:
        """Most bytes alive between a buffer's last use and the next allocation."""
        between = self._alive[freed.scheduler_node_index + 1 : allocated.scheduler_node_index]
        return max(between, default=0)

    def update_peak_between(self, freed: Any, allocated: Any) -> None:
        """The buffer waits."""
        from torch._inductor.utils import get_dtype_size
        from torch._inductor.virtualized import V

        node = allocated.node
        count = V.graph.sizevars.optimization_hint(
            V.graph.get_allocation_storage_size(node), fallback=0
        )
        size = count * get_dtype_size(node.get_dtype())
        for i in range(freed.scheduler_node_index + 1, allocated.scheduler_node_index):
            self._alive[i] += size


def current_scheduler() -> Any:
    """The scheduler of the graph that Inductor compiles now."""
    from torch._inductor.virtualized import V

    return V.graph.scheduler


def compiles_backward() -> bool:
    """Whether the graph that Inductor compiles now is a backward pass."""
    from torch._inductor.virtualized import V

    return bool(V.graph.is_backward)


def held_by_caller(name: str) -> bool:
    """Whether an input of a pass, by AOTAutograd's name, outlives it whatever the pass does."""
    return name.startswith(_CALLERS)


def fused_kernels(scheduler: Any, names: Sequence[str]) -> list[Any]:
    """The scheduler's nodes that ops, given by name, have been fused into so far."""
    fused = scheduler.name_to_fused_node
    return [fused[name] for name in names]


def _whole(node: Any) -> Any:
    """Name of the buffer that a node writes a part of (`torch.cat` joins such parts), or None."""
    from torch._inductor.ir import NonOwningLayout

    layout = getattr(node, "layout", None)
    return layout.view.get_name() if isinstance(layout, NonOwningLayout) else None


def scheduled_ops(
    scheduler: Any, workspace: Workspace, inputs: Mapping[str, tuple[str, int]]
) -> tuple[tuple[str, ...], Kernels]:
    """Names of the ops that a scheduler has to order, and what they write and read.

    Args:
        scheduler: Inductor's.
        workspace: bytes that an FX node's kernel takes beside its inputs and outputs.
        inputs: for each input that is freed after its last use, the storage that it lies in and
            that storage's bytes.
    """
    from torch._inductor.dependencies import WeakDep
    from torch._inductor.memory import compute_size_for_scheduler_buffer
    from torch._inductor.scheduler import ExternKernelSchedulerNode
    from torch._inductor.virtualized import V

    single = {id(n): n for fused in scheduler.nodes for n in fused.get_nodes()}
    nodes = sorted(single.values(), key=lambda n: n.min_order)
    made = {b.get_name(): b for n in nodes for b in n.get_outputs()}
    sizes = compute_size_for_scheduler_buffer(made)
    renamed = scheduler.mutation_real_name
    parts = ((name, _whole(b.node)) for name, b in made.items())
    whole = {name: of for name, of in parts if of in made}
    number: dict[str, int] = {}
    allocated: list[int] = []
    freed: list[int] = []

    def buffer(name: str, sizes: tuple[int, int]) -> int:
        if name not in number:
            number[name] = len(number)
            allocated.append(sizes[0])
            freed.append(sizes[1])
        return number[name]

    def storage(name: str) -> str:
        while name in renamed or name in whole:
            name = renamed[name] if name in renamed else whole[name]
        return name

    writer: dict[str, int] = {}
    writes: list[tuple[int, ...]] = []
    for i, node in enumerate(nodes):
        names = [b.get_name() for b in node.get_outputs()]
        writer.update(dict.fromkeys(names, i))
        stored = dict.fromkeys(storage(name) for name in names if name not in renamed)
        writes.append(tuple(buffer(name, sizes[name]) for name in stored))
    reads: list[tuple[int, ...]] = []
    follows: list[frozenset[int]] = []
    input_bytes = 0
    for i, node in enumerate(nodes):
        dependencies = sorted(node.read_writes.reads | node.unmet_dependencies, key=str)
        follows.append(
            frozenset(writer[d.name] for d in dependencies if writer.get(d.name, i) != i)
        )
        found: set[int] = set()
        for d in dependencies:
            if isinstance(d, WeakDep) and d.is_fake:
                continue
            name = storage(d.name)
            if name in inputs:
                name, size = inputs[name]
                if name not in number:
                    input_bytes += size
                    buffer(name, (0, size))
            if name in number:
                found.add(number[name])
        reads.append(tuple(sorted(found)))
    outputs = {storage(name) for name in V.graph.get_output_names()}
    kernels = Kernels(
        names=tuple(number),
        writes=tuple(writes),
        reads=tuple(reads),
        follows=tuple(follows),
        workspace_bytes=tuple(
            max((workspace(o) for o in n.node.get_origins()), default=0)
            if isinstance(n, ExternKernelSchedulerNode)
            else 0
            for n in nodes
        ),
        allocated_bytes=tuple(allocated),
        freed_bytes=tuple(freed),
        is_output=tuple(name in outputs for name in number),
        input_bytes=input_bytes,
    )
    return tuple(n.get_name() for n in nodes), kernels
