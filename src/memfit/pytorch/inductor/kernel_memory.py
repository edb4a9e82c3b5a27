"""Peak memory of the code that Inductor generates, by playing it.

The code of a pass is a Python function, `call`, which allocates buffers, runs kernels on them,
gives the memory of dead buffers to new ones (`buf5 = buf3; del buf3`) and deletes the rest. Memory
is free when no name refers to it any more. What an order of kernels predicts (`kernel_order`) is
close to that; this is what happens.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Buffers", "Moment", "play"]

_ENTRY = "call"
_ARGUMENTS = "args"
_VIEW = "reinterpret_tensor"
# Allocations and generated loops; all other calls may have workspaces.
_PLAIN = ("empty_strided", "cpp_fused", "triton_")


@dataclass(frozen=True)
class Buffers:
    """What the names in generated code stand for.

    Attributes:
        size_bytes: of each buffer that is not a part or a view of another one.
        parts: for results of several buffers, the names of these.
        views: for results that share the memory of what they are made from, the names of that.
        workspace_bytes: what kernels take beside what they read and write, by the names of their
            results, or of what they write in place.
        inputs: for each input that is freed after its last use, the storage that it lies in and
            that storage's bytes; inputs of one storage share it.
        held: storages of inputs that outlive the code.
    """

    size_bytes: Mapping[str, int]
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    views: Mapping[str, Sequence[str]] = field(default_factory=dict)
    workspace_bytes: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    held: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Moment:
    """A kernel at work.

    Attributes:
        line: its place in the code.
        live_bytes: everything alive, its results and its workspace included.
    """

    line: int
    live_bytes: int


def play(code: str, buffers: Buffers) -> list[Moment]:
    """Bytes alive at the start, and while each kernel of generated code runs.

    Args:
        code: the generated module, whose function `call` is what runs.
        buffers: what its names stand for.

    Raises:
        ValueError: the code has no such function, or runs others of its own.
    """
    functions = [
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.FunctionDef) and node.name == _ENTRY
    ]
    if len(functions) != 1:
        raise ValueError(f"generated code has {len(functions)} functions {_ENTRY!r}, not one")
    player = _Player(buffers)
    player.run(functions[0].body)
    return player.moments


class _Player:
    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self.moments: list[Moment] = []
        self.live_bytes = 0
        self._size: dict[str, int] = {}
        self._names: Counter[str] = Counter()  # by storage, the names that refer to it
        self._storages: dict[str, frozenset[str]] = {}  # by name

    def run(self, body: Iterable[ast.stmt]) -> None:
        for statement in body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self._assign(name, value)
                case ast.Assign(
                    targets=[ast.Tuple(elts=names) | ast.List(elts=names)],
                    value=ast.Name(id=value),
                ) if value == _ARGUMENTS:
                    self._begin([n.id for n in names if isinstance(n, ast.Name)], statement.lineno)
                case ast.Expr(value=ast.Call() as call):
                    self._call(call, _named(call))
                case ast.Delete(targets=targets):
                    for target in targets:
                        if isinstance(target, ast.Name):
                            self._forget(target.id)
                case ast.With(body=inner):
                    self.run(inner)
                case _:
                    pass

    def _begin(self, names: Sequence[str], line: int) -> None:
        for name in names:
            if name in self.buffers.inputs:
                storage, size = self.buffers.inputs[name]
                self._allocate(storage, size)
                self._refer(name, frozenset([storage]))
        for storage in self.buffers.held & self._size.keys():
            self._names[storage] += 1
        self.moments.append(Moment(line, self.live_bytes))

    def _assign(self, name: str, value: ast.expr) -> None:
        match value:
            case ast.Name(id=other):
                self._refer(name, self._of(other))
            case ast.Subscript(value=ast.Name(id=whole)):
                parts = self._of(whole)
                self._refer(name, parts & {name} or parts)
            case ast.Call(func=ast.Name(id=function), args=[ast.Name(id=other), *_]) if (
                function == _VIEW
            ):
                self._refer(name, self._of(other))
            case ast.Call() as call:
                made = self._made(name)
                for storage in made - self._size.keys():
                    self._allocate(storage, self.buffers.size_bytes.get(storage, 0))
                shared = (self._of(other) for other in self.buffers.views.get(name, ()))
                self._refer(name, made.union(*shared))
                self._call(call, [name])

    def _made(self, name: str) -> frozenset[str]:
        """Storages that the result of a call is made of, its own ones only."""
        if name in self.buffers.views:
            return frozenset()
        return frozenset(self.buffers.parts.get(name, (name,)))

    def _call(self, call: ast.Call, names: Iterable[str]) -> None:
        function = ast.unparse(call.func)
        workspace = 0
        if not function.startswith(_PLAIN):
            named = {*names, *_named_outputs(call)}
            workspace = max((self.buffers.workspace_bytes.get(n, 0) for n in named), default=0)
        self.moments.append(Moment(call.lineno, self.live_bytes + workspace))

    def _of(self, name: str) -> frozenset[str]:
        return self._storages.get(name, frozenset())

    def _allocate(self, storage: str, size: int) -> None:
        if storage not in self._size:
            self._size[storage] = size
            self.live_bytes += size

    def _refer(self, name: str, storages: frozenset[str]) -> None:
        self._names.update(storages)
        self._forget(name)
        self._storages[name] = storages

    def _forget(self, name: str) -> None:
        for storage in self._storages.pop(name, ()):
            self._names[storage] -= 1
            if not self._names[storage]:
                self.live_bytes -= self._size.pop(storage)


def _named(call: ast.Call) -> list[str]:
    """Names that a call is given by position, what they are views of included."""
    return [n.id for a in call.args for n in ast.walk(a) if isinstance(n, ast.Name)]


def _named_outputs(call: ast.Call) -> list[str]:
    return [
        n.id
        for keyword in call.keywords
        if keyword.arg is not None and keyword.arg.startswith("out")
        for n in ast.walk(keyword.value)
        if isinstance(n, ast.Name)
    ]
