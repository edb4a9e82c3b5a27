"""Memory as the graphs of a step know it: by its storage, each counted once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from memfit.pytorch.capture.storage_sizes import block_bytes

__all__ = ["storages"]


def storages(values: Iterable[Any]) -> list[tuple[StorageWeakRef, int]]:
    """The storages of the tensors among some values, with what each takes."""
    found = []
    for x in values:
        if isinstance(x, torch.Tensor) and x.layout is torch.strided:
            storage = x.untyped_storage()
            found.append((StorageWeakRef(storage), block_bytes(storage.nbytes(), x.device)))
    return found
