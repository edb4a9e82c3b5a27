"""The peers: other ways to run a training step in less memory, each as its user would set it up."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._functorch.config as functorch_config
from functorch.compile import min_cut_rematerialization_partition
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from benchmarks.peers.networks import Function, Subject
from memfit.pytorch.compat.whole_ops import whole_ops
from memfit.pytorch.prepare.tracing import trace_settings
from memfit.pytorch.step_call import StepModule

__all__ = ["BUDGETS", "DESCRIPTIONS", "SAVED_OPS", "Way", "segment_counts", "ways"]

BUDGETS = (1.0, 0.7, 0.5, 0.2, 0.0)
SAVED_OPS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)

DESCRIPTIONS = {
    "eager": "plain PyTorch, nothing recomputed",
    "sequential": "`torch.utils.checkpoint.checkpoint_sequential` over the model as a chain of "
    "modules, not reentrant. All segment counts of the list are tried; of those that no other one "
    "beats in both peak and time, the one with the smallest peak and the fastest are kept",
    "per block": "`torch.utils.checkpoint.checkpoint`, not reentrant, around each block",
    "selective": "the same with `create_selective_checkpoint_contexts`: results of matrix "
    "products, convolutions and attention are saved, the rest of each block is recomputed",
    "switch": "transformers' own switch, `gradient_checkpointing_enable` "
    "(`activation_checkpointing_enable` where it is called that)",
    "min-cut": "the partitioner of `torch.compile` "
    "(`min_cut_rematerialization_partition`) on AOTAutograd's joint graph, run op by op without "
    "Inductor, with `activation_memory_budget` at the value shown. It is traced with memfit's own "
    "settings (interpolation and dropout kept whole), so that only the partition differs; below "
    "1.0 it may draw dropout masks anew, with PyTorch's default settings too",
    "chen": "Chen et al. 2016 on the captured graph: memfit's planner `chen` and its executor",
}


@dataclass
class Way:
    """One way to run a step.

    Attributes:
        name: as shown.
        kind: a key of `DESCRIPTIONS`.
        make: from a model of its own, a callable of the step's arguments that returns the loss.
        context: what the first call needs around it.
    """

    name: str
    kind: str
    make: Callable[[nn.Module], Callable[..., Any]]
    context: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)


def segment_counts(length: int) -> list[int]:
    """Segment counts to try for a chain: 2, about √n, half the functions, each function alone."""
    tried = {2, round(math.sqrt(length)), length // 2, length}
    return sorted(n for n in tried if 2 <= n <= length)


def mark(module: nn.Module, **how: Any) -> None:
    """Checkpoint each call of a module."""
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(plain, *args, use_reentrant=False, **how, **kwargs)

    module.forward = forward  # type: ignore[method-assign]


def _eager(subject: Subject) -> Way:
    return Way("eager", "eager", lambda model: StepModule(model, subject.case.loss_fn))


def _marked(subject: Subject, name: str, kind: str, **how: Any) -> Way:
    def make(model: nn.Module) -> Callable[..., Any]:
        for block in subject.blocks(model):
            mark(block, **how)
        return StepModule(model, subject.case.loss_fn)

    return Way(name, kind, make)


def _sequential(subject: Subject, chain: Callable[[nn.Module], list[Function]]) -> Iterator[Way]:
    loss_fn = subject.case.loss_fn
    assert loss_fn is not None

    def way(segments: int) -> Way:
        def make(model: nn.Module) -> Callable[..., Any]:
            functions = chain(model)

            def run(*args: Any) -> Any:
                output = checkpoint_sequential(functions, segments, args[0], use_reentrant=False)
                return loss_fn(output, args[-1])

            return run

        return Way(f"sequential, {segments} segments", "sequential", make)

    for segments in segment_counts(len(chain(subject.case.model))):
        yield way(segments)


def _switch(subject: Subject) -> Way:
    def make(model: nn.Module) -> Callable[..., Any]:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)()
        return StepModule(model, subject.case.loss_fn)

    return Way("Hugging Face's switch", "switch", make)


_serial = itertools.count()


def min_cut_step(model: nn.Module, loss_fn: Callable[..., Any] | None) -> Callable[..., Any]:
    """The step as AOTAutograd captures it, split by PyTorch's min-cut partitioner, op by op."""
    aot = aot_autograd(
        fw_compiler=boxed_nop,
        bw_compiler=boxed_nop,
        partition_fn=min_cut_rematerialization_partition,
        keep_inference_input_mutations=True,
    )

    def backend(module: Any, example_inputs: Any) -> Any:
        with whole_ops():
            return aot(module, example_inputs)

    step = StepModule(model, loss_fn)

    def run(*args: Any) -> Any:
        return step(*args)

    # Dynamo keeps and limits what it compiled by code object.
    run.__code__ = run.__code__.replace(co_name=f"run_{next(_serial)}")
    compiled = torch.compile(run, backend=backend, fullgraph=True, dynamic=False)

    def call(*args: Any) -> Any:
        with trace_settings():
            return compiled(*args)

    return call


def _min_cut(subject: Subject, budget: float) -> Way:
    @contextmanager
    def context() -> Iterator[None]:
        with functorch_config.patch(activation_memory_budget=budget):
            yield

    return Way(
        f"min-cut, budget {budget:g}",
        "min-cut",
        lambda model: min_cut_step(model, subject.case.loss_fn),
        context,
    )


def ways(subject: Subject, budgets: Sequence[float] = BUDGETS) -> list[Way]:
    """All peers of a model, plain eager first; Chen's planner, which is ours, is not in it."""
    save_products = functools.partial(create_selective_checkpoint_contexts, list(SAVED_OPS))
    found = [
        _eager(subject),
        _marked(subject, "checkpoint per block", "per block"),
        _marked(subject, "selective checkpoint", "selective", context_fn=save_products),
    ]
    if subject.chain is not None:
        found += _sequential(subject, subject.chain)
    if hasattr(subject.case.model, "gradient_checkpointing_enable"):
        found.append(_switch(subject))
    return found + [_min_cut(subject, budget) for budget in budgets]
