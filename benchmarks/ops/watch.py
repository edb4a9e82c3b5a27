"""Each call of an ATen op that runs, compared with what is told of it without data.

What a call really returns stands beside what PyTorch's fake tensors say of it, and beside what they
say while memfit traces. Compared are sizes, types, strides, offsets, whose memory is shared, the
bytes of the storages, and whether it fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from memfit.errors import MemfitError
from memfit.pytorch.capture.storage_sizes import allocated_bytes, enlarge_fake_storages
from memfit.pytorch.compat.fake import FakeTensor, FakeTensorMode
from memfit.pytorch.compat.layouts import corrected_fakes
from memfit.pytorch.layouts.kernel_layouts import corrected

__all__ = ["Call", "Watch", "functional_of"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Call:
    """A distinct call.

    Attributes:
        op: the overload.
        key: of op and arguments.
        raw: how PyTorch's fake result differs, in words of `_DIFFERENCES`.
        told: how the fake result differs while memfit traces.
        example: its arguments, where anything differs.
        note: what was raised.
    """

    op: str
    key: str
    raw: tuple[str, ...]
    told: tuple[str, ...]
    example: str = ""
    note: str = ""


@dataclass(frozen=True)
class _Form:
    """A tensor as it lies in memory; `memory` is the number of a storage, inputs' first."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    memory: int
    storage_bytes: int


class Watch(TorchDispatchMode):
    """Compares every call while it is on.

    Args:
        found: called with each call that is seen for the first time.
        begin: called with the name of an op before its kernel runs.
    """

    def __init__(self, found: Callable[[Call], None], begin: Callable[[str], None]) -> None:
        super().__init__()
        self._found, self._begin = found, begin
        self._seen: set[str] = set()
        self._plain, self._mended = FakeTensorMode(), FakeTensorMode()
        self._plain.cache_enabled = self._mended.cache_enabled = False
        self._changed = False
        self._fakes = corrected_fakes(self._corrected)

    def __enter__(self) -> Any:
        self._fakes.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fakes.__exit__(*error)

    def _corrected(self, mode: Any, op: Any, args: Any, kwargs: Any, result: Any) -> Any:
        if mode is self._plain:
            return result
        found = corrected(mode, op, args, kwargs, result)
        self._changed |= found is not result
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":
            return func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if any(t.layout is not torch.strided or t.is_quantized for t in tensors):
            return func(*args, **kwargs)
        other = functional_of(func)
        if other is not None:
            with suppress(Exception):  # told by the call; what runs is the other op
                self._compare(other, args, kwargs, tensors)
        return self._compare(func, args, kwargs, tensors)

    def _compare(self, op: Any, args: Any, kwargs: Any, tensors: Sequence[torch.Tensor]) -> Any:
        text = _text(args, kwargs, tensors)
        key = hashlib.sha256(f"{op}{text}".encode()).hexdigest()[:20]
        if key in self._seen:
            return op(*args, **kwargs)
        self._seen.add(key)
        self._changed = False
        plain = mended = _faked(self._mended, op, args, kwargs)
        if self._changed:
            plain = _faked(self._plain, op, args, kwargs)
        self._begin(str(op))
        try:
            result = op(*args, **kwargs)
        except Exception as error:
            refused = () if plain.error else ("kernel refuses",)
            told = () if mended.error else refused
            self._found(Call(str(op), key, refused, told, text, _line(error) if refused else ""))
            raise
        real = _forms(result, tensors)
        raw = _differences(real, plain)
        told = _differences(real, mended)
        if {"larger storage", "smaller storage"} & set(told) and _counted(op, mended, real):
            told = (*told, "counted")
        note = plain.error if plain.error else ""
        self._found(Call(str(op), key, raw, told, text if raw or told else "", note))
        return result


def functional_of(op: Any) -> Any:
    """The op without side effects that tracing makes of one that writes; None if none."""
    if not op._schema.is_mutable:
        return None
    name = op._schema.name.removeprefix("aten::")
    names = [name[:-1]] if name.endswith("_") else [f"{name}_functional"]
    for one in names:
        packet = getattr(aten, one, None)
        if packet is not None and op._overloadname in packet.overloads():
            found = getattr(packet, op._overloadname)
            return None if found._schema.is_mutable else found
    return None


@dataclass
class _Faked:
    """What an op returns on fake tensors, or what it raised."""

    given: Any = None
    result: Any = None
    forms: Sequence[_Form | str] = ()
    error: str = ""


