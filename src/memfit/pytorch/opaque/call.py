"""One call of a module that runs as one op: what it takes, gives and keeps, and how it is run."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from memfit.errors import ExecutionError
from memfit.pytorch.capture.missing import ABSENT
from memfit.pytorch.layouts.sparse import bytes_of, owned
from memfit.pytorch.opaque.module_state import Versions, held_tensors, kept
from memfit.pytorch.opaque.record import (
    Recording,
    autocast_state,
    gate,
    handle_of,
    record_of,
    storages_of,
    under_autocast,
)
from memfit.pytorch.opaque.results import parted_result
from memfit.pytorch.opaque.structure import CannotBeParted, Made, parted, together

__all__ = ["Form", "OpaqueCall", "Taken", "call_numbered"]

logger = logging.getLogger("memfit")
Tensors = Sequence[torch.Tensor]
MaybeTensors = Sequence[torch.Tensor | None]
_keys = itertools.count()
_calls: WeakValueDictionary[int, OpaqueCall] = WeakValueDictionary()


@dataclass(frozen=True)
class Form:
    """How a tensor is laid out."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Form:
        """Of a tensor; what is expanded or overlaps is made dense."""
        dense = torch.empty_like(tensor.detach(), device="meta")
        return cls(tuple(tensor.shape), dense.stride(), tensor.dtype, tensor.device)

    def empty(self) -> torch.Tensor:
        """Such a tensor, or a fake one in a fake mode."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Taken:
    """What a run of a call takes.

    Attributes:
        saved_bytes: what autograd keeps of it, beside operands and outputs.
        workspace_bytes, times_ns: of the forward and the backward pass.
        again_ns: how much of that goes into blocks that are computed again.
        read: places of the operands, and of the outputs, that the backward pass reads.
    """

    saved_bytes: int = 0
    workspace_bytes: tuple[int, int] = (0, 0)
    times_ns: tuple[int, int] = (0, 0)
    again_ns: int = 0
    read: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())

    def most(self, other: Taken) -> Taken:
        """The most of both."""
        (a, b), (c, d) = self.workspace_bytes, other.workspace_bytes
        (e, f), (g, h) = self.times_ns, other.times_ns
        return Taken(
            max(self.saved_bytes, other.saved_bytes),
            (max(a, c), max(b, d)),
            (max(e, g), max(f, h)),
            max(self.again_ns, other.again_ns),
            (self.read[0] | other.read[0], self.read[1] | other.read[1]),
        )


class OpaqueCall:
    """A module called with arguments of one form.

    Attributes:
        name: of the module, for people.
        key: names it in graphs.
        leaves: the parameters that the call reads, the first of its operands.
        outputs: forms of its tensor outputs.
        with_gradient: which of them have a gradient.
        operands: forms of the operands.
        result: structure in which the outputs are returned.
        taken: the most that a run took.
        draws: whether it draws random numbers.
        once: whether it must not run again.

    Args:
        name: of the module.
        run: the module's own forward.
        arguments: of the call, as an example.
        module: the module.
        versions: of what the step's modules held at first.
        made: classes of objects among the arguments that the step makes anew.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        arguments: tuple[Sequence[Any], Mapping[str, Any]],
        module: nn.Module,
        versions: Versions,
        made: Made = (),
    ) -> None:
        self.name = name
        self.key = next(_keys)
        self._module, self._versions = module, versions
        self.objects: dict[int, Any] = {}
        given = (tuple(arguments[0]), dict(arguments[1]))
        tensors, self._arguments = parted(given, self.objects, made)
        self._run = run
        self._autocast = autocast_state({"cpu", *(x.device.type for x in tensors)})
        self.leaves: tuple[torch.Tensor, ...] = ()
        self.outputs: tuple[Form, ...] = ()
        self.with_gradient: frozenset[int] = frozenset()
        self.operands: tuple[Form, ...] = ()
        self.taken = Taken()
        self.draws = False
        self.once = False
        self.result: Any = None
        self._sparse: dict[int, int] = {}  # for places of operands (`_place`)
        self._told = False
        self._lasting: frozenset[int] | None = None  # storages of the module, looked up rarely
        _calls[self.key] = self

    def run(
        self,
        arguments: Tensors,
        gated: Sequence[bool],
        recording: Recording | None = None,
        lasts: Callable[[Any], bool] | None = None,
    ) -> tuple[list[torch.Tensor], Any, list[GradientEdge]]:
        """The module on some arguments: tensors of the result, its structure, and the edges of
        the arguments that are gated.

        Args:
            arguments: the tensors that it is given.
            gated: which of them get gradients.
            recording: sees what autograd saves.
            lasts: whether an object was there before the step; in a run that is looked at.

        Raises:
            CannotBeParted: it writes to a container that it is given, or there is something else.
        """
        given = [gate(x) if g else x.detach() for x, g in zip(arguments, gated, strict=True)]
        edges = [get_gradient_edge(x) for x, g in zip(given, gated, strict=True) if g]
        handed: list[Any] = []
        args, kwargs = together(self._arguments, given, self.objects, handed)
        before = _content((args, kwargs)) if lasts is not None else None
        seen = recording.recording() if recording is not None else nullcontext()
        with under_autocast(self._autocast), seen:
            result = self._run(*args, **kwargs)
        if lasts is not None and _content((args, kwargs)) != before:
            raise CannotBeParted(f"a container that {self.name} is given and writes to")
        made, structure = parted_result(
            result, given, handed, self.objects, lasts or (lambda _: False)
        )
        return made, structure, edges

    def learn(self, structure: Any, outputs: Tensors) -> None:
        """What the call gives, from a first run: its structure, and the tensors in it."""
        self.result = structure
        self.outputs = tuple(map(Form.of, outputs))
        self.with_gradient = frozenset(
            i for i, x in enumerate(outputs) if x.is_floating_point() or x.is_complex()
        )

    def add_leaves(self, found: Iterable[torch.Tensor]) -> None:
        """What is trained and read by the call, though the module does not hold it."""
        known = {id(x) for x in self.leaves}
        self.leaves = (*self.leaves, *(x for x in found if id(x) not in known))

    def sparse_bytes(self, operand: int) -> int | None:
        """The most that the gradient of an operand took, where it is sparse; else None."""
        return self._sparse.get(self._place(operand))

    def add_sparse(self, gradients: Iterable[torch.Tensor | None]) -> None:
        """A run gave these gradients, of leaves and arguments."""
        for i, x in enumerate(gradients):
            if x is not None and x.layout is not torch.strided:
                place = self._place(i)
                self._sparse[place] = max(bytes_of(x), self._sparse.get(place, 0))

    def _place(self, operand: int) -> int:
        """A number of an operand that stays when leaves are added."""
        count = len(self.leaves)
        return operand if operand < count else count - operand - 1

    def take(self, taken: Taken) -> None:
        """Another run of the call took so much."""
        self.taken = self.taken.most(taken)

    def join(self, other: OpaqueCall) -> None:
        """Another call of the same form runs as this one, too."""
        arguments = self.operands[len(self.leaves) :]
        self.add_leaves(other.leaves)
        known = {id(x): i for i, x in enumerate(self.leaves)}
        for place, size in other._sparse.items():
            ours = known[id(other.leaves[place])] if place >= 0 else place
            self._sparse[ours] = max(size, self._sparse.get(ours, 0))
        self.operands = (*map(Form.of, self.leaves), *arguments)
        self.take(other.taken)
        self.objects.update(other.objects)
        self.draws |= other.draws
        self.once |= other.once

    def forward(
        self, operands: Tensors, wanted: Sequence[int], *, again: bool = False
    ) -> list[torch.Tensor]:
        """Run the module: its outputs, and a handle of what autograd keeps.

        Args:
            operands: leaves and tensor arguments.
            wanted: places of those whose gradients are asked for.
            again: it has run in this step before.
        """
        count = len(self.leaves)
        arguments = operands[count:]
        gated = [count + i in wanted for i in range(len(arguments))]
        fresh = self._lasting is None
        if self._lasting is None:
            self._lasting = storages_of(held_tensors(self._module))
        recording = Recording(operands, self._lasting, self.taken.read)
        state = (
            recording.putting_back(kept(self._module, self._versions)) if again else nullcontext()
        )
        with torch.enable_grad(), state:
            made, structure, edges = self.run(arguments, gated, recording)
        if structure != self.result:
            raise ExecutionError(
                f"{self.name}, which runs as one op, returns something else than when it was "
                "traced; return tensors of fixed shapes, or keep it out of what is fitted"
            )
        record = recording.record()
        record.inputs = [x for i, x in enumerate(self.leaves) if i in wanted]
        record.inputs += edges
        record.close(made)
        outputs = self._own([x.detach() for x in made], operands)
        del made
        self._tell(recording.finish(outputs), fresh)
        return [*outputs, handle_of(record)]

    def backward(
        self,
        operands: MaybeTensors,
        outputs: MaybeTensors,
        handle: torch.Tensor,
        given: MaybeTensors,
        wanted: Sequence[int],
    ) -> list[torch.Tensor]:
        """Gradients of the operands that are asked for.

        Args:
            operands: those that are read, None in the place of others.
            outputs: likewise.
            handle: of what autograd kept.
            given: gradients of the outputs, as far as there are some.
            wanted: places of the operands that are asked for.
        """
        with torch.enable_grad(), under_autocast(()):
            found = record_of(handle).backward(operands, outputs, given)
            found = owned(found, [*operands, *outputs, *given])
        made = []
        for i, gradient in zip(wanted, found, strict=True):
            if gradient is None:
                form = self.operands[i]
                layout = torch.strided if self.sparse_bytes(i) is None else torch.sparse_coo
                gradient = torch.zeros(
                    form.shape, dtype=form.dtype, device=form.device, layout=layout
                )
                setattr(gradient, ABSENT, True)  # accumulation leaves `.grad` as it is
            made.append(gradient)
        return made

    def _own(self, outputs: list[torch.Tensor], operands: Tensors) -> list[torch.Tensor]:
        """The outputs as traced: in memory of their own, laid out as in the first run."""
        taken = {x.untyped_storage()._cdata for x in operands}
        for i, (x, form) in enumerate(zip(outputs, self.outputs, strict=True)):
            if tuple(x.shape) != form.shape or x.dtype != form.dtype:
                raise ExecutionError(
                    f"{self.name}, which runs as one op, returns a tensor of shape "
                    f"{tuple(x.shape)}, {x.dtype}, and was traced with {form.shape}, "
                    f"{form.dtype}; return tensors of fixed shapes, or keep it out of what is "
                    "fitted"
                )
            storage = x.untyped_storage()._cdata
            if storage in taken or x.stride() != form.stride:
                outputs[i] = form.empty().copy_(x)
            taken.add(outputs[i].untyped_storage()._cdata)
        return outputs

    def _tell(self, held: int, fresh: bool) -> None:
        seen = self.taken.saved_bytes
        if held - seen <= max(4096, seen // 100) or self._told:
            return
        if not fresh:  # the module may hold other buffers by now
            self._lasting = None
        else:
            self._told = True
            logger.warning(
                "%s, which runs as one op, keeps %d bytes for its backward pass, %d more than when "
                "the step was planned: the step may be over its budget by that",
                self.name,
                held,
                held - self.taken.saved_bytes,
            )


def _content(value: Any) -> Any:
    """Of containers: equal where nothing in them was exchanged."""
    tensors, structure = parted(value, {})
    return [(x.data_ptr(), x.shape) for x in tensors], structure


def call_numbered(key: int) -> OpaqueCall:
    """The call that a graph names.

    Raises:
        ExecutionError: it is gone.
    """
    call = _calls.get(key)
    if call is None:
        raise ExecutionError(
            f"opaque call {key} is gone: the fitted module that it belongs to was deleted; keep "
            "the module until its backward pass has run"
        )
    return call
