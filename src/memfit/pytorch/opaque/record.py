"""What autograd keeps of one plain run, without what the graph around it holds anyway.

Tensors that are saved and lie in an argument's or in an output's memory are not kept: the backward
pass is given these again. So a plan may free them in between, or compute them again.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.autograd.graph import get_gradient_edge

from memfit.errors import ExecutionError
from memfit.pytorch.layouts.sparse import is_sparse, parts

__all__ = [
    "GATE",
    "Record",
    "Recording",
    "autocast_state",
    "gate",
    "handle_of",
    "record_of",
    "storages_of",
    "under_autocast",
]

Tensors = Sequence[torch.Tensor]
MaybeTensors = Sequence[torch.Tensor | None]


class _Gate(torch.autograd.Function):
    """An argument as the run reads it: its node in the graph holds no memory, as a leaf would."""

    @staticmethod
    def forward(ctx: Any, root: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None]:
        return None, None


GATE = "_GateBackward"
"""Name of the node of a gate."""


def gate(value: torch.Tensor) -> torch.Tensor:
    """An alias of a tensor that requires gradients, and ends the graph."""
    root = torch.empty(0, requires_grad=True)
    made: torch.Tensor = _Gate.apply(root, value.detach())
    return made


@dataclass
class _Saved:
    """A tensor that autograd saves: itself, or a view of what is given again."""

    tensor: torch.Tensor | None
    version: int
    place: tuple[str, int] | None = None
    view: tuple[tuple[int, ...], tuple[int, ...], int, torch.dtype] | None = None

    def leave_out(self, place: tuple[str, int]) -> None:
        t = self.tensor
        assert t is not None
        self.view = (tuple(t.shape), t.stride(), t.storage_offset(), t.dtype)
        self.place, self.tensor = place, None


class _Again:
    """What is given again to a backward pass. The graph holds it, so it must not hold the graph."""

    def __init__(self) -> None:
        self.tensors: Mapping[str, MaybeTensors] = {}
        self.shift = 0

    def unpack(self, saved: _Saved) -> torch.Tensor:
        """A saved tensor."""
        if saved.place is None or saved.view is None:
            assert saved.tensor is not None
            if saved.tensor._version != saved.version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an "
                    "inplace operation"
                )
            return saved.tensor
        where, i = saved.place
        shape, stride, offset, dtype = saved.view
        if where == "given":
            i += self.shift
        held = self.tensors["given" if where == "more" else where][i]
        assert held is not None
        source = held.detach()
        if source.dtype != dtype:
            source = source.view(dtype)
        return source.as_strided(shape, stride, offset)


class Record:
    """The graph of one run: from its outputs to what it was given.

    Attributes:
        outputs: gradient edges of the outputs; None for those without a gradient.
        inputs: what gradients are asked for: edges of arguments, parameters themselves.
    """

    def __init__(self, again: _Again) -> None:
        self.outputs: list[Any] = []
        self.inputs: list[Any] = []
        self._again = again

    def close(self, outputs: Tensors) -> None:
        """The run is over: its outputs are known by their edges from now on."""
        self.outputs = [get_gradient_edge(x) if x.requires_grad else None for x in outputs]

    def backward(
        self, given: MaybeTensors, made: MaybeTensors, gradients: MaybeTensors
    ) -> list[torch.Tensor | None]:
        """Gradients of `inputs`; None where none arrives.

        Args:
            given: what the run was given, as far as it is read.
            made: its outputs, likewise.
            gradients: of the outputs.
        """
        pairs = [
            (edge, gradient)
            for edge, gradient in zip(self.outputs, gradients, strict=True)
            if edge is not None and gradient is not None
        ]
        if not pairs or not self.inputs:
            return [None] * len(self.inputs)
        self._again.tensors = {"given": given, "made": made}
        try:
            return list(
                torch.autograd.grad(
                    [edge for edge, _ in pairs],
                    self.inputs,
                    [gradient for _, gradient in pairs],
                    allow_unused=True,
                )
            )
        finally:
            self._again.tensors = {}


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided


def storages_of(tensors: Iterable[torch.Tensor]) -> frozenset[int]:
    """The storages of some tensors, and of the parts of sparse ones."""
    return frozenset(_storage(p) for x in tensors for p in parts(x) if _plain(p))


class Recording:
    """Saved tensors of a run that is going on. The graph holds its hooks: it must not hold it.

    Attributes:
        read: places among what is given, and among the outputs, of what autograd saves.

    Args:
        given: what the run is given.
        lasting: storages that are there all through the step (`storages_of`), such as buffers'.
        again: places among what is given, and among the outputs, of what the backward pass is given
            again; None for all.
    """

    def __init__(
        self,
        given: Tensors,
        lasting: Set[int] = frozenset(),
        again: tuple[Container[int], Container[int]] | None = None,
    ) -> None:
        self._given = {
            _storage(x): i
            for i, x in reversed(list(enumerate(given)))
            if _plain(x) and (again is None or i in again[0])
        }
        self._made = None if again is None else again[1]
        self._tensors: Tensors = given
        self.read: tuple[set[int], set[int]] = (set(), set())
        self._lasting = lasting
        self._all_given = {_storage(x) for x in given if _plain(x)}
        self._saved: list[_Saved] = []
        self._again = _Again()

    def record(self) -> Record:
        """The record of the run, without what it is made of yet."""
        return Record(self._again)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, what autograd saves is seen."""
        # The run may itself ask for gradients (a force, a gradient penalty).
        self._again.tensors = {"given": self._tensors}
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._again.unpack):
                yield
        finally:
            self._again.tensors = {}
            self._tensors = ()

    def _pack(self, tensor: torch.Tensor) -> _Saved:
        saved = _Saved(tensor.detach(), tensor._version)
        place = self._given.get(_storage(tensor)) if _plain(tensor) else None
        if place is not None:
            saved.leave_out(("given", place))
            self.read[0].add(place)
        else:
            self._saved.append(saved)
        return saved

    @contextmanager
    def putting_back(self, state: AbstractContextManager[Any]) -> Iterator[None]:
        """Inside, a run that `state` takes back: what is put back counts as not changed."""
        with state:
            yield
            held = [s for s in self._saved if s.tensor is not None]
            same = [s for s in held if s.tensor is not None and s.tensor._version == s.version]
        for saved in same:
            if saved.tensor is not None:
                saved.version = saved.tensor._version

    def add_given(self, more: Tensors) -> None:
        """What turns out to be given as well, before everything else (parameters)."""
        places = {_storage(x): i for i, x in enumerate(more)}
        self._again.shift = len(more)
        self.read = ({i + len(more) for i in self.read[0]}, set())
        for saved in self._saved:
            tensor = saved.tensor
            place = places.get(_storage(tensor)) if tensor is not None and _plain(tensor) else None
            if place is not None:
                saved.leave_out(("more", place))
                self.read[0].add(place)

    def finish(self, outputs: Tensors) -> int:
        """The run is over: bytes of the saved tensors that only the record holds."""
        made = {
            _storage(x): i
            for i, x in enumerate(outputs)
            if _plain(x) and (self._made is None or i in self._made)
        }
        storages: dict[int, int] = {}
        for saved in self._saved:
            tensor = saved.tensor
            if tensor is None:
                continue
            if is_sparse(tensor):  # its parts may be what is given
                own = {_storage(p): p.untyped_storage().nbytes() for p in parts(tensor)}
                storages.update(
                    {s: own[s] for s in own.keys() - self._all_given if s not in self._lasting}
                )
                continue
            if not _plain(tensor):
                storages[id(tensor)] = int(tensor.numel() * tensor.element_size())
                continue
            place = made.get(_storage(tensor))
            if place is not None:
                saved.leave_out(("made", place))
                self.read[1].add(place)
            elif _storage(tensor) not in self._lasting:
                storages[_storage(tensor)] = tensor.untyped_storage().nbytes()
        self._saved.clear()
        return sum(storages.values())


