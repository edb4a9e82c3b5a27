"""A random program as data, and as a Python module that a person can run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from programs.helpers import HELPERS

__all__ = ["Made", "Program", "Statement", "in_float64", "source", "used_names"]

NAME = re.compile(r"\b[vx]\d+\b")
PART = re.compile(r"\bself\.([a-z]+\d+)\b")


@dataclass(frozen=True)
class Made:
    """What a statement leaves in a variable: enough to put something else in its place."""

    shape: tuple[int, ...]
    dtype: str
    grad: bool


@dataclass(frozen=True)
class Statement:
    """One statement of `forward`, of one or more lines.

    Attributes:
        op: the grammar's name of it.
        code: its text.
        makes: the variables that it makes.
    """

    op: str
    code: str
    makes: Mapping[str, Made] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A model, its inputs, and how it is trained.

    Attributes:
        seed: where it came from.
        dtype: PyTorch's default dtype while it is built and run.
        parts: parameters, buffers and modules: attribute name -> expression. One that begins with
            `!` is a whole statement.
        inputs: name -> expression.
        statements: the forward pass.
        result: expression that `forward` returns.
        loss: expression of `out` and `target` given to `fit` as its loss; empty without one.
        target: expression of the target; empty without a loss.
        objective: expression of `out` that is differentiated outside; empty where `forward` or
            `loss` gives the loss itself.
        accumulate: the second step adds to the first one's gradients.
        update: parameters change between the steps, as an optimizer would change them.
    """

    seed: int
    dtype: str
    parts: Mapping[str, str]
    inputs: Mapping[str, str]
    statements: tuple[Statement, ...]
    result: str
    loss: str = ""
    target: str = ""
    objective: str = ""
    accumulate: bool = False
    update: bool = False

    def to_json(self) -> str:
        """The program as JSON."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> Program:
        """The program that `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        statements = tuple(
            Statement(
                s["op"],
                s["code"],
                {n: Made(tuple(m["shape"]), m["dtype"], m["grad"]) for n, m in s["makes"].items()},
            )
            for s in data.pop("statements")
        )
        return Program(statements=statements, **data)

    def trimmed(self) -> Program:
        """Without inputs and parts that nothing names."""
        text = "\n".join([*(s.code for s in self.statements), self.result])
        names = used_names([text])
        inputs = {n: e for n, e in self.inputs.items() if n in names}
        parts: dict[str, str] = {}
        wanted = text
        for name, made in reversed(self.parts.items()):
            if name in PART.findall(wanted) or name in PART.findall(made.partition("=")[0]):
                parts[name] = made
                wanted += "\n" + made
        return replace(self, inputs=inputs, parts=dict(reversed(parts.items())))


def used_names(texts: Iterable[str]) -> set[str]:
    """The variables that some lines name."""
    return {name for text in texts for name in NAME.findall(text)}


def _indented(text: str, by: int) -> str:
    return "\n".join(" " * by + line for line in text.splitlines())


def source(program: Program) -> str:
    """The program as a Python module: `Program()`, `inputs()`, and what is differentiated."""
    body = "\n".join(_indented(s.code, 8) for s in program.statements)
    text = "\n".join([*program.parts.values(), body, program.result, program.loss])
    helpers = [h for name, h in HELPERS.items() if re.search(rf"\b{name}\b", text)]
    parts = []
    for name, made in program.parts.items():
        if made.startswith("!"):
            parts.append(_indented(made[1:], 8))
        else:
            parts.append(f"        self.{name} = {made}")
    inputs = ",\n".join(f"        {made}" for made in program.inputs.values())
    given = ", ".join(program.inputs)
    lines = [
        f'"""Random program {program.seed}."""',
        "import torch",
        "import torch.nn.functional as F",
        "from torch import nn",
        "",
        f"torch.set_default_dtype(torch.{program.dtype})",
        "",
        *helpers,
        "",
        "class Program(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *parts,
        "",
        f"    def forward(self{', ' + given if given else ''}):",
        *([body] if program.statements else []),
        f"        return {program.result}",
        "",
        "",
        "def inputs():",
        f"    return [\n{inputs},\n    ]",
        "",
    ]
    if program.loss:
        lines += [
            "",
            f"def loss(out, target):\n    return {program.loss}",
            "",
            "",
            f"def target():\n    return {program.target}",
            "",
        ]
    if program.objective:
        lines += ["", f"def objective(out):\n    return {program.objective}", ""]
    return "\n".join(lines)


def in_float64(program: Program) -> Program:
    """The same program with every floating-point number in double precision."""

    def wide(text: str) -> str:
        text = text.replace('torch.autocast("cpu", dtype=torch.bfloat16)', "torch.enable_grad()")
        text = re.sub(r"torch\.(float32|bfloat16|float16)\b", "torch.float64", text)
        text = re.sub(r"torch\.(complex64)\b", "torch.complex128", text)
        return re.sub(r"\.(float|bfloat16|half)\(\)", ".double()", text)

    statements = tuple(replace(s, code=wide(s.code)) for s in program.statements)
    return replace(
        program,
        dtype="float64",
        parts={n: wide(t) for n, t in program.parts.items()},
        inputs={n: wide(t) for n, t in program.inputs.items()},
        statements=statements,
        result=wide(program.result),
        loss=wide(program.loss),
        target=wide(program.target),
        objective=wide(program.objective),
    )
