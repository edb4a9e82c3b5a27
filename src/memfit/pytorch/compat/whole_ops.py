"""Private names by which tracing sees ops as eager runs them, not taken apart (see `compat`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch._C import DispatchKey
from torch._functorch._aot_autograd import graph_compile
from torch.fx.node import _side_effectful_functions
from torch.utils._pytree import tree_leaves

__all__ = ["whole_ops"]

Kernel = Callable[..., Any]
aten = torch.ops.aten
_WHOLE = (
    "upsample_",
    "_upsample_",
    "dropout",
    "hardshrink",
    "softshrink",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "lstm",
    "gru",
    "rnn_",
)
_KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)


def _as_eager(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The op's C++ path."""
    return op._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)


def _step_by_step(op: Any) -> Kernel:
    """The op's C++ path without oneDNN and cuDNN (MIOpen).

    Their recurrent layers hide what they save: tracing gives oneDNN's workspace and cuDNN's reserve
    no size. cuDNN reads the addresses of weights too, which fake tensors lack, and draws its
    dropout from a state of its own, which no replay sets.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        enabled = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        torch._C._set_cudnn_enabled(False)
        try:
            return _as_eager(op, *args, **kwargs)
        finally:
            torch._C._set_mkldnn_enabled(enabled[0])
            torch._C._set_cudnn_enabled(enabled[1])

    return run


def _needs_gradient(tensor: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad


def _matmul(before: Kernel | None) -> Kernel:
    """Eager's choice of `mm`, `bmm` and `mv`; PyTorch's own for sizes that are symbols."""

    def run(*args: Any, **kwargs: Any) -> Any:
        sizes = [n for t in tree_leaves(args) if isinstance(t, torch.Tensor) for n in t.shape]
        if before is not None and any(isinstance(n, torch.SymInt) for n in sizes):
            return before(*args, **kwargs)
        return _as_eager(aten.matmul.default, *args, **kwargs)

    return run


def _svdvals(matrix: torch.Tensor, *, driver: str | None = None) -> Any:
    """Without singular vectors where no gradient needs them: LAPACK computes other bits then."""
    if _needs_gradient(matrix):
        return _as_eager(aten.linalg_svdvals.default, matrix, driver=driver)
    return aten._linalg_svd.default(matrix, False, False, driver=driver)[1]


def _eigvalsh(matrix: torch.Tensor, half: str = "L") -> Any:
    """Without eigenvectors where no gradient needs them."""
    if _needs_gradient(matrix):
        return _as_eager(aten.linalg_eigvalsh.default, matrix, half)
    return aten._linalg_eigh.default(matrix, half, False)[0]


def _other_kernels() -> dict[Any, Kernel]:
    """What stands for an op while it is traced."""
    packets = (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
    recurrent = [op for packet in packets for op in (packet.input, packet.data)]
    matmul = aten.matmul.default
    return {
        **{op: _step_by_step(op) for op in recurrent},
        matmul: _matmul(matmul.py_kernels.get(DispatchKey.CompositeImplicitAutograd)),
        aten.linalg_svdvals.default: _svdvals,
        aten.linalg_eigvalsh.default: _eigvalsh,
    }


@lru_cache(maxsize=1)
def _families(_known: tuple[int, int]) -> tuple[frozenset[Any], tuple[Any, ...]]:
    """Random ops, and ops to keep whole, of the so many ops that PyTorch has looked up so far."""
    seeded: set[Any] = set()
    whole: list[Any] = []
    for namespace in (aten, torch.ops.memfit):
        for name in dir(namespace):
            packet = getattr(namespace, name)
            ops = [getattr(packet, overload) for overload in getattr(packet, "overloads", list)()]
            seeded.update(op for op in ops if torch.Tag.nondeterministic_seeded in op.tags)
            if namespace is aten and name.startswith(_WHOLE):
                whole += ops
    return frozenset(seeded), tuple(whole)


@contextmanager
def whole_ops() -> Iterator[None]:
    """Trace ops that AOTAutograd would take apart into other arithmetic as eager runs them.

    PyTorch registers Python decompositions of interpolation, dropout and others for tracing; they
    compute other bits than eager's kernels, and are slower. While this is on, tracing sees the
    same C++ paths as eager. Random ops whose values nobody reads stay too: they move the generator.
    Numbers that are read out of tensors stay numbers: PyTorch would compute with tensors instead,
    in another order.
    """
    seeded, whole = _families((len(dir(aten)), len(dir(torch.ops.memfit))))
    others = _other_kernels()
    before = {op: dict(op.py_kernels) for op in (*whole, *others)}
    for op in before:
        for key in _KEYS:
            op.py_kernels.pop(key, None)
            if op in others:
                op.py_kernels[key] = others[op]
        op._dispatch_cache.clear()
    kept = seeded - _side_effectful_functions
    _side_effectful_functions.update(kept)
    tensorify = graph_compile.tensorify_python_scalars
    graph_compile.tensorify_python_scalars = lambda *_: None
    try:
        yield
    finally:
        graph_compile.tensorify_python_scalars = tensorify
        _side_effectful_functions.difference_update(kept)
        for op, kernels in before.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()
