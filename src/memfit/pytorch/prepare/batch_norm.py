"""Batch norm with a cumulative average (`momentum=None`), in a form that can be traced.

`nn.BatchNorm` turns its counter into a Python number there, which no graph can hold. What it
computes is the same as batch norm without running statistics, which is traced as it is, and an
update of the statistics by 1 / counter, which becomes one op that reads the counter when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from memfit.pytorch.compat.eager import BatchNormBase

__all__ = ["has_cumulative_average", "traceable_cumulative_average"]

_forward = BatchNormBase.forward


@torch.library.custom_op("memfit::average_statistics", mutates_args={"mean", "variance"})
def _average_statistics(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor
) -> None:
    """Move running statistics towards those of a batch, by 1 / count, with PyTorch's own kernel."""
    torch.batch_norm_update_stats(x, mean, variance, 1.0 / float(count))


@_average_statistics.register_fake
def _(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
    return None


def _averages(module: nn.Module) -> bool:
    return (
        isinstance(module, BatchNormBase)
        and type(module).forward is _forward
        and module.momentum is None
        and module.track_running_stats
    )


def has_cumulative_average(model: nn.Module) -> bool:
    """Whether a batch norm of the model averages its statistics over all batches."""
    return any(_averages(module) for module in model.modules())


def _traceable_forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if not (self.training and self.momentum is None and self.track_running_stats):
        return _forward(self, x)
    self._check_input_dim(x)
    self.num_batches_tracked.add_(1)
    _average_statistics(x.detach(), self.running_mean, self.running_var, self.num_batches_tracked)
    return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


@contextmanager
def traceable_cumulative_average() -> Iterator[None]:
    """While on, `nn.BatchNorm` with `momentum=None` can be traced; it computes what it did."""
    before = BatchNormBase.forward
    BatchNormBase.forward = _traceable_forward
    try:
        yield
    finally:
        BatchNormBase.forward = before
