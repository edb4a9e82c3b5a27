"""What random programs found, in small: each trains as plain PyTorch does under every planner."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from programs.check import Pair, check
from programs.program import Program, Statement, source

PLANNERS = ("auto", "liveness", "exact", "approximate", "chen", "revolve", "salimans-memory")
PAIRS: tuple[Pair, ...] = tuple((p, "smallest") for p in PLANNERS)


@dataclass(frozen=True)
class Case:
    """Lines of a forward pass, what the module holds, and inputs x0, x1, …"""

    lines: tuple[str, ...]
    result: str
    parts: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("torch.randn(8, 4).requires_grad_()",)
    measured: bool = False
    dtype: str = "float32"


def buffer(name: str, value: str) -> dict[str, str]:
    """A part that is a buffer."""
    return {name: f'!self.register_buffer("{name}", {value})'}


LAYER = {"m1": "nn.Linear(4, 4)"}

CASES = {
    "a buffer is given other memory": Case(
        ("self.b1.data = self.b1 + x0.detach().mean(0)", "v1 = F.softmax(x0 + self.b1, -1)"),
        "self.m1(v1).tanh().pow(2).sum()",
        buffer("b1", "torch.zeros(4)") | LAYER,
    ),
    "a buffer is read before it is given other memory": Case(
        (
            "v1 = F.softmax(x0 * self.b1, -1)",
            "v2 = torch.sin(v1 * x0)",
            "self.b1.data = v2.detach().mean(0) + 1",
        ),
        "self.m1(v2 * self.b1).pow(2).sum()",
        buffer("b1", "torch.ones(4)") | LAYER,
    ),
    "a buffer is given a part of a larger tensor": Case(
        ("v1 = self.m1(x0).tanh()", "self.b1.data = v1.detach().exp()[0]"),
        "(v1.sin() * self.b1).pow(2).sum()",
        buffer("b1", "torch.ones(4)") | LAYER,
        measured=True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_trains_as_plain_pytorch(name: str) -> None:
    case = CASES[name]
    program = Program(
        11,
        case.dtype,
        case.parts,
        {f"x{i}": x for i, x in enumerate(case.inputs)},
        tuple(Statement("line", line) for line in case.lines),
        case.result,
    )
    verdict = check(program, PAIRS, measured=case.measured, fresh=True)
    assert verdict.status == "right", (verdict.message, verdict.findings, source(program))
    assert verdict.runs > len(PAIRS) // 2
