"""The one module that imports private or experimental PyTorch names."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch._functorch.config
import torch._logging
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch._functorch._aot_autograd.descriptors import SavedForBackwardsAOTOutput
from torch._higher_order_ops.effects import has_effects
from torch.fx.node import _side_effectful_functions
from torch.nn.modules import module as _module
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    is_in_torch_dispatch_mode,
)
from torch.utils._pytree import (
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_map_only,
    tree_unflatten,
)

from memfit.pytorch.compat.symbols import numbers_inside_ops
from memfit.pytorch.compat.versions import config_values
from memfit.pytorch.options import MAX_SHAPES

__all__ = [
    "GLOBAL_MODULE_HOOKS",
    "BackendCompilerFailed",
    "BatchNormBase",
    "MemoryEvent",
    "OpInterval",
    "TorchDispatchMode",
    "TorchDynamoException",
    "aot_backend",
    "backward_keeps_graph",
    "boxed_nop",
    "capture_settings",
    "clear_cublas_workspaces",
    "is_marked_effectful",
    "kineto_memory_events",
    "kineto_op_intervals",
    "memory_profiler",
    "plain_mode",
    "profiler_active",
    "quiet_logs",
    "saved_output_description",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_unflatten",
    "why_not_compiled",
]

GLOBAL_MODULE_HOOKS = (
    _module._global_forward_pre_hooks,
    _module._global_forward_hooks,
    _module._global_backward_pre_hooks,
    _module._global_backward_hooks,
)
"""The hooks that are called for every module, each a dictionary."""
_ADVICE = ("warning_once", "info_once", "warning_advice")
Backend = Callable[[torch.fx.GraphModule, Sequence[Any]], Callable[..., Any]]


@contextmanager
def capture_settings(shapes: int = MAX_SHAPES) -> Iterator[None]:
    """Settings for a step: so many input shapes, recurrent layers traced.

    Dynamo's own limit is above that number, so that the limit which is met first is one whose error
    names the remedy.

    Dynamo would cut the graph of a DistributedDataParallel module at its buckets; a plan covers the
    whole step. The backward pass is traced without autocast, as it
    runs where `backward()` is called outside of the autocast block, which is what PyTorch
    recommends.

    Dynamo would take ops with a factor apart (`addcmul_`, in 2.11 `add_` with `alpha=`), so that a
    tensor may be the factor. It is kept from that: these ops round otherwise than eager's.

    Dynamo would not look whether a module without hooks has got some since, nor whether two
    parameters have become one: it would go on with what it traced. Here it looks, which costs a
    fifth of a microsecond for each module and call.

    NumPy's random functions would become PyTorch's, with PyTorch's numbers, and its seed would be
    dropped. Here they are code that cannot be traced.

    Advice that a library gives once (transformers adds such methods to all loggers) is left out of
    the graph; other logging in a forward pass is an error, because it could not be kept.
    """
    advice = {getattr(logging.Logger, name, None) for name in _ADVICE} - {None}
    with (
        config_values(
            torch._dynamo.config,
            recompile_limit=shapes + 8,
            accumulated_recompile_limit=max(
                torch._dynamo.config.accumulated_recompile_limit, shapes + 8
            ),
            allow_rnn=True,
            enable_dynamo_decompositions=False,
            ignore_logging_functions=advice,
            optimize_ddp=False,
            skip_nnmodule_hook_guards=False,
            skip_no_tensor_aliasing_guards_on_parameters=False,
            use_numpy_random_stream=True,  # else NumPy's numbers are drawn from PyTorch's
            **_GRADIENTS_INSIDE,
        ),
        config_values(torch._functorch.config, backward_pass_autocast="off"),
        numbers_inside_ops(),
    ):
        yield


# Gradients that a forward pass computes become a part of the graph; older releases cannot.
_GRADIENTS_INSIDE: dict[str, Any] = (
    {"trace_autograd_ops": True} if hasattr(torch._dynamo.config, "trace_autograd_ops") else {}
)


def why_not_compiled() -> str | None:
    """Why Dynamo would run a call as plain PyTorch; None where it compiles."""
    if torch._dynamo.config.disable:
        return "PyTorch's compiler is switched off (TORCHDYNAMO_DISABLE, TORCH_COMPILE_DISABLE)"
    if is_in_torch_dispatch_mode(include_infra_modes=False):
        return "a mode that looks at every op (FlopCounterMode, for one) is active"
    if torch._dynamo.eval_frame._stance.stance == "force_eager":
        return 'torch.compiler.set_stance("force_eager") is in force'
    return None


def quiet_logs() -> None:
    """Have PyTorch's compiler log nothing below critical errors."""
    torch._logging.set_logs(all=logging.CRITICAL)


