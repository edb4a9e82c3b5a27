"""The text format of the computation graphs that Kusumoto et al. published with their 2019 paper.

It has no times and no sizes for what the backward pass computes, so the paper's cost model is used:
an op costs 10 where its function's name starts with `Conv` and 1 otherwise; a backward op costs
what its forward op does; a gradient has the size of its value. Only variables that a function
produces are values: inputs and parameters have no producer and are left out, and so are parameter
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from memfit.errors import GraphError, GraphFileError
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind

__all__ = ["bare_graph", "graph_from_published"]


_CONVOLUTION_COST = 10


_OTHER_COST = 1


@dataclass(frozen=True, slots=True)
class _Function:
    line: int
    name: str
    variables: tuple[tuple[int, str], ...]
    results: tuple[int, ...]


class _Lines:
    """The lines of a text graph, read one by one, with checks that name the line."""

    def __init__(self, text: str, where: str) -> None:
        self._lines = text.splitlines()
        self._where = where
        self.number = 0
        self.variables = 0

    def fail(self, rule: str, remedy: str) -> NoReturn:
        raise GraphFileError(f"{self._where}, line {self.number}: {rule}; {remedy}")

    def next(self, what: str) -> str:
        self.number += 1
        if self.number > len(self._lines):
            self.number = len(self._lines)
            self.fail(f"the file ends where {what} is due", "it is truncated, get it again whole")
        return self._lines[self.number - 1]

    def whole_number(self, text: str, what: str) -> int:
        if not (text.isascii() and text.isdigit()):
            self.fail(f"{what} is {text[:40]!r}, not a whole number", "write digits only")
        return int(text)

    def variable(self, text: str) -> int:
        number = self.whole_number(text, "a variable's id")
        if number >= self.variables:
            self.fail(f"variable {number} does not exist", f"use ids 0 to {self.variables - 1}")
        return number

    def pair(self, what: str) -> tuple[int, int]:
        parts = self.next(what).split()
        if len(parts) != 2:
            self.fail(f"{what} has {len(parts)} fields", "write two numbers")
        return self.whole_number(parts[0], what), self.whole_number(parts[1], what)

    def function(self, direction: str) -> _Function:
        found = self.next("a function").strip()
        if found != direction:
            self.fail(
                f"{found[:40]!r} stands where a {direction} function is due",
                "the first half of the functions is forward, the second backward",
            )
        line = self.number
        inputs, outputs = self.pair("the numbers of a function's variables")
        variables = []
        for _ in range(inputs):
            parts = self.next("a function's variable").split(maxsplit=1)
            if len(parts) != 2:
                self.fail("a function's variable needs an id and a kind", "write both")
            kind = parts[1].strip()
            if direction == "backward" and kind not in ("gradient", "input", "output"):
                self.fail(f"kind {kind[:40]!r} is unknown", "write gradient, input or output")
            variables.append((self.variable(parts[0]), kind))
        results = tuple(
            self.variable(self.next("a function's result").strip()) for _ in range(outputs)
        )
        name = self.next("a function's name").strip()
        self.next("a function's arguments")
        return _Function(line, name, tuple(variables), results)

    def end(self) -> None:
        for line in self._lines[self.number :]:
            self.number += 1
            if line.strip():
                self.fail(f"{line[:40]!r} stands after the last function", "remove it")


def graph_from_published(
    text: str, *, where: str = "the graph", name: str = "graph"
) -> TrainingGraph:
    """Read a graph of the published text format; see the module's docstring for the cost model.

    Forward ops stand in reverse depth-first postorder: a branch is finished before the next one is
    begun, as a program would write it. Backward ops stand in the opposite order; each reads its
    value's gradient and the forward values that the file's backward function names, and writes
    the gradients of the values that its forward op reads. The gradient of a value that nothing
    reads is written by a `seed` op, which costs nothing.

    Args:
        text: the file's text.
        where: where the text came from, for messages.
        name: the graph's name.

    Raises:
        GraphFileError: the text breaks a rule of the format, or has a cycle.
    """
    lines = _Lines(text, where)
    lines.variables, functions = lines.pair("the numbers of variables and functions")
    if functions % 2:
        lines.fail(f"{functions} functions", "there must be as many backward as forward ones")
    sizes: dict[int, int] = {}
    for _ in range(lines.variables):
        parts = lines.next("a variable").split(maxsplit=2)
        if len(parts) != 3:
            lines.fail(f"a variable has {len(parts)} fields", "write id, bytes and name")
        variable = lines.variable(parts[0])
        if variable in sizes:
            lines.fail(f"variable {variable} is listed twice", "list each id once")
        sizes[variable] = lines.whole_number(parts[1], "a variable's size")
    forward = [lines.function("forward") for _ in range(functions // 2)]
    backward = [lines.function("backward") for _ in range(functions // 2)]
    lines.end()

    producer: dict[int, int] = {}
    for i, function in enumerate(forward):
        lines.number = function.line
        if len(function.results) != 1:
            lines.fail(f"{function.name} has {len(function.results)} results", "it must have one")
        if function.results[0] in producer:
            lines.fail(f"variable {function.results[0]} is produced twice", "produce it once")
        producer[function.results[0]] = i
        lines.number = backward[i].line
        if backward[i].name != function.name:
            lines.fail(
                f"backward function {backward[i].name} stands where that of {function.name} is due",
                "list the backward functions in the order of the forward ones",
            )
    order = _program_order(lines, forward, producer)
    return _assemble(lines, order, forward, backward, producer, sizes, name)


def _program_order(
    lines: _Lines, forward: Sequence[_Function], producer: dict[int, int]
) -> list[int]:
    """Produced variables in reverse depth-first postorder along the edges."""
    readers: dict[int, list[int]] = {v: [] for v in producer}
    for function in forward:
        for v, _ in function.variables:
            if v in readers:
                readers[v].append(function.results[0])
    finished: list[int] = []
    state: dict[int, int] = {}
    for root in sorted(producer):
        if root in state:
            continue
        state[root] = 1
        stack = [(root, iter(readers[root]))]
        while stack:
            v, rest = stack[-1]
            for w in rest:
                if state.get(w) == 1:
                    lines.number = forward[producer[w]].line
                    lines.fail(
                        f"variable {w} depends on itself, through variable {v}",
                        "a graph of one training step has no cycle",
                    )
                if w not in state:
                    state[w] = 1
                    stack.append((w, iter(readers[w])))
                    break
            else:
                state[v] = 2
                finished.append(v)
                stack.pop()
    finished.reverse()
    return finished


def _assemble(
    lines: _Lines,
    order: Sequence[int],
    forward: Sequence[_Function],
    backward: Sequence[_Function],
    producer: dict[int, int],
    sizes: dict[int, int],
    name: str,
) -> TrainingGraph:
    position = {v: i for i, v in enumerate(order)}

    def positions(variables: Sequence[tuple[int, str]]) -> list[int]:
        return sorted({position[v] for v, _ in variables if v in position})

    targets = [forward[producer[v]].name for v in order]
    reads = [
        [entry for entry in backward[producer[v]].variables if entry[1] != "gradient"]
        for v in order
    ]
    try:
        return bare_graph(
            [positions(forward[producer[v]].variables) for v in order],
            [sizes[v] for v in order],
            [_CONVOLUTION_COST if t.startswith("Conv") else _OTHER_COST for t in targets],
            [positions(variables) for variables in reads],
            targets=targets,
            names=[f"{target}_{v}" for target, v in zip(targets, order, strict=True)],
            name=name,
        )
    except GraphError as error:
        lines.number = 1
        lines.fail(str(error), "get the file again")


def bare_graph(
    predecessors: Sequence[Sequence[int]],
    size_bytes: Sequence[int],
    costs: Sequence[int],
    backward_reads: Sequence[Sequence[int]],
    *,
    targets: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    name: str = "graph",
) -> TrainingGraph:
    """The training graph of a forward graph with one value an op.

    The backward op of v reads the gradient of v and the forward values that it needs, writes the
    gradients of v's predecessors, and costs what v does; a gradient has its value's size. The
    gradient of a value that nothing reads is written by a `seed` op, which costs nothing. Backward
    ops stand in the opposite order of forward ops.

    Args:
        predecessors: for each op, the ops that it reads; all smaller than the op.
        size_bytes: for each op, bytes of its value.
        costs: for each op, its cost in the paper's units.
        backward_reads: for each op, the ops whose values its backward op reads.
        targets: for each op, what it computes; `op` where left out.
        names: for each op, its name; target and number where left out.
        name: the graph's name.

    Raises:
        GraphError: the graph breaks a rule of `TrainingGraph`.
    """
    count = len(size_bytes)
    targets = ["op"] * count if targets is None else targets
    names = [f"{t}_{i}" for i, t in enumerate(targets)] if names is None else names
    values = [Value(n, b, ValueKind.ACTIVATION) for n, b in zip(names, size_bytes, strict=True)]
    values += [Value(f"{v.name}.grad", v.size_bytes, ValueKind.GRADIENT) for v in values]
    read = {p for before in predecessors for p in before}
    ops = [
        Op(names[i], targets[i], Phase.FORWARD, tuple(predecessors[i]), (i,), costs[i])
        for i in range(count)
    ]
    for i in range(count - 1, -1, -1):
        if i not in read:
            tangent = len(values)
            values.append(Value(f"{names[i]}.tangent", 0, ValueKind.TANGENT))
            ops.append(
                Op(
                    name=f"{names[i]}.seed",
                    target="seed",
                    phase=Phase.BACKWARD,
                    inputs=(tangent,),
                    outputs=(count + i,),
                    cost=0,
                    forward_op=i,
                )
            )
        ops.append(
            Op(
                name=f"{names[i]}.backward",
                target=f"{targets[i]}.backward",
                phase=Phase.BACKWARD,
                inputs=(*backward_reads[i], count + i),
                outputs=tuple(count + p for p in predecessors[i]),
                cost=costs[i],
                forward_op=i,
            )
        )
    return TrainingGraph(tuple(values), tuple(ops), "unit", name)
