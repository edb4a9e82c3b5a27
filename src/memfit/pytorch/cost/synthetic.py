"""Made-up data for the tensors of an `OpCall`, good enough to run it as in a real step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from memfit.pytorch.capture.storage_sizes import CLONES_OF_STORAGES
from memfit.pytorch.compat.eager import tree_leaves, tree_map_only
from memfit.pytorch.cost.op_calls import OpCall, TensorSpec

__all__ = ["SyntheticData"]

_TILE = 65_536


def _rows(argument: int) -> Callable[[OpCall], int]:
    return lambda call: int(call.args[argument].shape[0])


def _classes(argument: int) -> Callable[[OpCall], int]:
    return lambda call: int(call.args[argument].shape[:2][-1])


def _along_dim(call: OpCall) -> int:
    shape = call.args[0].shape
    return int(shape[call.args[1]]) if shape else 1


# Ops whose integer argument (by position) must lie in a range: position, and end of the range.
# Spread values matter: equal ones would send every thread to the same row.
_INDEX_ARGUMENTS: dict[str, tuple[int, Callable[[OpCall], int]]] = {
    "embedding": (1, _rows(0)),
    "embedding_dense_backward": (1, lambda call: int(call.args[2])),
    "index_select": (2, _along_dim),
    "gather": (2, _along_dim),
    "scatter": (2, _along_dim),
    "scatter_add": (2, _along_dim),
    "index_add": (2, _along_dim),
    "nll_loss_forward": (1, _classes(0)),
    "nll_loss_backward": (2, _classes(1)),
    "nll_loss2d_forward": (1, _classes(0)),
    "nll_loss2d_backward": (2, _classes(1)),
}
# Where embedding bags have their indices, the bags' offsets, each index's bag, the bags' sizes and
# the largest entries' indices; and what indices are below. Kernels leave empty bags out, which
# takes less memory.
_BAGS: dict[str, tuple[tuple[int | None, ...], Callable[[OpCall], int]]] = {
    "_embedding_bag": ((1, 2, None, None, None), _rows(0)),
    "_embedding_bag_forward_only": ((1, 2, None, None, None), _rows(0)),
    "_embedding_bag_backward": ((1, 2, 3, 4, 5), lambda call: int(call.args[6])),
    "_embedding_bag_dense_backward": ((1, None, 2, 3, 4), lambda call: int(call.args[5])),
    "_embedding_bag_per_sample_weights_backward": ((2, 3, 4, None, None), _rows(1)),
}
_INDEX_LIST_OPS = ("index", "_unsafe_index", "index_put", "_unsafe_index_put")


class SyntheticData:
    """Makes argument tensors; draws from a generator of its own.

    Floats are uniform in [0, 1) (valid for roots, logarithms and variances), masks are fair coins,
    indices of the known indexing ops are uniform in their range, other integers are 0.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._tiles: dict[tuple[torch.dtype, torch.device, int], torch.Tensor] = {}

    def arguments(
        self, call: OpCall, masks: bool | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fresh arguments for one call.

        Args:
            call: whose arguments.
            masks: what every entry of a mask is; None for coins.
        """
        name = _short_name(call.target)
        args = list(call.args)
        if name in _INDEX_ARGUMENTS:
            position, end = _INDEX_ARGUMENTS[name]
            if position < len(args) and isinstance(args[position], TensorSpec):
                args[position] = self.tensor(args[position], end(call))
        elif name in _INDEX_LIST_OPS and isinstance(args[1], (list, tuple)):
            args[1] = [
                self.tensor(spec, call.args[0].shape[dim]) if isinstance(spec, TensorSpec) else spec
                for dim, spec in enumerate(args[1])
            ]
        elif name in _BAGS:
            positions, end = _BAGS[name]
            self._fill_bags(args, positions, end(call))
        if call.target in CLONES_OF_STORAGES and isinstance(args[0], TensorSpec):
            args[0] = self._part(args[0])
        made: tuple[list[Any], dict[str, Any]] = tree_map_only(
            TensorSpec, self.tensor, (args, dict(call.kwargs))
        )
        if masks is not None:
            for leaf in tree_leaves(made):
                if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool:
                    leaf.fill_(masks)
        return tuple(made[0]), made[1]

    def _fill_bags(self, args: list[Any], positions: Sequence[int | None], below: int) -> None:
        """Bags of about equal sizes, none of them empty."""
        indices, offsets, bag_of, sizes, largest = (
            args[i] if i is not None and isinstance(args[i], TensorSpec) else None
            for i in positions
        )
        if indices is None:
            return
        one = offsets or sizes
        entries, bags = indices.shape[0], one.shape[0] if one is not None else indices.shape[0]
        each = max(1, entries // max(1, bags))
        made = {
            0: self.tensor(indices, below),
            1: offsets and self.tensor(offsets).copy_(_steps(offsets) * each).clamp_(max=entries),
            2: bag_of and self.tensor(bag_of).copy_(_steps(bag_of) // each).clamp_(max=bags - 1),
            3: sizes and self.tensor(sizes).fill_(each),
            4: largest and self.tensor(largest, below),
        }
        for i, position in enumerate(positions):
            if position is not None and made[i] is not None:
                args[position] = made[i]

    def tensor(self, spec: TensorSpec, integers_below: int = 1) -> torch.Tensor:
        """A tensor of the given form; its storage is no larger than what it shows needs."""
        if spec == _generator_state_spec():
            return torch.get_rng_state()
        elements = spec.misalignment + spec.extent_bytes // spec.dtype.itemsize
        data = torch.empty(elements, dtype=spec.dtype, device=spec.device)
        self._fill(data, integers_below)
        return torch.as_strided(data, spec.shape, spec.stride, spec.misalignment)

    def _part(self, spec: TensorSpec) -> torch.Tensor:
        """A tensor of the given form in all the memory that it is a part of."""
        size = spec.dtype.itemsize
        elements = max(spec.storage_bytes, spec.storage_offset * size + spec.extent_bytes) // size
        data = torch.empty(elements, dtype=spec.dtype, device=spec.device)
        self._fill(data, 1)
        return torch.as_strided(data, spec.shape, spec.stride, spec.storage_offset)

    def _fill(self, data: torch.Tensor, integers_below: int) -> None:
        # Copies of one random tile: drawing every element would take longer than most ops.
        tile = self._tile(data.dtype, data.device, integers_below)
        whole = data.numel() // _TILE * _TILE
        if whole:
            data[:whole].view(-1, _TILE).copy_(tile)
        data[whole:].copy_(tile[: data.numel() - whole])

    def _tile(self, dtype: torch.dtype, device: torch.device, below: int) -> torch.Tensor:
        key = (dtype, device, below)
        if key not in self._tiles:
            generator = torch.Generator().manual_seed(self._seed)
            if dtype == torch.bool:
                tile = torch.rand(_TILE, generator=generator) < 0.5
            elif dtype.is_floating_point or dtype.is_complex:
                tile = torch.rand(_TILE, generator=generator).to(dtype)
            else:
                tile = torch.randint(0, max(1, below), (_TILE,), generator=generator).to(dtype)
            self._tiles[key] = tile.to(device)
        return self._tiles[key]


def _steps(spec: TensorSpec) -> torch.Tensor:
    return torch.arange(spec.shape[0], device=spec.device)


def _short_name(target: Callable[..., Any]) -> str:
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target._schema.name).removeprefix("aten::")
    return ""


def _generator_state_spec() -> TensorSpec:
    """Replayed random ops take the state of the CPU generator; zeros would be refused."""
    return TensorSpec.of(torch.get_rng_state())
