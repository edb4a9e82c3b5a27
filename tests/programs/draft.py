"""A program while it is made: statements are run as they are added, so that shapes are known."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from programs.helpers import HELPERS
from programs.program import Made, Statement, used_names

__all__ = ["OPS", "Draft", "Skip", "op"]

LARGEST = 6000  # elements of a value
MAGNITUDE = 1e3

Where = Callable[[torch.Tensor], bool]
Emit = Callable[["Draft"], str]
OPS: dict[str, tuple[float, Emit]] = {}


class Skip(Exception):
    """Nothing in the program so far suits the op."""


def op(weight: float = 1.0) -> Callable[[Emit], Emit]:
    """Registers a function that writes one statement."""

    def register(emit: Emit) -> Emit:
        assert emit.__name__ not in OPS, emit.__name__
        OPS[emit.__name__] = (weight, emit)
        return emit

    return register


def floating(t: torch.Tensor) -> bool:
    """Whether the tensor is one of real floating-point numbers with elements."""
    return t.is_floating_point() and t.numel() > 0


class Draft:
    """What has been written so far, and what it has computed.

    Attributes:
        random: decides everything.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.default = torch.get_default_dtype()
        self.statements: list[Statement] = []
        self.parts: dict[str, str] = {}
        self.inputs: dict[str, str] = {}
        self.model = nn.Module()
        self.values: dict[str, Any] = {}
        self.space: dict[str, Any] = {"torch": torch, "F": F, "nn": nn, "self": self.model}
        for text in HELPERS.values():
            exec(text, self.space)
        self.count = 0
        self._new: list[str] = []
        self._parts: list[str] = []

    # What ops ask for.

    def chance(self, share: float) -> bool:
        """True in that share of the cases."""
        return self.random.random() < share

    def choose(self, *options: Any) -> Any:
        """One of the options."""
        return self.random.choice(options)

    def tensor(self, name: str) -> torch.Tensor:
        """The value of a variable."""
        found = self.values[name]
        assert isinstance(found, torch.Tensor)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a variable."""
        return tuple(self.tensor(name).shape)

    def pick(self, where: Where = floating, *, grad: bool = False) -> str:
        """A variable; newer ones are likelier.

        Raises:
            Skip: there is none.
        """
        names = [
            n
            for n, t in self.values.items()
            if isinstance(t, torch.Tensor) and where(t) and (t.requires_grad or not grad)
        ]
        if not names:
            raise Skip
        if self.chance(0.55):
            return names[-1]
        return self.random.choice(names)

    def of(self, *ndims: int, grad: bool = False) -> str:
        """A floating-point variable of one of these numbers of dimensions."""
        return self.pick(lambda t: floating(t) and t.ndim in ndims, grad=grad)

    def like(self, name: str) -> str:
        """A variable that broadcasts with another, to its shape, and is of its dtype."""
        x = self.tensor(name)

        def fits(t: torch.Tensor) -> bool:
            if t.dtype != x.dtype or t.device != x.device:
                return False
            try:
                return torch.broadcast_shapes(t.shape, x.shape) == x.shape
            except RuntimeError:
                return False

        return self.pick(fits)

    def dim(self, name: str) -> int:
        """A dimension of a variable, from the front or the back."""
        n = self.tensor(name).ndim
        if n == 0:
            raise Skip
        d = self.random.randrange(n)
        return d - n if self.chance(0.4) else d

    def new(self) -> str:
        """A name for a new variable."""
        self.count += 1
        name = f"v{self.count}"
        self._new.append(name)
        return name

    def part(self, kind: str, made: str) -> str:
        """A new attribute of the model (`p` parameter, `m` module, …) and how to write it."""
        self.count += 1
        name = f"{kind}{self.count}"
        self.parts[name] = made
        self._parts.append(name)
        self._build(name, made)
        return f"self.{name}"

    def also(self, whole: str) -> None:
        """A further statement of `__init__`."""
        self.count += 1
        name = f"s{self.count}"
        self.parts[name] = "!" + whole
        self._parts.append(name)
        self._build(name, "!" + whole)

    def module(self, made: str) -> str:
        """A new module, such as `nn.Linear(4, 4)`."""
        return self.part("m", made)

    def parameter(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> str:
        """A new parameter."""
        kind = "" if dtype in (None, torch.get_default_dtype()) else f", dtype={dtype}"
        return self.part("p", f"nn.Parameter(torch.randn({shape}{kind}) * 0.5)")

    def buffer(self, value: str) -> str:
        """A new buffer."""
        self.count += 1
        name = f"b{self.count}"
        self.parts[name] = f'!self.register_buffer("{name}", {value})'
        self._parts.append(name)
        self._build(name, self.parts[name])
        return f"self.{name}"

    def input(self, made: str) -> str:
        """A new input."""
        name = f"x{len(self.inputs)}"
        self.inputs[name] = made
        self.values[name] = self.space[name] = eval(made, self.space)
        return name

    def apply(self, text: str) -> str:
        """A statement that gives one new variable the value of an expression."""
        return f"{self.new()} = {text}"

    # What the generator does.

    def _build(self, name: str, made: str) -> None:
        if made.startswith("!"):
            exec(made[1:], self.space)
        else:
            setattr(self.model, name, eval(made, self.space))

    def add(self, name: str, emit: Emit) -> bool:
        """Write one statement and run it; False, and nothing changed, where that does not work."""
        self._new, self._parts = [], []
        count = self.count
        before = dict(self.space)
        inputs = len(self.inputs)
        try:
            code = emit(self)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(code, self.space)
                self._check(code)
        except Exception:
            self._undo(count, before, inputs)
            return False
        makes = {n: _made(self.space[n]) for n in self._new}
        self.statements.append(Statement(name, code, makes))
        for n in self._new:
            self.values[n] = self.space[n]
        return True

    def _check(self, code: str) -> None:
        changed = {*self._new, *used_names([code])}
        for name in changed:
            value = self.space.get(name)
            if not isinstance(value, torch.Tensor):
                continue
            if value.numel() > LARGEST:
                raise Skip
            if value.is_floating_point() and value.numel():
                largest = value.detach().abs().max()
                if not bool(largest < MAGNITUDE):
                    raise Skip
        if re.search(r"_\(|\] = |\] [+*-]= |inplace|out=", code):
            self._check_backward()

    def _check_backward(self) -> None:
        """In-place writes may break the backward pass of what ran before."""
        ends = [
            t
            for t in {**self.values, **{n: self.space[n] for n in self._new}}.values()
            if isinstance(t, torch.Tensor) and t.requires_grad and floating(t)
        ]
        leaves = [p for p in self.model.parameters() if p.requires_grad]
        leaves += [t for t in self.values.values() if _is_trained_leaf(t)]
        if ends and leaves:
            total = sum(t.double().sum() for t in ends)
            torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)

    def _undo(self, count: int, before: dict[str, Any], inputs: int) -> None:
        self.count = count
        for name in self._parts:
            self.parts.pop(name, None)
        for name in list(self.inputs)[inputs:]:
            del self.inputs[name], self.values[name]
        self._replay()

    def _replay(self) -> None:
        """Everything anew from what is written: a failed statement may have written in place."""
        self.model = nn.Module()
        self.space["self"] = self.model
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, made in self.parts.items():
                self._build(name, made)
            for name, made in self.inputs.items():
                self.values[name] = self.space[name] = eval(made, self.space)
            try:
                for statement in self.statements:
                    exec(statement.code, self.space)
                    for name in statement.makes:
                        self.values[name] = self.space[name]
            except Exception as error:  # it depends on what values happen to be: no program
                raise Skip from error


def _is_trained_leaf(t: Any) -> bool:
    return isinstance(t, torch.Tensor) and t.is_leaf and t.requires_grad


def _made(value: Any) -> Made:
    if not isinstance(value, torch.Tensor):
        return Made((), "", False)
    dtype = str(value.dtype).removeprefix("torch.")
    return Made(tuple(value.shape), dtype, value.requires_grad)