def saved_output_description(index: int) -> Any:
    """AOTAutograd's description of the index-th value that the forward graph saves."""
    return SavedForBackwardsAOTOutput(index)


def aot_backend(
    partition: Callable[..., Any], backward_compiler: Callable[..., Any] | None = None
) -> Backend:
    """A Dynamo backend that runs AOTAutograd's graphs as they are, split by `partition`.

    `backward_compiler` makes a boxed callable of the backward graph; None runs it as it is.
    """
    return aot_autograd(
        fw_compiler=boxed_nop,
        bw_compiler=backward_compiler or boxed_nop,
        partition_fn=partition,
        keep_inference_input_mutations=True,
    )


def is_marked_effectful(op: torch._ops.OpOverload) -> bool:
    """Whether PyTorch keeps an op for its effect: an assertion, a print, what users registered.

    Random ops are not meant, although `whole_ops` keeps them while tracing.
    """
    if torch.Tag.nondeterministic_seeded in op.tags:
        return False
    return op in _side_effectful_functions or bool(has_effects(op))


def backward_keeps_graph() -> bool:
    """Whether the running backward pass was asked to keep its graph (`retain_graph=True`)."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


@contextmanager
def plain_mode() -> Iterator[None]:
    """Run real tensors eagerly, whatever is being traced around.

    Takes off every dispatch mode (fake tensors, functionalisation, proxies, the user's own), torch
    function modes, autocast and autograd, and puts them back. Without it, ops called from inside a
    partition function run on fake tensors: they take no time, and nothing says so.
    """
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(torch._C._DisableAutocast())
        stack.enter_context(torch.no_grad())
        yield


def clear_cublas_workspaces() -> None:
    """Give back what cuBLAS keeps; it is allocated again at the next product."""
    torch._C._cuda_clearCublasWorkspaces()


class MemoryEvent(NamedTuple):
    """An allocation (positive) or a free (negative) of the CPU allocator."""

    time_ns: int
    size_bytes: int
    address: int


class OpInterval(NamedTuple):
    """When a profiled op or `record_function` range ran."""

    name: str
    start_ns: int
    end_ns: int


def profiler_active() -> bool:
    """Whether a PyTorch profiler runs on this thread; a second one would silently end the first."""
    return bool(torch.autograd._profiler_enabled())


@contextmanager
def memory_profiler() -> Iterator[torch.profiler.profile]:
    """A profiler that records the CPU allocator's events."""
    variable = "KINETO_LOG_LEVEL"
    quiet = variable not in os.environ
    if quiet:  # kineto reports every start and stop on stderr otherwise
        os.environ[variable] = "99"
    try:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU],
            profile_memory=True,
            acc_events=True,  # 2.12 warns without it; there is one cycle, so nothing adds up
        ) as profiler:
            yield profiler
    finally:
        if quiet:
            os.environ.pop(variable, None)


def _profiled_events(profiler: torch.profiler.profile) -> Iterator[Any]:
    results = profiler.profiler.kineto_results
    stack = list(results.experimental_event_tree())
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        yield event


def kineto_memory_events(profiler: torch.profiler.profile) -> list[MemoryEvent]:
    """Every event of the CPU allocator, of any thread the profiler follows, in order of time."""
    kind = torch._C._profiler._EventType.Allocation
    events = [
        MemoryEvent(event.start_time_ns, event.typed[1].alloc_size, event.typed[1].ptr or 0)
        for event in _profiled_events(profiler)
        if event.tag == kind and event.typed[1].device.type == "cpu"
    ]
    return sorted(events, key=lambda event: event.time_ns)


def kineto_op_intervals(profiler: torch.profiler.profile, prefix: str = "") -> list[OpInterval]:
    """Ops and `record_function` ranges whose names start with `prefix`, in order of start."""
    kind = torch._C._profiler._EventType.TorchOp
    intervals = [
        OpInterval(event.name, event.start_time_ns, event.end_time_ns)
        for event in _profiled_events(profiler)
        if event.tag == kind and event.name.startswith(prefix)
    ]
    return sorted(intervals, key=lambda interval: interval.start_ns)
