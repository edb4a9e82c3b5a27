"""Private or experimental names of Inductor and of AOTAutograd's partitioners (see `compat`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._functorch import config as functorch_config
from torch._functorch.compile_utils import fx_graph_cse
from torch._inductor.custom_graph_pass import CustomPartitionerFn

__all__ = [
    "CustomPartitionerFn",
    "compile_code_id",
    "compile_with_inductor",
    "ending_break",
    "merge_equal_nodes",
    "plain_inductor",
    "register_backend",
]


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
    from torch._inductor.compile_fx import compile_fx  # takes seconds to import

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


def ending_break(module: fx.GraphModule) -> str | None:
    """Source line of the graph break that ends a Dynamo graph, None where it ends without one."""
    reason = getattr(module, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return None
    stack = reason.user_stack
    return f"{stack[-1].filename}:{stack[-1].lineno}" if stack else "an unknown line"


def compile_code_id() -> object:
    """What Dynamo knows the code by that is being compiled: equal when it is compiled again."""
    found = torch._guards.CompileContext.current_compile_id()
    return None if found is None else ("frame", found.frame_id)


def plain_inductor(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a graph with Inductor, without a plan."""
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(module, example_inputs)
