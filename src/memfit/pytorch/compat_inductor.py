"""Private or experimental names of Inductor and of AOTAutograd's partitioners (see `compat`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._functorch import config as functorch_config
from torch._functorch.compile_utils import fx_graph_cse
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomPartitionerFn

__all__ = ["CustomPartitionerFn", "compile_with_inductor", "merge_equal_nodes", "register_backend"]


def compile_with_inductor(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    partitioner: CustomPartitionerFn,
    settings: dict[str, Any],
) -> Callable[..., Any]:
    """Compile a Dynamo graph with Inductor, split into its passes by `partitioner`.

    AOTAutograd's own cache is off meanwhile: a hit there would skip the partitioner, and with it
    the plan that users ask for. Inductor's cache of compiled graphs works as ever.
    """
    with functorch_config.patch(enable_autograd_cache=False):
        return compile_fx(
            module,
            example_inputs,
            config_patches={**settings, "custom_partitioner_fn": partitioner},
        )


def merge_equal_nodes(joint: fx.GraphModule) -> None:
    """Compute equal expressions once, as Inductor's own partitioner does before it splits."""
    if functorch_config.cse:
        joint.graph = fx_graph_cse(joint.graph)
        joint.recompile()


def register_backend(name: str, backend: Callable[..., Any]) -> None:
    """Make a backend known to `torch.compile` by name, unless the name is taken."""
    from torch._dynamo.backends import registry

    if name not in registry._COMPILER_FNS:
        registry.register_backend(backend, name=name)


def break_line() -> str | None:
    """Source line at which Dynamo stopped to trace the frame that is being compiled, if known."""
    context = torch._guards.TracingContext.try_get()
    stack = context.frame_summary_stack if context is not None else []
    return f"{stack[-1].filename}:{stack[-1].lineno}" if stack else None
