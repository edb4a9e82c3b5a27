"""Calls of PyTorch ops described without data: what profiling and cost models read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from memfit.pytorch.capture.storage_sizes import CLONES_OF_STORAGES
from memfit.pytorch.compat.eager import tree_leaves, tree_map_only
from memfit.pytorch.compat.symbols import SYMBOLIC, size_hint, stand_in
from memfit.pytorch.layouts.as_traced import Form, lies, run_as_traced

__all__ = ["OpCall", "OpCost", "TensorSpec", "target_name"]

_ALIGNMENT = 64  # bytes; CPU kernels may choose a path by the alignment of their operands


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A dense tensor without its data.

    Attributes:
        shape: sizes.
        stride: strides, in elements.
        dtype: type of the elements.
        device: where it lives.
        storage_offset: elements before the first.
        storage_bytes: bytes of the storage behind it, which may be more than it shows.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    storage_offset: int = 0
    storage_bytes: int = 0

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """Description of a real, fake or meta tensor; symbolic sizes become their hints."""
        return cls(
            tuple(size_hint(s) for s in tensor.shape),
            tuple(size_hint(s) for s in tensor.stride()),
            tensor.dtype,
            tensor.device,
            stand_in(tensor.storage_offset(), 0),
            size_hint(tensor.untyped_storage().nbytes()),
        )

    @property
    def elements(self) -> int:
        """Number of elements shown."""
        return math.prod(self.shape)

    @property
    def extent_bytes(self) -> int:
        """Bytes from the first to the last element: what an op can touch."""
        if not self.elements:
            return 0
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.dtype.itemsize

    @property
    def misalignment(self) -> int:
        """Elements of offset that matter to a kernel: the offset within an aligned block."""
        return self.storage_offset % max(1, _ALIGNMENT // self.dtype.itemsize)

    def signature(self) -> str:
        """Everything about it that can change what an op on it costs."""
        dtype = str(self.dtype).removeprefix("torch.")
        text = f"{dtype}{list(self.shape)}/{list(self.stride)}@{self.device}"
        return f"{text}+{self.misalignment}" if self.misalignment else text


@dataclass(frozen=True)
class OpCall:
    """One call of an op.

    Attributes:
        target: what is called: an `OpOverload`, a higher-order op or a Python function.
        args, kwargs: its arguments, tensors given as `TensorSpec`, symbolic sizes as ints.
        name: for messages.
        forms: what its outputs are given where the kernel gives another (`as_traced`); empty where
            nobody looks.
        copied: whether the kernel is known to give others.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    forms: tuple[Form | None, ...] = ()
    copied: bool = False

    @classmethod
    def of(
        cls,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        name: str = "",
        forms: tuple[Form | None, ...] = (),
    ) -> OpCall:
        """A call whose arguments hold real or fake tensors and symbolic numbers."""
        new_args, new_kwargs = tree_map_only(
            torch.Tensor, TensorSpec.of, (tuple(args), dict(kwargs or {}))
        )
        new_args, new_kwargs = tree_map_only(SYMBOLIC, stand_in, (new_args, new_kwargs))
        return cls(target, new_args, new_kwargs, name, forms, bool(forms) and lies(target))

    @property
    def run(self) -> Callable[..., Any]:
        """What runs: the target, its outputs in their forms."""
        return partial(run_as_traced, self.target, self.forms) if self.forms else self.target

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors among the arguments, in order."""
        return tuple(
            leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, TensorSpec)
        )

    @property
    def device(self) -> torch.device:
        """Where it runs: the first device that is no CPU, of tensors or of a `device` argument."""
        devices = [spec.device for spec in self.tensors]
        devices += [
            leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.device)
        ]
        return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))

    def signature(self) -> str | None:
        """Text that is equal for calls of equal cost; None where an argument has no stable text."""
        parts = [_argument_text(a) for a in self.args]
        if self.target in CLONES_OF_STORAGES:
            parts.append(f"of {self.args[0].storage_bytes} bytes+{self.args[0].storage_offset}")
        parts += [_argument_text(self.kwargs[k], f"{k}=") for k in sorted(self.kwargs)]
        if self.forms:
            parts.append(_argument_text(self.forms, "copied as " if self.copied else "as "))
        if any(part is None for part in parts) or "<" in target_name(self.target):
            return None  # closures and graphs of their own have no name that tells them apart
        return f"{target_name(self.target)}({', '.join(p for p in parts if p is not None)})"


@dataclass(frozen=True, slots=True)
class OpCost:
    """What one call of an op costs.

    Attributes:
        time_ns: time of one run.
        workspace_bytes: most bytes alive during the run beyond its inputs and its outputs.
        output_bytes: bytes of the storages that it made and returned.
        source: `measured`, `cached` or `analytic`.
        note: why it is an estimate, where measuring was asked for.
        workspace_known: the workspace was measured, or is known of the op's kernel; where not, it
            is an upper bound.
    """

    time_ns: int
    workspace_bytes: int
    output_bytes: int
    source: str
    note: str = ""
    workspace_known: bool = True


def target_name(target: Callable[..., Any]) -> str:
    """Stable name of what is called: `aten.convolution.default`."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", None) or "?"
    name = getattr(target, "__qualname__", None) or getattr(target, "__name__", None)
    return f"{module}.{name or type(target).__qualname__}"


def _argument_text(value: Any, prefix: str = "") -> str | None:
    if isinstance(value, TensorSpec):
        return prefix + value.signature()
    if isinstance(value, (list, tuple)):
        parts = [_argument_text(item) for item in value]
        if any(part is None for part in parts):
            return None
        return f"{prefix}[{', '.join(p for p in parts if p is not None)}]"
    if isinstance(value, torch._ops.OpOverload):
        return prefix + str(value)
    plain = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout)
    if value is None or isinstance(value, (*plain, torch.memory_format)):
        return prefix + repr(value)
    return None
