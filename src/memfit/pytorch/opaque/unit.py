"""A module that runs as one op, and what a plain run shows of its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memfit.pytorch.compat.autograd import leaves_behind
from memfit.pytorch.compat.dynamo import not_traced
from memfit.pytorch.compat.eager import profiler_active
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.failures.first_run import random_states, set_random_states
from memfit.pytorch.layouts.sparse import bytes_of, owned
from memfit.pytorch.opaque import ops
from memfit.pytorch.opaque.blocks import blocks_of, computed_again
from memfit.pytorch.opaque.call import Form, OpaqueCall, Taken
from memfit.pytorch.opaque.module_state import ModuleState, Versions, held_tensors
from memfit.pytorch.opaque.places import Place
from memfit.pytorch.opaque.record import GATE, Recording, storages_of
from memfit.pytorch.opaque.results import given_back, made_within
from memfit.pytorch.opaque.structure import Made, parted, sparse_parts
from memfit.pytorch.opaque.timing import times_of

__all__ = ["CannotBeOpaque", "Unit", "Watch"]

_MORE_RUNS = 4
_TIMED_RUNS = 3


class CannotBeOpaque(Exception):
    """A module does what one op cannot stand for."""


@dataclass
class Watch:
    """What the units of a step share.

    Attributes:
        versions: of what its modules held before anything was looked at.
        on: a plain run is going on in which calls are looked at. What runs inside of a call that
            is looked at is a part of that call.
    """

    versions: Versions
    on: bool = False


class Unit:
    """Code that runs as one op: a module, a method or a function.

    Attributes:
        place: where it is found and called.
        name: for people.
        module: whose state it may change.
        calls: those that a plain run has shown, by what they were given.
        watch: whether calls are looked at.
        unseen: tracing has met a call that no plain run has shown.
        lasts: whether an object was there before the plain run that is going on.

    Args:
        place: where it is found and called.
        watch: of all units of a step.
        thrifty: its blocks are computed again in its backward pass.
    """

    def __init__(self, place: Place, watch: Watch, *, thrifty: bool = False) -> None:
        self.place = place
        self.name = place.name
        self.module = place.module
        self.calls: list[tuple[Any, OpaqueCall]] = []
        self._traced = not_traced(self._trace)
        self.watch = watch
        self.unseen = False
        self.lasts: Callable[[Any], bool] = lambda _: True
        self._blocks = blocks_of(place.module) if thrifty and place.whole else []
        self._made: Made = ()
        self._states_bytes = 0  # that the newest run keeps for its blocks

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        with computed_again(self._blocks) as drawn:
            result = self.place.run(*args, **kwargs)
        self._states_bytes = sum(states.tensor_bytes for states in drawn)
        return result

    def install(self) -> None:
        """From here on, tracing meets an op where the module is called."""
        unit, place, traced = self, self.place, self._traced
        own, of_class = place.own, place.of_class
        leaves = tuple(self.leaves)
        given = tuple({structure: None for (structure, _), _ in self.calls})
        returned = tuple(self._returned(structure) for structure in given)
        made = self._made
        objects: dict[int, Any] = {}
        for _, call in self.calls:
            objects.update(call.objects)

        def forward(*args: Any, **kwargs: Any) -> Any:
            handed = args
            if of_class:
                args = args[1:]
            if torch.compiler.is_dynamo_compiling():
                found: list[Any] = []
                tensors, structure = parted((args, kwargs), {}, made, found)
                at = -1
                for i, known in enumerate(given):
                    if known == structure:
                        at = i
                outputs = traced(leaves, tensors, at)
                return given_back(returned[at], outputs, objects, tensors, found)
            if unit.watch.on:
                place.instance = handed[0] if of_class else None
                return unit.observe(args, kwargs)
            return own(*handed, **kwargs)

        self.place.put(forward)

    def _returned(self, given: Any) -> Any:
        """In which structure a call returns its outputs that is given some structure."""
        return next(call.result for (structure, _), call in self.calls if structure == given)

    def remove(self) -> None:
        """The code is itself again."""
        self.place.take_back()

    @property
    def leaves(self) -> list[torch.Tensor]:
        """The parameters that some call reads."""
        found = {id(x): x for _, call in self.calls for x in call.leaves}
        return list(found.values())

    def _trace(
        self, leaves: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor], place: int
    ) -> Any:
        given = list({structure: None for (structure, _), _ in self.calls})
        form = (given[place], _forms(tensors)) if place >= 0 else None
        call = next((call for known, call in self.calls if known == form), None)
        if call is None or call.result != self._returned(given[place]):
            self.unseen = True
            raise CannotBeOpaque(f"{self.name} is called in another way than it was seen to be")
        read = {id(x) for x in call.leaves}
        taken = [x for real, x in zip(self.leaves, leaves, strict=True) if id(real) in read]
        return list(ops.apply(call.key, [*taken, *tensors]))

    # A plain run.

    def observe(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the module, and learn what the call takes, gives and keeps.

        Raises:
            CannotBeOpaque: it writes to what it is given.
        """
        self.watch.on = False  # what is inside belongs to it
        try:
            return self._observed(args, kwargs)
        finally:
            self.watch.on = True

    def _observed(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self._find_made((args, kwargs))
        found: list[Any] = []
        tensors, structure = parted((tuple(args), dict(kwargs)), {}, self._made, found)
        form = structure, _forms(tensors)
        device = str(next((x.device for x in tensors), torch.device("cpu")))
        drawn, state = random_states(), ModuleState(self.module)
        trained = [
            p for p in self.module.parameters() if p.requires_grad and self.place.whole
        ]  # of other code, those that its outputs lead back to
        call = OpaqueCall(
            self.name, self._run, (args, kwargs), self.module, self.watch.versions, self._made
        )
        call.leaves = tuple(trained)
        constant = sparse_parts(structure)
        gated = [
            i not in constant and (x.is_floating_point() or x.is_complex())
            for i, x in enumerate(tensors)
        ]
        try:
            outputs = self._look(call, tensors, gated)
        except CannotBeOpaque:
            raise
        except RuntimeError:  # it may want a leaf, to set its requires_grad
            state.put_back()
            set_random_states(drawn)
            gated = [x.requires_grad for x in tensors]
            outputs = self._look(call, tensors, gated)
        self.watch.versions.note(state.changed())
        drew = random_states().differs(drawn)
        call.draws = device in drew
        call.once = bool(drew - {device})
        for _ in range(_MORE_RUNS if drew else 0):  # it may keep more when other numbers are drawn
            state.put_back()
            if self._saved_bytes(call, tensors, gated) != call.taken.saved_bytes:
                state.put_back()
                self._look(call, tensors, gated)

        def begin() -> None:
            state.put_back()
            set_random_states(drawn)

        call.take(self._times(call, tensors, gated, begin))
        if not self._runs_alike(call, tensors, gated, outputs, drawn, state):
            raise CannotBeOpaque(f"{self.name} gives something else when it is run again")
        # From what the first run has left, as a plan would run it again.
        after = ModuleState(self.module)
        call.once |= not self._runs_alike(call, tensors, gated, outputs, drawn, after)
        after.put_back()
        known = next((c for f, c in self.calls if f == form), None)
        if known is None:
            self.calls.append((form, call))
        else:
            known.join(call)
        return given_back(call.result, outputs, call.objects, tensors, found)

    def _find_made(self, arguments: Any) -> None:
        """Learn which classes of objects among some arguments the step makes anew."""
        objects = made_within(arguments, self.lasts)
        if len({id(x) for x in objects}) < len(objects):
            raise CannotBeOpaque(f"{self.name} is given an object in two places")
        names = dict(self._made)
        for one in objects:
            known = names.get(type(one), ())
            names[type(one)] = (*known, *(n for n in vars(one) if n not in known))
        self._made = tuple(names.items())

    def _saved_bytes(
        self, call: OpaqueCall, tensors: Sequence[torch.Tensor], gated: Sequence[bool]
    ) -> int:
        """What autograd keeps of one more run."""
        recording = Recording(tensors, storages_of(held_tensors(self.module)))
        with torch.enable_grad():
            made, _, _ = call.run(tensors, gated, recording)
        recording.add_given(call.leaves)
        return recording.finish([x.detach() for x in made]) + self._states_bytes

    def _look(
        self, call: OpaqueCall, tensors: Sequence[torch.Tensor], gated: Sequence[bool]
    ) -> list[torch.Tensor]:
        """Run a call forward and backward; the call learns what it takes and keeps."""
        versions = [x._version for x in tensors]
        recording = Recording(tensors, storages_of(held_tensors(self.module)))
        results: list[Any] = []

        def run() -> None:
            with torch.enable_grad():
                results.append(call.run(tensors, gated, recording, self.lasts))

        peak = _peak(run, tensors)
        made, structure, edges = results.pop()
        if [x._version for x in tensors] != versions:
            raise CannotBeOpaque(f"{self.name} writes to what it is given")
        call.learn(structure, made)
        given = {x.untyped_storage()._cdata for x in tensors}  # some set requires_grad on these
        behind = leaves_behind([x for x in made if x.requires_grad], GATE)
        call.add_leaves(x for x in behind if x.untyped_storage()._cdata not in given)
        outputs = [x.detach().clone() for x in made]
        recording.add_given(call.leaves)
        saved_bytes = recording.finish([x.detach() for x in made]) + self._states_bytes
        own = sum(x.untyped_storage().nbytes() for x in made)
        record = recording.record()
        record.inputs = [*call.leaves, *edges]
        record.close(made)
        made = [x.detach() for x in made]
        del edges
        gradients = [
            torch.ones_like(x) if i in call.with_gradient else None for i, x in enumerate(made)
        ]
        found: list[torch.Tensor | None] = []

        operands = [*call.leaves, *tensors]

        def back() -> None:
            found.extend(record.backward(operands, made, gradients))
            owned(found, [*operands, *made, *gradients])

        back_bytes = _peak(back, tensors)
        asked = iter(found)
        places = [True] * len(call.leaves) + list(gated)
        call.add_sparse([next(asked) if one else None for one in places])
        gradient_bytes = sum(bytes_of(x) for x in found if x is not None)
        call.take(
            Taken(
                saved_bytes=saved_bytes,
                workspace_bytes=(
                    max(0, peak - own - saved_bytes),
                    max(0, back_bytes - gradient_bytes),
                ),
                read=(frozenset(recording.read[0]), frozenset(recording.read[1])),
            )
        )
        call.operands = tuple(map(Form.of, operands))
        return outputs

    def _times(
        self,
        call: OpaqueCall,
        tensors: Sequence[torch.Tensor],
        gated: Sequence[bool],
        begin: Callable[[], None],
    ) -> Taken:
        """How long the call takes, and what of that goes into blocks that are computed again.

        With these and without them in turn, from the same state.
        """
        device = next((x.device for x in tensors), torch.device("cpu"))
        ways = [self._blocks, []] if self._blocks else [[]]
        found: list[list[tuple[int, int]]] = [[] for _ in ways]
        for _ in range(_TIMED_RUNS):
            for blocks, times in zip(ways, found, strict=True):
                begin()
                with self._with(blocks):
                    times.append(times_of(call, tensors, gated, device))
        least = [(min(f for f, _ in times), min(b for _, b in times)) for times in found]
        return Taken(times_ns=least[0], again_ns=max(0, sum(least[0]) - sum(least[-1])))

    @contextmanager
    def _with(self, blocks: list[nn.Module]) -> Iterator[None]:
        """Inside, these blocks are computed again."""
        own, self._blocks = self._blocks, blocks
        try:
            yield
        finally:
            self._blocks = own

    def _runs_alike(
        self,
        call: OpaqueCall,
        tensors: Sequence[torch.Tensor],
        gated: Sequence[bool],
        outputs: Sequence[torch.Tensor],
        drawn: Any,
        state: ModuleState,
    ) -> bool:
        """Whether running it once more from a state gives the same, with the same random numbers.

        Rounding aside: sums of scattered values round otherwise in each run on a GPU.
        """
        state.put_back()
        set_random_states(drawn)
        with torch.enable_grad():  # it may ask for gradients itself, of what it is given, too
            made, _, _ = call.run(tensors, gated)
        return len(made) == len(outputs) and all(
            a.shape == b.shape
            and torch.allclose(a.detach(), b, rtol=1e-3, atol=1e-6, equal_nan=True)
            for a, b in zip(made, outputs, strict=True)
        )


def _forms(tensors: Sequence[torch.Tensor]) -> Any:
    for x in tensors:
        if type(x) not in (torch.Tensor, nn.Parameter) and not _is_traced(x):
            raise CannotBeOpaque(f"a {type(x).__name__} is given")
    return tuple((tuple(x.shape), x.dtype, x.device) for x in tensors)


def _is_traced(tensor: torch.Tensor) -> bool:
    return "Functional" in type(tensor).__name__ or "Fake" in type(tensor).__name__


def _peak(run: Callable[[], object], tensors: Sequence[torch.Tensor]) -> int:
    """Peak in bytes of one run; 0 where a profiler is in the way."""
    device = next((x.device for x in tensors), torch.device("cpu"))
    if device.type == "cpu" and profiler_active():
        run()
        return 0
    return measure_step(run, device=device, warmup=0).peak_bytes
