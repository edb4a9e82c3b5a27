"""What a traced joint graph goes through before it is read."""

from __future__ import annotations

from torch import fx

from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.scalars import fold_constants
from memfit.pytorch.capture.storage_sizes import enlarge_fake_storages
from memfit.pytorch.layouts.batch_norm_formats import settle_formats
from memfit.pytorch.prepare.slice_writes import drop_copies
from memfit.pytorch.prepare.undefined import drop_undefined

__all__ = ["prepare", "prepare_for_kernels"]


def prepare(joint: fx.GraphModule) -> None:
    """Make a joint graph compute what eager computes; in place."""
    drop_undefined(joint)
    fold_constants(joint)
    J.normalise(joint)
    settle_formats(joint)


def prepare_for_kernels(joint: fx.GraphModule) -> None:
    """The same where PyTorch's kernels will run it: without idle copies, results as they hold them.

    Compilers that generate code write in place by themselves.
    """
    prepare(joint)
    drop_copies(joint)
    enlarge_fake_storages(joint)
