"""Running a rolled loop: two ops, one for its forward pass and one for its backward pass.

In a training graph a rolled loop is `memfit::loop_forward`, which returns the last carry, the
stacked outputs and what the plan holds (states, records of the last steps), and
`memfit::loop_backward`, which reads these. Whatever the trip count, that is two nodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

from memfit.errors import ExecutionError
from memfit.pytorch.capture.rng import read_state, state_bytes, write_state
from memfit.pytorch.loops.body import LoopBody
from memfit.strategies.loops import Advance, Leaf, LoopPlan, Restore, reversal, sweep

__all__ = ["FORWARD_OPS", "LOOP_OPS", "LoopProgram", "run_loop"]

Tensors = Sequence[torch.Tensor]

_LIBRARY = torch.library.Library("memfit", "FRAGMENT")
_keys = itertools.count()
_programs: WeakValueDictionary[int, LoopProgram] = WeakValueDictionary()


class LoopProgram:
    """A loop of a captured graph.

    Attributes:
        body: its step.
        steps: its trip count.
        name: of its node, for people.
        key: names it in graphs.
        plan: what it holds; None until the step is planned.
    """

    def __init__(self, body: LoopBody, steps: int, name: str) -> None:
        self.body = body
        self.steps = steps
        self.name = name
        self.key = next(_keys)
        self.plan: LoopPlan | None = None
        _programs[self.key] = self

    def _decided(self) -> LoopPlan:
        if self.plan is None:
            raise ExecutionError(
                f"loop {self.name} is run before it is planned; please report this as a bug"
            )
        return self.plan

    # What the ops return, in their order.

    def held(self, plan: LoopPlan | None, like: torch.Tensor) -> list[torch.Tensor]:
        """Memory for what is held between the passes; none of it where there is no plan yet.

        Stored states (one tensor for each carried one), states of the random generator, records.
        """
        slots = plan.slots if plan else 0
        records = plan.kept_records if plan else 0
        body = self.body
        device = body.random_device
        states = [form.stack(slots, like) for form in body.carry]
        generator = state_bytes(device) if device is not None and plan else 0
        random = torch.empty(
            (slots + 1 if generator else 0, generator), dtype=torch.uint8, device="cpu"
        )
        saved = [body.carry[i] for i in body.saved_carries]
        return [*states, random, *(form.stack(records, like) for form in (*saved, *body.record))]

    def results(self, plan: LoopPlan | None, like: torch.Tensor) -> list[torch.Tensor]:
        """Memory for the stacked outputs and for what is held."""
        ys = [form.stack(self.steps, like) for form in self.body.ys]
        return [*ys, *self.held(plan, like)]

    def gradients(self, operands: Tensors) -> list[torch.Tensor]:
        """Memory for the gradients that are wanted, zero for the constants."""
        body = self.body
        first = body.signature.carry + body.signature.xs
        return [
            torch.zeros_like(operands[i], memory_format=torch.contiguous_format)
            if i >= first
            else torch.empty_like(operands[i], memory_format=torch.contiguous_format)
            for i in body.wanted
        ]

    def forward(self, operands: Tensors) -> list[torch.Tensor]:
        """Run the loop: its last carry, stacked outputs and what is held."""
        body, plan, signature = self.body, self._decided(), self.body.signature
        carries, first_constant = signature.carry, signature.carry + signature.xs
        state = [x.contiguous() for x in operands[:carries]]
        xs, constants = operands[carries:first_constant], operands[first_constant:]
        results = self.results(plan, operands[0])
        ys, held = results[: signature.ys], results[signature.ys :]
        slots, random, records = held[:carries], held[carries], held[carries + 1 :]
        stored, tail = sweep(plan)
        tail = tail if plan.tail else plan.steps
        slot = 0
        saved_carries = body.saved_carries
        self._save_generator(random, 0)
        for t in range(plan.steps):
            if slot < len(stored) and stored[slot] == t:
                _write(slots, slot, state)
                slot += 1
                self._save_generator(random, slot)
            step = body.first if t < tail else body.recording
            made = step(*state, *(x.select(0, t) for x in xs), *constants)
            _write(ys, t, made[carries : carries + signature.ys])
            if t >= tail:
                kept = [state[i] for i in saved_carries]
                kept += made[carries + signature.ys :]
                _write(records, t - tail, kept)
                kept.clear()
            state = [x.contiguous() for x in made[:carries]]
            del made
        return [*state, *results]

    def backward(
        self, operands: Tensors, held: Tensors, given: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor]:
        """Gradients of the operands that have one, from those of carry and outputs.

        The memory of what is held is used again and given back.
        """
        return _Reversal(self, self._decided(), operands, held, given).run()

    def _save_generator(self, memory: torch.Tensor, place: int) -> None:
        if self.body.random_device is not None:
            memory[place].copy_(read_state(self.body.random_device))

    def _load_generator(self, memory: torch.Tensor, place: int) -> None:
        if self.body.random_device is not None:
            write_state(memory[place].clone(), self.body.random_device)


class _Reversal:
    """One backward pass of a loop."""

    def __init__(
        self,
        program: LoopProgram,
        plan: LoopPlan,
        operands: Tensors,
        held: Tensors,
        given: Sequence[torch.Tensor | None],
    ) -> None:
        self.program, self.plan, self.body = program, plan, program.body
        signature = self.body.signature
        carries, first_constant = signature.carry, signature.carry + signature.xs
        self.init = [x.contiguous() for x in operands[:carries]]
        self.xs, self.constants = operands[carries:first_constant], operands[first_constant:]
        self.slots, self.random = held[:carries], held[carries]
        self.records = held[carries + 1 :]
        self.results = program.gradients(operands)
        self.state: list[torch.Tensor] = []
        forms = (*self.body.carry, *self.body.ys)
        floating = self.body.differentiable
        self.carry_gradients = [
            _or_zero(given[i], forms[i].shape, forms[i].dtype, operands[0])
            for i in floating
            if i < carries
        ]
        self.y_gradients = [given[i] for i in floating if i >= carries]
        self.y_zeros = [
            torch.zeros(forms[i].shape, dtype=forms[i].dtype, device=operands[0].device)
            if given[i] is None
            else None
            for i in floating
            if i >= carries
        ]
        self.place = {i: n for n, i in enumerate(i for i in floating if i < carries)}

    def run(self) -> list[torch.Tensor]:
        device = self.body.random_device
        now = None if device is None else read_state(device)
        try:
            for action in reversal(self.plan):
                if isinstance(action, Restore):
                    self.restore(action.slot)
                elif isinstance(action, Advance):
                    for t in range(action.begin, action.end):
                        self.advance(t)
                elif isinstance(action, Leaf):
                    self.leaf(action)
                else:
                    _write(self.slots, action.slot, self.state)
                    self.program._save_generator(self.random, action.slot + 1)
        finally:
            if device is not None and now is not None:
                write_state(now, device)
        for i, result in zip(self.body.wanted, self.results, strict=True):
            if i < self.body.signature.carry:
                result.copy_(self.carry_gradients[self.place[i]])
        return self.results

    def slices(self, t: int) -> list[torch.Tensor]:
        return [x.select(0, t) for x in self.xs]

    def restore(self, slot: int) -> None:
        self.program._load_generator(self.random, slot + 1)
        self.state = list(self.init) if slot < 0 else [memory[slot] for memory in self.slots]

    def advance(self, t: int) -> None:
        made = self.body.advance(*self.state, *self.slices(t), *self.constants)
        self.state = [x.contiguous() for x in made]

    def leaf(self, leaf: Leaf) -> None:
        if leaf.recorded:
            for t in reversed(range(leaf.begin, leaf.end)):
                self.step_back(t, [memory[t - leaf.begin] for memory in self.records])
            for memory in self.records:
                memory.untyped_storage().resize_(0)  # autograd still holds the tensor itself
            return
        carries = self.body.signature.carry
        records: list[list[torch.Tensor]] = []
        for t in range(leaf.begin, leaf.end):
            made = self.body.again(*self.state, *self.slices(t), *self.constants)
            records.append([*(self.state[i] for i in self.body.saved_carries), *made[carries:]])
            self.state = [x.contiguous() for x in made[:carries]]
            del made
        self.state = []
        for t in reversed(range(leaf.begin, leaf.end)):
            self.step_back(t, records.pop())

    def step_back(self, t: int, record: list[torch.Tensor]) -> None:
        body, signature = self.body, self.body.signature
        saved = dict(zip(body.saved_carries, record, strict=False))
        first_constant = signature.carry + signature.xs
        inputs = [
            saved[i]
            if i < signature.carry
            else self.xs[i - signature.carry].select(0, t)
            if i < first_constant
            else self.constants[i - first_constant]
            for i in body.saved_inputs
        ]
        values = record[len(saved) :]
        ys = [
            zero if g is None else g.select(0, t).contiguous()
            for g, zero in zip(self.y_gradients, self.y_zeros, strict=True)
        ]
        saved.clear()
        made = body.backward(*inputs, *values, *self.carry_gradients, *ys)
        inputs.clear()
        values.clear()
        record.clear()
        for i, result, gradient in zip(body.wanted, self.results, made, strict=True):
            if i < signature.carry:
                self.carry_gradients[self.place[i]] = gradient.contiguous()
            elif i < first_constant:
                result[t].copy_(gradient)
            else:
                result.add_(gradient)


def _write(memories: Tensors, place: int, tensors: Tensors) -> None:
    """Copy tensors into stacks; a function, so that no loop variable outlives its tensor."""
    for memory, tensor in zip(memories, tensors, strict=True):
        memory[place].copy_(tensor)


def _or_zero(
    given: torch.Tensor | None, shape: Sequence[int], dtype: torch.dtype, like: torch.Tensor
) -> torch.Tensor:
    if given is None:
        return torch.zeros(shape, dtype=dtype, device=like.device)
    return given.contiguous()


def _of(key: int) -> LoopProgram:
    program = _programs.get(key)
    if program is None:
        raise ExecutionError(
            f"loop {key} is gone: the fitted module that it belongs to was deleted; keep the "
            "module until its backward pass has run"
        )
    return program


def _define(suffix: str, **options: Any) -> None:
    forward, backward = f"loop_forward{suffix}", f"loop_backward{suffix}"
    _LIBRARY.define(f"{forward}(Tensor[] operands, int key) -> Tensor[]", **options)
    _LIBRARY.define(
        f"{backward}(Tensor[] operands, Tensor[] held, Tensor?[] given, int key) -> Tensor[]",
        **options,
    )
    kernel = "CompositeExplicitAutograd"
    _LIBRARY.impl(forward, lambda operands, key: _of(key).forward(operands), kernel)
    _LIBRARY.impl(
        backward,
        lambda operands, held, given, key: _of(key).backward(operands, held, given),
        kernel,
    )

    def fake_forward(operands: Tensors, key: int) -> list[torch.Tensor]:
        program = _of(key)
        carry = [form.stack(1, operands[0])[0].clone() for form in program.body.carry]
        return [*carry, *program.results(None, operands[0])]

    def fake_backward(operands: Tensors, held: Tensors, given: Any, key: int) -> Any:
        return _of(key).gradients(operands)

    torch.library.register_fake(f"memfit::{forward}", fake_forward, lib=_LIBRARY)
    torch.library.register_fake(f"memfit::{backward}", fake_backward, lib=_LIBRARY)


_define("")
_define("_random", tags=(torch.Tag.nondeterministic_seeded,))

_memfit = torch.ops.memfit
FORWARD_OPS = (_memfit.loop_forward.default, _memfit.loop_forward_random.default)
LOOP_OPS = (
    *FORWARD_OPS,
    _memfit.loop_backward.default,
    _memfit.loop_backward_random.default,
)


class _Loop(torch.autograd.Function):
    """The loop as one op of autograd; it is only ever traced."""

    @staticmethod
    def forward(ctx: Any, key: int, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        program = _of(key)
        body = program.body
        random = body.random_device is not None
        run = FORWARD_OPS[random]
        made = run(list(operands), key)
        count = body.signature.carry + body.signature.ys
        outputs, held = made[:count], made[count:]
        ctx.key, ctx.count = key, len(operands)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(x for i, x in enumerate(outputs) if i not in body.differentiable)
        )
        ctx.save_for_backward(*operands, *held)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        program = _of(ctx.key)
        body = program.body
        saved = ctx.saved_tensors
        operands, held = saved[: ctx.count], saved[ctx.count :]
        run = LOOP_OPS[2 + (body.random_device is not None)]
        made = run(list(operands), list(held), list(given), ctx.key)
        gradients: list[torch.Tensor | None] = [None] * ctx.count
        for i, gradient in zip(body.wanted, made, strict=True):
            if ctx.needs_input_grad[1 + i]:
                gradients[i] = gradient
        return (None, *gradients)


def run_loop(key: int, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The carry after the last step and the stacked outputs of a loop.

    Args:
        key: of its `LoopProgram`.
        operands: carry before the first step, xs, constants.
    """
    return _Loop.apply(key, *operands)
