"""Which Dynamo backend runs a step: PyTorch's kernels op by op, or code that Inductor generates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from memfit._core import core_name
from memfit.graph.training_graph import ValueKind
from memfit.pytorch.arguments import check_initialised
from memfit.pytorch.backend import StepBackend
from memfit.pytorch.capture.resident import gradient_bytes, resident_values
from memfit.pytorch.eager_graph import EagerGraph
from memfit.pytorch.inductor.executor import Inductor
from memfit.pytorch.options import StepOptions
from memfit.pytorch.pipeline import Executor, Setting
from memfit.pytorch.planning.by_shape import ByShape
from memfit.pytorch.planning.capture_only import CaptureOnly
from memfit.pytorch.planning.fresh import Fresh, digest_of
from memfit.pytorch.planning.protocol import Planning
from memfit.pytorch.planning.shared import Shared
from memfit.pytorch.planning.sizes import ShapeCount
from memfit.pytorch.ranks.replication import Replication

__all__ = ["MakeBackend", "backend_for"]


@dataclass(frozen=True)
class MakeBackend:
    """Makes the Dynamo backend of one model.

    Attributes:
        fresh: plans anew.
    """

    fresh: Fresh

    @classmethod
    def of(cls, model: nn.Module, options: StepOptions) -> MakeBackend:
        """For a model and what was asked for."""
        first = next(iter(model.parameters()), None)
        return cls(Fresh(options, first.device if first is not None else None))

    def __call__(
        self, model: nn.Module, replication: Replication | None = None, *, decide: bool = True
    ) -> StepBackend:
        """A Dynamo backend for one model.

        Args:
            model: the model.
            replication: how it runs on several devices.
            decide: whether it plans, and not only captures.

        Raises:
            UsageError: a lazy layer has no shape yet, or the optimizer's state cannot be sized.
        """
        check_initialised(model)
        options = self.fresh.options
        optimizer_bytes = self.fresh.optimizer_bytes
        resident = resident_values(model, optimizer_bytes)
        if replication is not None:
            resident[ValueKind.BUFFER] += replication.bucket_bytes
        if options.capture.accumulate:
            resident[ValueKind.ACCUMULATED] = gradient_bytes(model)
        name = type(model).__name__
        planning: Planning = self.fresh if decide else CaptureOnly()
        if decide and options.planning.plan is None:
            planning = ByShape(self.fresh, self._digest(optimizer_bytes))
        if replication is not None and replication.share:
            planning = Shared(planning, name, replication.group)
        return backend_for(
            self.fresh,
            planning,
            resident=resident,
            name=name,
            optimizer_bytes=optimizer_bytes,
            replication=replication,
            loops=options.capture.loops,
        )

    def _digest(self, optimizer_bytes: int) -> str | None:
        """Names plans on disk; None where they depend on what the device has free."""
        if self.fresh.budget.auto:
            return None
        executor = self.fresh.options.run.executor
        return digest_of(
            self.fresh.digest(optimizer_bytes), torch.__version__, executor, core_name()
        )


def backend_for(
    fresh: Fresh,
    planning: Planning,
    *,
    resident: Mapping[ValueKind, int],
    name: str,
    optimizer_bytes: int = 0,
    held: int = 0,
    replication: Replication | None = None,
    loops: str = "unroll",
) -> StepBackend:
    """A Dynamo backend of the executor asked for.

    Args:
        fresh: the options, and plans within less where generated code takes more than was planned.
        planning: what makes the plans.
        resident: bytes alive all through the step, by kind, read by the graph or not; of inputs
            those that no graph reads.
        name: for messages.
        optimizer_bytes: size of the optimizer's state.
        held: bytes that other graphs of the same step hold.
        replication: how the module runs on several devices.
        loops: what becomes of `scan` and `while_loop`, as for `fit`.
    """
    options = fresh.options
    setting = Setting(name, resident, cost=options.capture.cost, progress=options.progress)
    executor: Executor
    if options.run.executor == "inductor":
        executor = Inductor(
            setting,
            digest=fresh.digest(optimizer_bytes, held),
            within=fresh.within if options.planning.plan is None else None,
        )
    else:
        setting = replace(
            setting,
            accumulate=options.capture.accumulate,
            replication=replication or Replication(),
            loops=loops,
            fullgraph=options.capture.fullgraph,
            branches=True,
        )
        executor = EagerGraph(setting)
    return StepBackend(planning, executor, setting, ShapeCount(name, options.run.max_shapes))