def _faked(mode: FakeTensorMode, op: Any, args: Any, kwargs: Any) -> _Faked:
    storages: dict[int, torch.UntypedStorage] = {}

    def fake(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        real = value.untyped_storage()
        if real._cdata not in storages:
            storages[real._cdata] = torch.UntypedStorage(real.nbytes(), device="meta")
        made = torch.empty(0, dtype=value.dtype, device="meta").set_(
            storages[real._cdata], value.storage_offset(), value.shape, value.stride()
        )
        return FakeTensor(mode, made, value.device)

    with _no_dispatch():
        given = tree_map(fake, (args, kwargs))
        tensors = [t for t in tree_leaves(given) if isinstance(t, torch.Tensor)]
        try:
            with mode:
                result = op(*given[0], **given[1])
            return _Faked(given, result, _forms(result, tensors))
        except Exception as error:
            return _Faked(error=_line(error))


@contextmanager
def _no_dispatch() -> Iterator[None]:
    with torch.no_grad():
        yield


def _line(error: BaseException) -> str:
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"


def _forms(result: Any, given: Sequence[torch.Tensor]) -> list[_Form | str]:
    numbers: dict[int, int] = {}
    for t in given:
        numbers.setdefault(t.untyped_storage()._cdata, len(numbers))
    found: list[_Form | str] = []
    for leaf in tree_leaves(result):
        if not isinstance(leaf, torch.Tensor):
            found.append("number" if isinstance(leaf, (int, float, complex)) else str(type(leaf)))
        elif leaf.layout is not torch.strided:
            found.append(str(leaf.layout))
        else:
            storage = leaf.untyped_storage()
            memory = numbers.setdefault(storage._cdata, len(numbers))
            found.append(
                _Form(
                    tuple(leaf.shape),
                    tuple(leaf.stride()),
                    leaf.dtype,
                    int(leaf.storage_offset()),
                    memory,
                    int(storage.nbytes()),
                )
            )
    return found


def _differences(real: Sequence[_Form | str], fake: _Faked) -> tuple[str, ...]:
    if fake.error:
        name = fake.error.partition(":")[0]
        return (f"fake refuses: {name}",)
    if len(real) != len(fake.forms):
        return ("outputs",)
    found: set[str] = set()
    for a, b in zip(real, fake.forms, strict=True):
        found |= _form_differences(a, b)
    return tuple(sorted(found))


def _form_differences(a: _Form | str, b: _Form | str) -> set[str]:
    if isinstance(a, str) or isinstance(b, str):
        return set() if a == b else {"outputs"}
    if a.shape != b.shape:
        return {"sizes"}
    found = set()
    if a.dtype != b.dtype:
        found.add("type")
    if a.stride != b.stride:
        idle = 0 in a.shape or all(
            n == 1 or x == y for n, x, y in zip(a.shape, a.stride, b.stride, strict=True)
        )
        found.add("idle strides" if idle else "strides")
    if a.offset != b.offset and 0 not in a.shape:
        found.add("offset")
    if a.memory != b.memory:
        found.add("sharing")
    if a.storage_bytes != b.storage_bytes:
        found.add("larger storage" if a.storage_bytes > b.storage_bytes else "smaller storage")
    return found


def _counted(op: Any, fake: _Faked, real: Sequence[_Form | str]) -> bool:
    """Whether memfit counts at least the storages that the op really returns."""
    if fake.error:
        return False
    graph = fx.Graph()

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        node = graph.placeholder("given")
        node.meta["val"] = value
        return node

    try:
        args, kwargs = tree_map(placed, fake.given)
        node = graph.call_function(op, args, kwargs)
        node.meta["val"] = fake.result
        enlarge_fake_storages(SimpleNamespace(graph=graph))  # type: ignore[arg-type]
        tensors = [t for t in tree_leaves(fake.result) if isinstance(t, torch.Tensor)]
        sizes = [allocated_bytes(node, i, t) for i, t in enumerate(tensors)]
    except (MemfitError, RuntimeError, TypeError, AttributeError):
        return False
    forms = [f for f in real if isinstance(f, _Form)]
    return all(size >= f.storage_bytes for size, f in zip(sizes, forms, strict=True))


def _text(args: Any, kwargs: Any, tensors: Sequence[torch.Tensor]) -> str:
    """Arguments in words: forms of tensors, and numbers as they are."""
    forms = iter(_forms(list(tensors), ()))

    def one(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            form = next(forms)
            assert isinstance(form, _Form)
            kind = str(form.dtype).removeprefix("torch.")
            place = f"+{form.offset}" if form.offset else ""
            return (
                f"{kind}{list(form.shape)}/{list(form.stride)}{place}"
                f"#{form.memory}:{form.storage_bytes}"
            )
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(one, value))}]"
        if isinstance(value, dict):
            return ", ".join(f"{k}={one(v)}" for k, v in sorted(value.items()))
        if isinstance(value, torch.Generator):
            return "generator"
        return repr(value)

    parts = [one(a) for a in args]
    return ", ".join(parts + ([one(kwargs)] if kwargs else []))
