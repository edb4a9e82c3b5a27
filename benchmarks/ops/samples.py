"""Calls of PyTorch's own op database, each in several layouts of its tensors."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["LAYOUTS", "Run", "entries", "execute", "runs_of"]

MOST_ELEMENTS = 1 << 16  # of all tensors of a sample
OTHER_TYPES = (torch.bfloat16, torch.float64)


def _ordered(t: torch.Tensor, order: list[int]) -> torch.Tensor:
    """The same tensor with its dimensions in this order in memory, the first one outermost."""
    return t.permute(order).contiguous().permute([order.index(d) for d in range(t.dim())])


def _transposed(t: torch.Tensor) -> torch.Tensor:
    return _ordered(t, list(range(t.dim()))[::-1]) if t.dim() > 1 else t


def _channels_last(t: torch.Tensor) -> torch.Tensor:
    return _ordered(t, [0, *range(2, t.dim()), 1]) if t.dim() > 2 else t


def _sliced(t: torch.Tensor) -> torch.Tensor:
    """A part of a larger tensor: an offset, and gaps."""
    if t.dim() == 0:
        return torch.stack([t, t, t])[1]
    larger = t.new_zeros([*t.shape[:-1], t.shape[-1] + 3])
    part = larger.narrow(-1, 1, t.shape[-1])
    return part.copy_(t)


def _expanded(t: torch.Tensor) -> torch.Tensor:
    if t.dim() == 0 or t.shape[0] < 2:
        return t
    return t[:1].contiguous().expand(t.shape)


Layout = Callable[[torch.Tensor], torch.Tensor]


def _each(change: Layout) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    return lambda tensors: [change(t) for t in tensors]


def _mixed(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [_transposed(t) if i % 2 == 0 else t for i, t in enumerate(tensors)]


def _first(count: int, change: Layout = lambda t: t) -> Callable[[list[torch.Tensor]], Any]:
    """So many rows of the first tensor, and of what has as many rows.

    Where that one is a batch, vectors of floats are weights or statistics of channels.
    """

    def cut(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        main = next((t for t in tensors if t.dim()), None)
        return [change(t[:count] if main is not None and rows(t, main) else t) for t in tensors]

    def rows(t: torch.Tensor, main: torch.Tensor) -> bool:
        if t.dim() == 0 or t.shape[0] != main.shape[0]:
            return False
        return t.dim() >= min(2, main.dim()) or not t.is_floating_point()

    return cut


LAYOUTS: dict[str, Callable[[list[torch.Tensor]], list[torch.Tensor]]] = {
    "contiguous": _each(lambda t: t),
    "transposed": _each(_transposed),
    "channels last": _each(_channels_last),
    "sliced": _each(_sliced),
    "expanded": _each(_expanded),
    "batch 1": _first(1, lambda t: t.contiguous()),
    "empty": _first(0, lambda t: t.contiguous()),
    "mixed": _mixed,
    "batch 1, channels last": _first(1, _channels_last),
}
"""What becomes of the tensors of a sample; views of what they were."""


def entries() -> list[str]:
    """Names of the database's entries that take float tensors."""
    return [op.full_name for op in _database()]


@functools.cache
def _database() -> list[Any]:
    return sorted((op for op in op_db if torch.float32 in op.dtypes), key=lambda op: op.full_name)


@dataclass(frozen=True)
class Run:
    """One sample in one layout.

    Attributes:
        label: sample, layout and type, for messages.
        call: computes the op; gradients of what it returns are asked for where there are any.
        leaves: the tensors that gradients are taken of.
    """

    label: str
    call: Callable[[], Any]
    leaves: list[torch.Tensor]


def runs_of(name: str, most: int) -> Iterator[Run]:
    """The runs of an entry, the same ones each time.

    Args:
        name: of the entry.
        most: samples in float32; in other types one.
    """
    op = next(op for op in _database() if op.full_name == name)
    for dtype in (torch.float32, *OTHER_TYPES):
        if dtype not in op.dtypes:
            continue
        main = dtype is torch.float32
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = _chosen(op, dtype, most if main else 1)
        for number, sample in enumerate(samples):
            for layout in LAYOUTS if main else ("contiguous",):
                run = _run(op, sample, layout)
                if run is not None:
                    kind = str(dtype).removeprefix("torch.")
                    yield Run(f"{kind} sample {number} {layout}", *run)


def _chosen(op: Any, dtype: torch.dtype, most: int) -> list[Any]:
    """Some of an entry's samples, evenly over all."""
    found = []
    for sample in op.sample_inputs("cpu", dtype, requires_grad=op.supports_autograd):
        tensors = _tensors(sample)
        if sum(t.numel() for t in tensors) <= MOST_ELEMENTS:
            found.append(sample)
    step = max(1, -(-len(found) // most))
    return found[::step]


def _tensors(sample: Any) -> list[torch.Tensor]:
    given = tree_leaves((sample.input, sample.args, sample.kwargs))
    return [t for t in given if isinstance(t, torch.Tensor)]


def _run(op: Any, sample: Any, layout: str) -> tuple[Callable[[], Any], list[torch.Tensor]] | None:
    """None where the layout changes nothing."""
    before = _tensors(sample)
    if any(t.layout is not torch.strided for t in before):
        return None
    plain = [t.detach() for t in before]
    try:
        changed = LAYOUTS[layout](plain)
    except (RuntimeError, IndexError):
        return None
    if layout != "contiguous" and all(
        _form(a) == _form(b) for a, b in zip(plain, changed, strict=True)
    ):
        return None
    changed = [
        t.detach().requires_grad_(old.requires_grad) for t, old in zip(changed, before, strict=True)
    ]
    made = iter(changed)
    given, args, kwargs = tree_map_only(
        torch.Tensor, lambda _: next(made), (sample.input, sample.args, sample.kwargs)
    )
    leaves = [t for t in changed if t.requires_grad]
    return lambda: op(given, *args, **kwargs), leaves


def _form(t: torch.Tensor) -> tuple[Any, ...]:
    return tuple(t.shape), t.stride(), t.storage_offset()


def execute(run: Run) -> None:
    """Forward, and backward for gradients of three layouts.

    Raises:
        Exception: what the op raises in its forward pass.
    """
    torch.manual_seed(0)
    result = run.call()
    outputs = [
        t
        for t in tree_leaves(result)
        if isinstance(t, torch.Tensor) and t.requires_grad and t.layout is torch.strided
    ]
    if not outputs or not run.leaves:
        return
    for lay in (_like, _otherwise, _summed):
        gradients = [lay(t.detach()) for t in outputs]
        # Refused by kernels, or by formulas that are not there: eager refuses, too.
        try:
            torch.autograd.grad(
                outputs, run.leaves, gradients, retain_graph=True, allow_unused=True
            )
        except (RuntimeError, NotImplementedError, IndexError):
            continue


def _like(t: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(t)


def _otherwise(t: torch.Tensor) -> torch.Tensor:
    made = torch.ones(t.shape, dtype=t.dtype)
    return _transposed(made) if t.is_contiguous() else made


def _summed(t: torch.Tensor) -> torch.Tensor:
    """The gradient of a sum."""
    return torch.ones((), dtype=t.dtype).expand(t.shape)
