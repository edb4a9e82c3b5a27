"""A program run for two steps, and everything that the steps leave behind."""

from __future__ import annotations

import linecache
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._dynamo import guards

from programs.program import Program, source

__all__ = ["STEPS", "Seen", "Trial", "quiet"]

STEPS = 2
_count = 0

Call = Callable[..., Any]
Seen = list[dict[str, torch.Tensor | None]]


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, and with PyTorch's default type and random state as before."""
    dtype, state = torch.get_default_dtype(), torch.get_rng_state()
    timed = guards.profile_guard_manager
    guards.profile_guard_manager = lambda *_: 0.0  # a tenth of a second at each compilation
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        guards.profile_guard_manager = timed
        torch.set_default_dtype(dtype)
        torch.set_rng_state(state)


@dataclass(frozen=True)
class Given:
    """What one step is given."""

    inputs: list[Any]
    target: Any


class Trial:
    """One model of a program, which can be put back to its first state.

    Attributes:
        model: the model.
        loss: the loss that `fit` is given, or None.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._space = _module_of(program)
        torch.manual_seed(program.seed)
        self.model: nn.Module = self._space["Program"]()
        self.loss: Call | None = self._space["loss"] if program.loss else None
        with torch.no_grad():
            self._parameters = {n: p.clone() for n, p in self.model.named_parameters()}
            self._buffers = {n: b.clone() for n, b in self.model.named_buffers()}

    def _give(self, step: int) -> Given:
        torch.manual_seed(7919 * self.program.seed + step)
        inputs = self._space["inputs"]()
        target = self._space["target"]() if self.loss is not None else None
        return Given(inputs, target)

    def given(self, step: int) -> Given:
        """Inputs and target of a step, which the step may write into."""
        return self._give(step)

    def plain(self, *args: Any) -> Any:
        """The step as PyTorch runs it."""
        if self.loss is None:
            return self.model(*args)
        return self.loss(self.model(*args[:-1]), args[-1])

    def arguments(self, given: Given) -> Sequence[Any]:
        """What the fitted module is called with."""
        return given.inputs if self.loss is None else [*given.inputs, given.target]

    def reset(self) -> None:
        """Parameters and buffers as they were made, no gradients, training mode."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self._parameters[name])
                parameter.grad = None
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._buffers[name])
        self.model.train()

    def objective(self, out: Any) -> torch.Tensor:
        """What is differentiated."""
        if self.program.objective:
            return self._space["objective"](out)  # type: ignore[no-any-return]
        assert isinstance(out, torch.Tensor)
        return out

    def step(self, call: Call, given: Given) -> Any:
        """Forward, loss, backward."""
        out = call(*self.arguments(given))
        self.objective(out).backward()
        return out

    def run(self, call: Call) -> Seen:
        """What each step leaves behind, from the first state."""
        self.reset()
        seen = []
        for i in range(STEPS):
            given = self._give(i)
            torch.manual_seed(104729 * self.program.seed + i)
            if not self.program.accumulate:
                self.model.zero_grad(set_to_none=True)
            out = self.step(call, given)
            seen.append(self._observe(out, given))
            if self.program.update:
                self._update()
        return seen

    def evaluate(self, fitted: nn.Module | None = None) -> list[torch.Tensor | None]:
        """The outputs in `eval()`, from the first state: the model's, or a fitted module's."""
        self.reset()
        module = self.model if fitted is None else fitted
        module.eval()
        given = self._give(0)
        torch.manual_seed(self.program.seed)
        out = (self.plain if fitted is None else fitted)(*self.arguments(given))
        module.train()
        return [_copy(t) for t in torch.utils._pytree.tree_leaves(out)]

    def _update(self) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.clamp(-1, 1), alpha=0.05)

    def _observe(self, out: Any, given: Given) -> dict[str, torch.Tensor | None]:
        seen: dict[str, torch.Tensor | None] = {"random state": torch.get_rng_state()}
        for i, t in enumerate(torch.utils._pytree.tree_leaves(out)):
            seen[f"output {i}"] = _copy(t)
        for name, p in self.model.named_parameters():
            seen[f"parameter {name}"] = _copy(p)
            seen[f"gradient {name}"] = _copy(p.grad)
        for name, b in self.model.named_buffers():
            seen[f"buffer {name}"] = _copy(b)
        for i, x in enumerate(given.inputs):
            seen[f"input x{i}"] = _copy(x)
            if x.is_leaf:
                seen[f"gradient of input x{i}"] = _copy(x.grad)
        return seen


def _module_of(program: Program) -> dict[str, Any]:
    """The program's source as a module that can be imported, as Dynamo asks for.

    Dynamo remembers modules by name, so each has its own.
    """
    global _count
    _count += 1
    name = f"random_program_{_count}"
    module = types.ModuleType(name)
    sys.modules[name] = module
    text, file = source(program), f"<{name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    exec(compile(text, file, "exec"), module.__dict__)  # it also sets the default type
    return module.__dict__


def _copy(value: Any) -> torch.Tensor | None:
    if value is None:
        return None
    return value.detach().clone() if isinstance(value, torch.Tensor) else torch.tensor(value)
