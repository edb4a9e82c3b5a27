"""The fuzzer of programs itself: what it makes is what it says, and what is wrong it finds."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from memfit.pytorch import eager_graph
from programs import exchange
from programs.check import check
from programs.draft import OPS, Draft
from programs.generate import generate
from programs.program import Made, Program, Statement, in_float64, source
from programs.shrink import shrink

TESTS = Path(__file__).parents[2]


def program(code: str, result: str, **more: Any) -> Program:
    """Two linear layers and a line between them."""
    made = Made((16, 8), "float32", True)
    statements = (
        Statement("linear", "v1 = self.m1(x0).tanh()", {"v1": made}),
        Statement("line", code, {"v2": made}),
        Statement("linear", "v3 = self.m2(v2).sin()", {"v3": made}),
    )
    parts = {"m1": "nn.Linear(8, 8)", "m2": "nn.Linear(8, 8)"}
    return Program(5, "float32", parts, {"x0": "torch.randn(16, 8)"}, statements, result, **more)


def test_a_seed_gives_one_program_which_is_kept_as_json() -> None:
    for seed in range(20):
        first, second = generate(seed), generate(seed)
        assert first == second
        if first is not None:
            again = Program.from_json(first.to_json())
            assert source(again) == source(first)


def draft(seed: int) -> Draft:
    """Values of several shapes and types for ops to work on."""
    torch.manual_seed(seed)
    made = Draft(Random(seed))
    shapes = ("16, 8", "2, 4, 6", "2, 4, 8, 8", "8", "3, 4, 4")
    for i, shape in enumerate(shapes):
        made.input(f"torch.randn({shape})" + (".requires_grad_()" if i % 2 else ""))
    for name in ("linear", "cast", "unary"):
        made.add(name, OPS[name][1])
    return made


@pytest.mark.parametrize("name", OPS)
def test_every_op_of_the_grammar_can_be_written(name: str) -> None:
    assert any(draft(seed).add(name, OPS[name][1]) for seed in range(80))


@pytest.mark.slow
def test_the_source_runs_by_itself(tmp_path: Path) -> None:
    made = generate(3)
    assert made is not None
    path = tmp_path / "made.py"
    path.write_text(source(made) + "\nprint(Program()(*inputs()) is not None)\n", encoding="utf-8")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_double_precision_reaches_every_number() -> None:
    made = in_float64(program("v2 = v1.to(torch.bfloat16).float()", "v3.sum()"))
    assert "bfloat16" not in source(made)
    assert "v1.to(torch.float64).double()" in source(made)


def test_a_right_program_is_right() -> None:
    verdict = check(program("v2 = F.dropout(v1, 0.5)", "v3.sum()"), measured=True, fresh=True)
    assert verdict.status == "right"
    assert verdict.runs >= 4


def test_what_is_refused_is_counted_by_its_cause() -> None:
    verdict = check(program("v2 = v1 if torch.rand([]) > 0.5 else -v1", "v3.sum()"))
    assert verdict.status == "refused"
    assert verdict.cause.startswith("CaptureError")


def test_what_plain_pytorch_refuses_is_thrown_away() -> None:
    assert check(program("v2 = v1 @ v1", "v3.sum()")).status == "unfit"


def doubled(lower: Any) -> Any:
    """Lowering that doubles the results of `sin` where they are computed again."""

    def wrong(*args: Any) -> Any:
        modules = lower(*args)
        for node in modules[1].graph.nodes:
            if node.target is torch.ops.aten.sin.default:
                with modules[1].graph.inserting_after(node):
                    twice = modules[1].graph.call_function(torch.ops.aten.mul.Tensor, (node, 2))
                node.replace_all_uses_with(twice)
                twice.args = (node, 2)
        modules[1].recompile()
        return modules

    return wrong


@pytest.mark.slow
def test_a_wrong_recomputation_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "lower", doubled(exchange.lower))
    monkeypatch.setattr(eager_graph, "lower", doubled(eager_graph.lower))
    made = program("v2 = v1.sin() * v1", "(v3 * v3.cos()).sum()")
    verdict = check(made)
    wrong = next(f for f in verdict.findings if f.kind == "wrong")
    small = shrink(made, wrong, measured=False, seconds=20)
    assert len(small.statements) < len(made.statements)
    assert check(small).findings


def test_a_lost_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made = program("v2 = v1 * 2", "v3.sum()")
    kept = exchange.EagerGraph.capture

    def without(self: Any, *args: Any) -> Any:
        step = kept(self, *args)
        (end,) = step.joint.graph.find_nodes(op="output")
        end.args = ((*end.args[0][:-2], None, *end.args[0][-1:]),)
        return step

    monkeypatch.setattr(exchange.EagerGraph, "capture", without)
    assert any("missing" in f.cause for f in check(made).findings)


def test_a_peak_over_the_budget_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    step_graph = exchange.Capture.graph.fget

    def smaller(self: exchange.Capture) -> Any:
        graph = step_graph(self)
        values = tuple(
            v if v.kind.resident else dataclasses.replace(v, size_bytes=v.size_bytes // 2)
            for v in graph.values
        )
        return dataclasses.replace(graph, values=values)

    monkeypatch.setattr(exchange.Capture, "graph", property(smaller))
    verdict = check(program("v2 = v1 + 1", "v3.sum()"), measured=True)
    assert "over budget" in {f.kind for f in verdict.findings}


def test_double_precision_leaves_the_program_in_its_own_type() -> None:
    """Gradients that cancel differ in their last bits, so that the program runs in both types."""
    made = program("v2 = nn.functional.batch_norm(v1, None, None, training=True)", "v2.sum()")
    verdict = check(dataclasses.replace(made, accumulate=True))
    assert verdict.status == "right"
