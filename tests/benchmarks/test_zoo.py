"""The zoo says what trained, how near to plain PyTorch, and why the rest did not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from support.benchmarks import benchmark_module


def seen(loss: float, gradient: list[float], buffer: float = 0.0) -> Any:
    return benchmark_module("zoo.verdicts").Seen(
        torch.tensor(loss), {"w": torch.tensor(gradient)}, {"b": torch.tensor(buffer)}
    )


@pytest.mark.parametrize(
    ("ours", "verdict", "where"),
    [
        (seen(1.0, [2.0, 0.5]), "bitwise", ""),
        (seen(1.0, [2.0, 0.50001]), "order of summation", "step 1, gradient w"),
        (seen(1.0, [2.0, 0.51]), "wrong", "step 1, gradient w"),
        (seen(1.1, [2.0, 0.5]), "wrong", "step 1, the loss"),
        (seen(1.0, [2.0, 0.5], 1.0), "wrong", "step 1, buffer b"),
        (seen(1.0, [float("nan"), 0.5]), "wrong", "step 1, gradient w"),
        (seen(1.0, [2.0]), "wrong", "step 1, gradient w"),
    ],
)
def test_a_verdict_names_the_largest_difference(ours: Any, verdict: str, where: str) -> None:
    found = benchmark_module("zoo.verdicts").compare([ours], [seen(1.0, [2.0, 0.5])])
    assert (found.verdict, found.where) == (verdict, where)


def test_a_gradient_that_only_one_of_them_has_is_wrong() -> None:
    verdicts = benchmark_module("zoo.verdicts")
    ours = verdicts.Seen(torch.tensor(1.0), {}, {})
    theirs = verdicts.Seen(torch.tensor(1.0), {"w": torch.zeros(2)}, {})
    assert verdicts.compare([ours], [theirs]).verdict == "wrong"


@pytest.mark.parametrize(
    ("log", "notes", "rung", "modules"),
    [
        ([], [], "one graph", ()),
        (
            ["cannot be traced at a.py:3 (Unsupported): a (A); each runs as one op"],
            ["a (A) cannot be traced and runs as one op, kept: 1 KiB for its backward pass"],
            "opaque modules",
            ("a (A)",),
        ),
        (
            [
                "cannot be traced (Unsupported): the A; each",
                "the A: blocks inside are computed again",
            ],
            [],
            "opaque modules, in pieces",
            (),
        ),
        (["a step of A runs as plain PyTorch, without a plan, and"], [], "plain PyTorch", ()),
    ],
)
def test_a_rung_is_read_from_what_memfit_says(
    log: list[str], notes: list[str], rung: str, modules: tuple[str, ...]
) -> None:
    found = benchmark_module("zoo.rungs").stands_on(log, notes)
    assert (found.rung, found.modules) == (rung, modules)


def test_names_are_unique_and_groups_have_titles() -> None:
    registry = benchmark_module("zoo.registry")
    names = registry.names()
    assert len(set(names)) == len(names) >= 120
    assert registry.asked(["operators", "gpt2", "gpt2"]) == [
        *registry.names_of("operators"),
        "gpt2",
    ]
    with pytest.raises(KeyError):
        registry.asked(["no-such-model"])


def test_an_architecture_is_trained_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path))
    step = benchmark_module("zoo.step")
    step.seed(0)
    row = benchmark_module("zoo.training").row_of(
        benchmark_module("zoo.registry").make_of("variational-autoencoder")()
    )
    assert (row["outcome"], row["held"], row["rung"]) == ("trained", True, "one graph")
    assert row["verdict"] in ("bitwise", "order of summation")
    assert row["resident_bytes"] + row["fitted_peak_bytes"] <= row["budget_bytes"]
    json.dumps(row)


def test_what_plain_pytorch_cannot_train_is_told() -> None:
    training = benchmark_module("zoo.training")
    endless = benchmark_module("zoo.step").Step(
        nn.Linear(2, 1), lambda: (torch.full((3, 2), float("inf")), torch.zeros(3, 1)), nn.MSELoss()
    )
    with pytest.raises(training.PlainFails, match="the loss is"):
        training.row_of(endless)


def test_a_process_that_ends_early_leaves_a_row() -> None:
    pool = benchmark_module("zoo.pool")
    assert pool.row_from('{"outcome": "trained"}\n', "", 0) == {"outcome": "trained"}
    crashed = pool.row_from("", "warning\nSegmentation fault\n", -11)
    assert crashed == {
        "outcome": "crashed",
        "error": "exit status -11",
        "line": "Segmentation fault",
    }


def row(**changes: Any) -> dict[str, Any]:
    trained = {
        "group": "language",
        "packages": ["transformers"],
        "outcome": "trained",
        "budget": "60%",
        "budget_bytes": 6 * 2**20,
        "resident_bytes": 2**20,
        "plain_peak_bytes": 9 * 2**20,
        "fitted_peak_bytes": 5 * 2**20,
        "verdict": "bitwise",
        "difference": 0.0,
        "difference_in": "",
        "held": True,
        "rung": "one graph",
        "opaque": [],
        "overhead_planned": 0.25,
        "plain_ms": 10.0,
        "fitted_ms": 13.0,
        "first_step_s": 2.0,
    }
    return {**trained, **changes}


def test_the_page_counts_and_names_what_did_not_train() -> None:
    rows = {
        "gpt2": row(),
        "llama": row(budget="smallest feasible", verdict="order of summation", difference=2e-6),
        "opt": row(held=False, opaque=["the OPT"], rung="opaque modules"),
        "ctrl": {
            "group": "language",
            "outcome": "refused",
            "error": "CaptureError",
            "line": "no graph",
        },
        "phi": {"group": "language", "outcome": "not installed", "line": "No module named 'x'"},
    }
    text = benchmark_module("zoo.page").page({"rows": rows}, list(rows))
    assert "| Language models | 4 | 2 | 3 | 2 | 2 | 1 | 0 |" in text
    assert (
        "| gpt2 | transformers | bitwise | one graph | 9.0 | 5.0 | 60% | 1.25 | 1.30 | 2.0 |"
        in text
    )
    assert "| llama | transformers | 2e-06 | one graph | 9.0 | 5.0 | 60% (smallest) |" in text
    assert "5.0 **over**" in text
    assert "- opt: the OPT" in text
    assert "- ctrl: `refused: CaptureError: no graph`" in text
    assert "- phi: `not installed: No module named 'x'`" in text