class _Owner(bytearray):
    """The memory of a handle: its record lives exactly as long."""

    record: Record


_owners: WeakValueDictionary[int, _Owner] = WeakValueDictionary()
_numbers = itertools.count(1)


def handle_of(record: Record) -> torch.Tensor:
    """A tensor that keeps a record alive: whoever frees it frees that, too."""
    number = next(_numbers)
    owner = _Owner(number.to_bytes(8, "little"))
    owner.record = record
    _owners[number] = owner
    return torch.frombuffer(owner, dtype=torch.uint8)


def record_of(handle: torch.Tensor) -> Record:
    """The record behind a handle.

    Raises:
        ExecutionError: it is gone.
    """
    owner = _owners.get(int.from_bytes(bytes(handle.tolist()), "little"))
    if owner is None:
        raise ExecutionError("what a module keeps is gone; please report this as a bug")
    return owner.record


def autocast_state(kinds: Iterable[str]) -> tuple[tuple[str, torch.dtype, bool], ...]:
    """Autocast as it is now, for some kinds of devices."""
    return tuple(
        (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        for kind in sorted(kinds)
    )


@contextmanager
def under_autocast(state: Iterable[tuple[str, torch.dtype, bool]]) -> Iterator[None]:
    """Autocast as it was."""
    with ExitStack() as stack:
        for kind, dtype, enabled in state:
            stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
        yield
