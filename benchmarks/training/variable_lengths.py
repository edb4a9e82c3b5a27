"""Training on sentences of many lengths: an encoder-decoder Transformer within one budget.

Batches of pairs of sequences of 16 to 512 tokens, padded to one of a few lengths (buckets), about
the same number of tokens in each batch. Three questions, for 200 batches each:

- Is every batch's measured peak within the budget, and are gradients those of plain PyTorch?
- What share of training time goes into planning, where the buckets are planned ahead
  (`memfit.fit(..., shapes=[...])`), counted after that warm-up?
- What share, where nothing is planned ahead and each bucket is met in training?

Run `python -m benchmarks.training.variable_lengths [--batches N]`; it writes
benchmarks/results/variable-lengths.json and docs/benchmarks/variable-lengths.md. `--report` writes
the page alone.
"""

from __future__ import annotations

import copy
import os
import random
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import memfit
from benchmarks.lib.harness import (
    MIB,
    command_line,
    read_results,
    say,
    step_facts,
    write_page,
    write_results,
)
from memfit.pytorch.api.fitted import FittedModule
from memfit.pytorch.cost.measure import measure_step, steady_allocator

BUCKETS = (16, 32, 64, 128, 256, 512)
TOKENS = 2048
WORDS = 512
BUDGET_PERCENT = 60  # of the plain peak of the largest bucket
LIMIT_PERCENT = 5.0
SAMPLED = 20  # gradients of every so many batches are compared
TOLERANCE = 1e-6
RESULTS, PAGE = "variable-lengths", "variable-lengths.md"
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Translator(nn.Module):
    """Embeddings, `nn.Transformer`, and a head."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.source = nn.Embedding(WORDS, width)
        self.target = nn.Embedding(WORDS, width)
        self.place = nn.Embedding(max(BUCKETS), width)
        self.body = nn.Transformer(width, 4, layers, layers, 4 * width, 0.1, batch_first=True)
        self.head = nn.Linear(width, WORDS)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Logits of each next token; token 0 is padding."""
        place = self.place.weight[: source.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=torch.bool)
        padding = source == 0
        decoded = self.body(
            self.source(source) + place,
            self.target(target) + place,
            tgt_mask=mask,
            tgt_is_causal=True,  # found out from the mask's data otherwise
            src_key_padding_mask=padding,
            tgt_key_padding_mask=target == 0,
            memory_key_padding_mask=padding,
        )
        return self.head(decoded)


def loss_of(logits: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=0)


