"""Sparse tensors as the dense ones that they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from memfit.pytorch.compat.eager import tree_leaves, tree_map

__all__ = [
    "SparseGiven",
    "Touched",
    "Untouchable",
    "apart",
    "bytes_of",
    "form_of",
    "is_sparse",
    "made_of",
    "owned",
    "parts",
    "same",
]

_ROWS = (torch.sparse_csr, torch.sparse_bsr)
_COLUMNS = (torch.sparse_csc, torch.sparse_bsc)


def is_sparse(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a sparse layout that can be taken apart."""
    return tensor.layout in (torch.sparse_coo, *_ROWS, *_COLUMNS)


def parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The dense tensors that a tensor is made of: itself, where it is not sparse."""
    if not is_sparse(tensor):
        return (tensor,)
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in _ROWS:
        found = tensor.crow_indices(), tensor.col_indices(), tensor.values()
    else:
        found = tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return tuple(x.data for x in found)  # no views: Dynamo would look at what they are views of


def form_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What a sparse tensor is beside its parts."""
    coalesced = tensor.layout is torch.sparse_coo and tensor.is_coalesced()
    return tensor.layout, tuple(tensor.shape), coalesced


def made_of(form: tuple[Any, ...], found: Sequence[torch.Tensor]) -> torch.Tensor:
    """A sparse tensor of some parts."""
    layout, shape, coalesced = form
    if layout is torch.sparse_coo:
        return torch.sparse_coo_tensor(
            *found, size=shape, is_coalesced=coalesced, check_invariants=False
        )
    return torch.sparse_compressed_tensor(*found, size=shape, layout=layout, check_invariants=False)


def bytes_of(tensor: torch.Tensor) -> int:
    """Bytes of the memory that a tensor lies in."""
    return sum({_storage(x): x.untyped_storage().nbytes() for x in parts(tensor)}.values())


def owned(
    found: list[torch.Tensor | None], others: Iterable[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Gradients as tracing was told that they lie; each is copied where it does not, and let go.

    Args:
        found: the gradients; changed.
        others: what sparse gradients must not share memory with, for that is freed or written.
    """
    taken = {_storage(p) for x in others if x is not None for p in parts(x)}
    for i, x in enumerate(found):
        if x is None:
            continue
        if not is_sparse(x):
            found[i] = x.contiguous()
        elif not taken.isdisjoint(map(_storage, parts(x))):
            found[i] = x.clone()
    return found


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one layout hold the same."""
    return all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class SparseGiven:
    """A sparse tensor that a step is given, taken apart: Dynamo takes no sparse tensors.

    Attributes:
        form: what the tensor is beside its parts.
        parts: the dense tensors that it is made of.

    Args:
        tensor: the sparse tensor.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.form = form_of(tensor)
        self.parts = parts(tensor)


class Touched(Exception):
    """Code that is traced looks at a sparse tensor."""


class Untouchable(SparseGiven):
    """The same in a plain run: whoever looks at it, but what is opaque, raises an error.

    So no code that is traced takes another way for a tensor that it does not see as one.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # what isinstance asks for
        raise Touched("a sparse tensor is looked at by code that is traced")

    def __getattr__(self, name: str) -> Any:
        raise Touched(f"{name} of a sparse tensor is asked for by code that is traced")

    def __bool__(self) -> bool:
        raise Touched("a sparse tensor is compared by code that is traced")

    __hash__ = None  # type: ignore[assignment]
    __eq__ = __ne__ = __bool__  # type: ignore[assignment]


def apart(arguments: Any, kind: type[SparseGiven] = SparseGiven) -> Any:
    """What a step is given, its sparse tensors taken apart; itself, where there are none.

    Args:
        arguments: the arguments.
        kind: what stands for each sparse tensor.
    """

    def taken(x: Any) -> bool:
        return isinstance(x, torch.Tensor) and is_sparse(x) and not x.requires_grad

    if not any(map(taken, tree_leaves(arguments))):
        return arguments
    return tree_map(lambda x: kind(x) if taken(x) else x, arguments)
