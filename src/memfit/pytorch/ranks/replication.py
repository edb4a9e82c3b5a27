"""How a step runs on several devices: what DistributedDataParallel changes about it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from memfit.errors import CaptureError
from memfit.graph.training_graph import ValueKind
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.capture.storage_sizes import block_bytes
from memfit.pytorch.compat.distributed import active_ddp, is_subclass
from memfit.pytorch.ranks.overlap import Overlap

__all__ = [
    "Parallel",
    "Replication",
    "accumulates_outside_of_buckets",
    "check_plain",
    "hand_over_gradients",
    "is_sharded",
    "replication_of",
]


@dataclass(frozen=True)
class Parallel:
    """What the caller of `fit` asked for; None: as DistributedDataParallel, if any, needs it.

    Attributes:
        overlap: hand each gradient over as soon as it is final.
        same_plan: all ranks run rank 0's plan.
    """

    overlap: bool | None = None
    same_plan: bool | None = None


@dataclass(frozen=True)
class Replication:
    """How one fitted module runs.

    Attributes:
        overlap: hand each gradient over as soon as it is final.
        share: all ranks of `group` run rank 0's plan.
        group: a process group; None for all ranks.
        bucket_bytes: memory of DistributedDataParallel's buckets for the module's parameters.
        bucket_view: finished gradients move into these buckets, so that their own memory is free.
        reduced: DistributedDataParallel waits for every gradient to pass through autograd.
    """

    overlap: bool = False
    share: bool = False
    group: Any = None
    bucket_bytes: int = 0
    bucket_view: bool = False
    reduced: bool = False

    def overlapper(self) -> Overlap | None:
        """Compiles backward graphs, or None where gradients come at the end."""
        if not self.overlap:
            return None
        return Overlap(least_bytes=0 if self.bucket_view else None)


def replication_of(model: nn.Module, asked: Parallel) -> Replication:
    """How `model` runs in the call that is going on.

    Under DistributedDataParallel gradients are handed over early and rank 0 plans for all, unless
    `asked` says otherwise.
    """
    ddp = active_ddp()
    if ddp is None:
        return Replication(overlap=bool(asked.overlap), share=bool(asked.same_plan))
    ignored = set(ddp.parameters_to_ignore)
    names = {p: name for name, p in ddp.module.named_parameters()}
    reduced = [p for p in model.parameters() if p.requires_grad and names.get(p) not in ignored]
    overlap = asked.overlap is not False
    return Replication(
        overlap=overlap,
        share=asked.same_plan is not False,
        group=ddp.process_group,
        bucket_bytes=sum(block_bytes(p.numel() * p.element_size(), p.device) for p in reduced),
        reduced=True,
        bucket_view=bool(overlap and ddp.gradient_as_bucket_view and len(reduced) == len(names)),
    )


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP has taken over a part of the model."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return False
    kinds = (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    return any(isinstance(module, kinds) for module in model.modules())


def check_plain(name: str, inputs: Iterable[Any]) -> None:
    """Refuse tensors that are made of several: AOTAutograd takes them apart.

    Raises:
        CaptureError: there is one among the parameters, buffers and inputs of a step.
    """
    found = next((x for x in inputs if is_subclass(x)), None)
    if found is not None:
        raise CaptureError(
            f"{name} has a {type(found).__name__} of shape {tuple(found.shape)} among its "
            "parameters, buffers and inputs, a tensor that is made of others, whose memory is not "
            "planned; use plain tensors (to shard a model: memfit.fit_blocks, then fully_shard)"
        )


def accumulates_outside_of_buckets() -> bool:
    """Whether the call that is going on is inside `no_sync()`, where no gradient is reduced."""
    ddp = active_ddp()
    return ddp is not None and not ddp.require_backward_grad_sync


def hand_over_gradients(step: CapturedStep, parameters: Set[fx.Node]) -> CapturedStep:
    """The step where parameter gradients die with their last use: a bucket takes them over.

    Args:
        step: as captured.
        parameters: the placeholders that are parameters.
    """
    outputs, gradients = J.joint_outputs(step.joint, step.forward_outputs)
    given = {n for n in outputs if hasattr(n, "meta")}
    kept: set[int] = set()
    handed: set[int] = set()
    for primal, node in zip(J.primals(step.joint), gradients, strict=False):
        if hasattr(node, "meta"):
            found = {step.value_of[s] for s in J.storages(node)}
            (handed if primal in parameters and node not in given else kept).update(found)
    values = tuple(
        replace(v, is_output=False) if i in handed - kept and v.kind is ValueKind.GRADIENT else v
        for i, v in enumerate(step.graph.values)
    )
    return replace(step, graph=replace(step.graph, values=values))
