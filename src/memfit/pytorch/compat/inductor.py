"""Private or experimental names of Inductor and of AOTAutograd's partitioners (see `compat`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx
from torch._functorch import config as functorch_config
from torch._functorch.compile_utils import fx_graph_cse
from torch._inductor.custom_graph_pass import CustomPartitionerFn
from torch._inductor.exc import CppCompileError, InductorError

__all__ = [
    "CppCompileError",
    "CustomPartitionerFn",
    "InductorError",
    "compile_with_inductor",
    "merge_equal_nodes",
]


def compile_with_inductor(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    partitioner: CustomPartitionerFn,
    settings: dict[str, Any],
) -> Callable[..., Any]:
    """Compile a Dynamo graph with Inductor, split into its passes by `partitioner`.

    AOTAutograd's own cache is off meanwhile: a hit there would skip the partitioner, and with it
    the plan that users ask for. Inductor's cache of compiled graphs works as ever. The backward
    pass is compiled here too, whatever that raises, not when it first runs.
    """
    from torch._inductor.compile_fx import compile_fx  # takes seconds to import

    with functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True):
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


def prefers_channels_last(graph: fx.GraphModule) -> bool:
    """Whether Inductor gives the graph's convolutions their channels last."""
    from torch._inductor.graph import GraphLowering

    return bool(GraphLowering.decide_layout_opt(graph, is_inference=False))
