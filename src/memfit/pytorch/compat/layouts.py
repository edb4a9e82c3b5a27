"""Private names by which tracing learns the layouts of real kernels (see `compat`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.utils._pytree import tree_leaves

__all__ = ["FakeTensor", "corrected_fakes", "in_place_draws", "in_place_layouts"]

Correct = Callable[[Any, Any, Any, Any, Any], Any]
Lay = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Draw = Callable[[torch._ops.OpOverload, Any, Any], bool]


class _Patch:
    """Attributes of a class that are others while at least one `with` is on."""

    def __init__(self, owner: type, **others: Any) -> None:
        self._owner, self._others = owner, others
        self._before: dict[str, Any] = {}
        self._depth = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                for name, make in self._others.items():
                    self._before[name] = getattr(self._owner, name)
                    setattr(self._owner, name, make(self._before[name]))
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                for name, value in self._before.items():
                    setattr(self._owner, name, value)


def corrected_fakes(correct: Correct) -> AbstractContextManager[None]:
    """While on, what an op returns on fake tensors is what `correct` makes of it.

    `correct` gets the fake mode, the op, its arguments, its keyword arguments and PyTorch's result.
    PyTorch keeps results to use them again; those made meanwhile are kept apart from the others.
    """

    def corrected(before: Any) -> Any:
        def dispatch(self: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            return correct(self, func, args, kwargs, before(self, func, types, args, kwargs))

        return dispatch

    return _Patch(FakeTensorMode, _dispatch_impl=corrected, cache=lambda _: {})


def in_place_draws(draw: Draw) -> AbstractContextManager[None]:
    """While on, random numbers are drawn in place by `draw` where that is traced.

    It gets the op, its arguments and its keyword arguments, and says whether it has written them.
    """

    def drawn(before: Any) -> Any:
        def dispatch(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if isinstance(func, torch._ops.OpOverload) and _draws_in_place(func):
                with self:
                    if draw(func, args, kwargs or {}):
                        return args[0]
            return before(self, func, types, args, kwargs)

        return dispatch

    return _Patch(FunctionalTensorMode, __torch_dispatch__=drawn)


def _draws_in_place(op: torch._ops.OpOverload) -> bool:
    return op._schema.is_mutable and torch.Tag.nondeterministic_seeded in op.tags


def in_place_layouts(lay: Lay) -> AbstractContextManager[None]:
    """While on, a tensor that is written in place keeps its strides when that is traced.

    AOTAutograd traces `x.tril_()` as `tril(x)`, whose result may be laid out otherwise; from then
    on it stands for `x`, of which autograd believes the strides that it had. `lay` gets the result
    and a tensor with the strides of `x`, and returns the result with these strides.
    """

    def settled(before: Any) -> Any:
        def dispatch(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = before(self, func, types, args, kwargs)
            if isinstance(func, torch._ops.OpOverload) and _writes(func):
                for written in _written(func, args, kwargs or {}):
                    _settle(written, lay)
            return result

        return dispatch

    return _Patch(FunctionalTensorMode, __torch_dispatch__=settled)


def _writes(op: torch._ops.OpOverload) -> bool:
    """Whether an op writes values into its arguments; not their sizes or their storage."""
    return (
        op._schema.is_mutable
        and torch.Tag.inplace_view not in op.tags
        and op.namespace == "aten"
        and not op._schema.name.startswith(("aten::set_", "aten::resize"))
    )


def _written(op: torch._ops.OpOverload, args: Any, kwargs: Any) -> Iterator[FunctionalTensor]:
    for place, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (t for t in tree_leaves(value) if isinstance(t, FunctionalTensor))


def _settle(written: FunctionalTensor, lay: Lay) -> None:
    torch._functionalize_sync(written.elem)
    value = torch._from_functional_tensor(written.elem)
    made = lay(value, written)
    if made is not value:
        torch._functionalize_replace(written.elem, made)
        torch._functionalize_commit_update(written.elem)
        torch._functionalize_sync(written.elem)