def shape_of(length: int) -> tuple[torch.Tensor, ...]:
    """What a batch of a bucket looks like."""
    rows = max(1, TOKENS // length)
    return tuple(torch.empty(rows, length, dtype=torch.int64, device="meta") for _ in range(3))


def batch_of(bucket: int, randomness: random.Random) -> Batch:
    """Sentences whose longest falls into a bucket, padded to it."""
    rows = max(1, TOKENS // bucket)
    least = bucket // 2 + 1 if bucket > BUCKETS[0] else 8

    def sentences() -> torch.Tensor:
        made = torch.zeros(rows, bucket, dtype=torch.int64)
        for row in made:
            length = randomness.randint(least, bucket)
            row[:length] = torch.tensor([randomness.randint(1, WORDS - 1) for _ in range(length)])
        return made

    source, target = sentences(), sentences()
    following = torch.cat([target[:, 1:], torch.zeros(rows, 1, dtype=torch.int64)], 1)
    return source, target, following


def batches(count: int, seed: int) -> list[Batch]:
    """So many batches, of every bucket in turn and in random order."""
    randomness = random.Random(seed)
    order = [BUCKETS[i % len(BUCKETS)] for i in range(count)]
    randomness.shuffle(order)
    return [batch_of(bucket, randomness) for bucket in order]


def train(fitted: FittedModule, data: list[Batch]) -> list[float]:
    """Seconds of every training step, optimizer included."""
    optimizer = torch.optim.AdamW(fitted.parameters(), lr=1e-4)
    seconds = []
    for one in data:
        began = time.perf_counter()
        optimizer.zero_grad()
        fitted(*one).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def seconds_of(plans: list[Any], *kinds: str) -> float:
    return float(sum(p.provenance["shape"]["seconds"][kind] for p in plans for kind in kinds))


def shares(fitted: FittedModule, seconds: list[float], before: int) -> dict[str, Any]:
    """What planning took of training."""
    new = fitted.plans[before:]
    total = sum(seconds)
    planning, costs = seconds_of(new, "planning"), seconds_of(new, "costs")
    return {
        "batches": len(seconds),
        "training_seconds": total,
        "median_step_seconds": statistics.median(seconds),
        "shapes_compiled_in_training": len(new),
        "planning_seconds": planning,
        "costs_seconds": costs,
        "capture_seconds": seconds_of(new, "capture"),
        "planning_percent": 100 * planning / total,
        "planning_and_costs_percent": 100 * (planning + costs) / total,
    }


def described(fitted: FittedModule) -> list[dict[str, Any]]:
    return [
        {
            **plan.provenance["shape"],
            "overhead_percent": plan.overhead_percent,
            "plain_peak_bytes": plan.plain_peak_bytes,
            "predicted_peak_bytes": plan.peak_bytes,
            "notes": list(plan.notes),
        }
        for plan in fitted.plans
    ]


def largest_difference(
    fitted: FittedModule, model: nn.Module, plain: nn.Module, one: Batch
) -> float:
    """Largest difference of a gradient from plain PyTorch's, relative to its largest entry."""
    plain.load_state_dict(model.state_dict())
    found = []
    for module, run in (
        (model, lambda: fitted(*one)),
        (plain, lambda: loss_of(plain(*one[:-1]), one[-1])),
    ):
        torch.manual_seed(7)
        module.zero_grad()
        run().backward()
        found.append([p.grad for p in module.parameters()])
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for a, b in zip(*found, strict=True)
    )


def checked(fitted: FittedModule, model: nn.Module, data: list[Batch]) -> list[dict[str, Any]]:
    """Every batch's measured peak, and gradients of some."""
    plain = copy.deepcopy(model)
    rows = []
    for index, one in enumerate(data):
        step = measure_step(
            lambda one=one: fitted(*one).backward(), warmup=0, reset=fitted.zero_grad
        )
        assert fitted.graph is not None
        row: dict[str, Any] = {
            "inputs": "x".join(map(str, one[0].shape)),
            "peak_bytes": step.peak_bytes + fitted.graph.resident_bytes,
        }
        if index % SAMPLED == 0:
            row["gradient_difference"] = largest_difference(fitted, model, plain, one)
        rows.append(row)
        if len(rows) % SAMPLED == 0:
            worst = max(r["peak_bytes"] for r in rows)
            say(f"measured {len(rows)} batches, largest peak {worst / MIB:.1f} MiB")
    return rows


def run(count: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Translator()
    data = batches(count, seed=1)
    optimizer = torch.optim.AdamW(model.parameters())
    largest = batch_of(max(BUCKETS), random.Random(0))
    plain_peak = memfit.plan(
        model, largest, loss_of, budget=2**50, optimizer=optimizer
    ).plain_peak_bytes
    budget = plain_peak * BUDGET_PERCENT // 100
    say(f"budget {budget / MIB:.1f} MiB of {plain_peak / MIB:.1f} MiB for the largest bucket")

    def fitted(**options: Any) -> FittedModule:
        torch._dynamo.reset()
        return memfit.fit(model, loss_of, budget=budget, optimizer=optimizer, **options)

    ahead = fitted(shapes=[shape_of(length) for length in BUCKETS])
    began = time.perf_counter()
    train(ahead, data[:1])
    warm_up = time.perf_counter() - began
    say(f"planned {len(ahead.plans)} shapes ahead in {warm_up:.1f} s")
    with steady_allocator():
        planned = shares(ahead, train(ahead, data), len(BUCKETS))
    say(f"ahead: {planned}")
    rows = checked(ahead, model, data)
    ahead_plans = described(ahead)
    os.environ["MEMFIT_CACHE"] = "0"
    met = fitted()
    with steady_allocator():
        cold = shares(met, train(met, data), 0)
    say(f"met in training: {cold}")
    return {
        "budget_bytes": budget,
        "plain_peak_bytes": plain_peak,
        "buckets": list(BUCKETS),
        "tokens_a_batch": TOKENS,
        "ahead": {"warm_up_seconds": warm_up, **planned, "plans": ahead_plans},
        "met_in_training": {**cold, "plans": described(met)},
        "batches": rows,
    }


def verdicts(result: dict[str, Any]) -> dict[str, bool]:
    rows = result["batches"]
    return {
        "every batch within the budget": all(
            row["peak_bytes"] <= result["budget_bytes"] for row in rows
        ),
        f"planning at most {LIMIT_PERCENT:g}% of training time after warm-up": result["ahead"][
            "planning_and_costs_percent"
        ]
        <= LIMIT_PERCENT,
        "gradients as eager's": all(row.get("gradient_difference", 0) <= TOLERANCE for row in rows),
        "no compilation after warm-up": result["ahead"]["shapes_compiled_in_training"] == 0,
    }


def page(result: dict[str, Any]) -> str:
    """docs/benchmarks/variable-lengths.md."""
    rows, ahead, met = result["batches"], result["ahead"], result["met_in_training"]
    budget = result["budget_bytes"]
    worst = max(row["peak_bytes"] for row in rows)
    sampled = [row["gradient_difference"] for row in rows if "gradient_difference" in row]
    lines = [
        "# Variable lengths",
        "",
        "Written by `python -m benchmarks.training.variable_lengths`; figures are in",
        "`benchmarks/results/variable-lengths.json`.",
        "",
        "An encoder-decoder Transformer (2 + 2 layers, width 64, dropout 0.1) trained on "
        f"{len(rows)}",
        f"batches of about {result['tokens_a_batch']} tokens, padded to {len(result['buckets'])}",
        f"lengths from {min(result['buckets'])} to {max(result['buckets'])}, within "
        f"{budget / MIB:.1f} MiB ({BUDGET_PERCENT}% of what the",
        f"longest takes plainly). PyTorch {result['torch']}, {result['threads']} threads of "
        f"{result['machine']}.",
        "",
        f"- Largest measured peak of a batch: {worst / MIB:.1f} MiB, "
        f"{100 * worst / budget:.1f}% of the budget; "
        f"{sum(row['peak_bytes'] <= budget for row in rows)} of {len(rows)} batches within it.",
        f"- Gradients of {len(sampled)} sampled batches differ from eager's by at most "
        f"{max(sampled):.1e} of each one's largest entry.",
        f"- Planned ahead, which took {ahead['warm_up_seconds']:.0f} s: in the {ahead['batches']} "
        f"batches after that, {ahead['shapes_compiled_in_training']} compilations and "
        f"{ahead['planning_and_costs_percent']:.1f}% of the time in planning.",
        f"- Met in training, nothing planned ahead and no plans on disk, {met['batches']} batches "
        f"in {met['training_seconds']:.0f} s: planning {met['planning_seconds']:.2f} s "
        f"({met['planning_percent']:.1f}%), costs of ops {met['costs_seconds']:.1f} s, capture by "
        f"PyTorch {met['capture_seconds']:.0f} s.",
        "",
    ]
    for title, part in (("Planned ahead", ahead), ("Met in training", met)):
        lines += [
            f"## {title}",
            "",
            "| inputs | how | overhead | plain peak, MiB | capture, s | costs, s | planning, s |",
            "|---|---|---|---|---|---|---|",
        ]
        for plan in part["plans"]:
            took = plan["seconds"]
            lines.append(
                f"| {plan['inputs'].split(',')[0]} | {plan['how']} | "
                f"{plan['overhead_percent']:.1f}% | {plan['plain_peak_bytes'] / MIB:.1f} | "
                f"{took['capture']:.1f} | {took['costs']:.2f} | {took['planning']:.3f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write, and say whether the limits hold."""
    parser = command_line(__doc__, report=True)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.report:
        write_page(PAGE, page(read_results(RESULTS)))
        return 0
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEMFIT_CACHE_DIR"] = folder
        result = run(options.batches)
    result = {**step_facts(), **result}
    write_results(RESULTS, result)
    write_page(PAGE, page(result))
    found = verdicts(result)
    for text, holds in found.items():
        say(f"{'yes' if holds else 'NO '}  {text}")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
