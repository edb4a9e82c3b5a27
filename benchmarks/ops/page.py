"""The page of `run`, and the list of ops that memfit need not look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.ops.verdicts import VERDICTS, trusted

__all__ = ["page", "surveyed_text"]

HEAD = """# PyTorch's ops: what is traced, and what kernels return

Made by `python -m benchmarks.ops.run` with PyTorch {torch}; all of it, with an example of each
difference, is in `benchmarks/results/ops.json`.

memfit traces a step on tensors without data. What an op returns there is told by a function beside
its kernel, and for some ops the two differ. This is the list: {entries} entries of PyTorch's own op
database (`torch.testing._internal.common_methods_invocations.op_db`), up to {samples} samples of
each, {runs:,} runs, forward and backward, in {calls:,} distinct calls of {overloads} ATen
overloads. Tensors are contiguous, transposed, channels last, sliced (with offset and gaps),
expanded, of batch size 1, empty, and mixed; gradients are laid out like the output, otherwise, and
as those of a sum are. Types are float32, with one sample in bfloat16 and one in float64; the device
is the CPU. Compared are sizes, types, strides, offsets, which memory is shared, the bytes of the
storages, and whether the op raises. An op that writes in place is also compared as the one without
side effects that tracing makes of it.

[Correctness](correctness.md#why) says what follows for training.

## Verdicts

An overload has the worst verdict of its calls, from top to bottom.

| verdict | overloads | meaning |
|---|---:|---|
"""


def page(survey: Mapping[str, Any]) -> str:
    """The page of a survey."""
    lines = [
        HEAD.format(torch=survey["torch"], samples=survey["samples"], **survey["totals"]).rstrip(
            "\n"
        )
    ]
    for name, meaning in VERDICTS.items():
        lines.append(f"| {name} | {survey['verdicts'][name]} | {meaning} |")
    lines += ["", "## Differences", "", *_differences(survey["differences"])]
    lines += ["", "## Ops that differ", "", *_rows(survey["ops"])]
    lines += ["", "## Kernels that end the process", "", *_crashes(survey["crashes"])]
    return "\n".join(lines) + "\n"


def _differences(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = [
        "Overloads with at least one call of which PyTorch's fake result says something else than "
        "the kernel's,",
        "and those of which what memfit traces still does.",
        "",
        "| difference | PyTorch | memfit |",
        "|---|---:|---:|",
    ]
    names = sorted({*found["fake"], *found["told"]})
    return lines + [
        f"| {n} | {found['fake'].get(n, 0)} | {found['told'].get(n, 0)} |" for n in names
    ]


def _rows(ops: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "*Calls*: distinct calls that differ, of all. *Left*: what still differs while memfit "
        "traces.",
        "",
        "| overload | verdict | calls | differs in | left |",
        "|---|---|---:|---|---|",
    ]
    for name, op in ops.items():
        kinds = op.get("differs", ())
        if op["verdict"] == "same" or not kinds:
            continue
        differing = sum(kind["calls"] for kind in kinds)
        fake, told = (_union(kinds, side) for side in ("fake", "told"))
        lines.append(
            f"| `{name}` | {op['verdict']} | {differing}/{op['calls']} | {fake} | {told} |"
        )
    return lines


def _union(kinds: Sequence[Mapping[str, Any]], side: str) -> str:
    return ", ".join(sorted({d for kind in kinds for d in kind[side]}))


def _crashes(crashes: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "With these arguments eager ends, too; each lost its own run only.",
        "",
        "| overload | signal | runs |",
        "|---|---:|---|",
    ]
    for crash in crashes:
        runs = "; ".join(crash["runs"][:3]) + ("; …" if len(crash["runs"]) > 3 else "")
        lines.append(f"| `{crash['op']}` | {-crash['status']} | {runs} |")
    return lines


def surveyed_text(survey: Mapping[str, Any]) -> str:
    """The list that `memfit.pytorch.layouts.as_traced` reads."""
    head = (
        "# Overloads whose results are laid out as tracing is told. Written by\n"
        f"# benchmarks/ops/run.py with PyTorch {survey['torch']}; see docs/ops.md.\n"
    )
    return head + "\n".join(trusted(survey)) + "\n"
