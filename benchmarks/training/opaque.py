"""What a module that cannot be traced costs: it runs as one op in the middle of a GPT-like model.

Two models that compute the same, with one block of six in the middle that Dynamo can trace, and
that it cannot: steps with an ample budget, interleaved, every second round in reverse order. Then
tight budgets for the second one, and for a stack of blocks of which some are left out by chance
(LayerDrop), all of it one op whose blocks are computed again. Asserts: losses and gradients are
bitwise those of plain PyTorch, the opaque block costs at most 5% of the traced step's time at an
ample budget, and measured peaks are within budgets.

Run `python -m benchmarks.training.opaque [--quick] [--report]`; it writes
benchmarks/results/opaque.json and docs/benchmarks/opaque.md.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import memfit
from benchmarks.lib.harness import (
    MIB,
    command_line,
    interleaved,
    medians,
    ratios,
    read_results,
    step_facts,
    table,
    write_page,
    write_results,
)
from memfit.pytorch.cost.measure import measure_step, steady_allocator

LIMIT_PERCENT = 5.0
ROUNDS, QUICK_ROUNDS = 41, 15
WARMUP = 3
WIDTH, HEADS, DEPTH, TOKENS, BATCH, WORDS = 128, 4, 6, 64, 8, 512
SHARES = ("85%", "70%")
LAYER_DROP_SHARES = ("60%",)
RESULTS, PAGE = "opaque", "opaque.md"


class Block(nn.Module):
    """Attention and two layers, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape of its input."""
        split = x.shape[0], x.shape[1], HEADS, WIDTH // HEADS
        q, k, v = (t.view(split).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(WIDTH, 2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


@torch.compiler.disable
def unseen() -> None:
    """What Dynamo does not go into."""


class Untraceable(Block):
    """The same, which Dynamo cannot trace."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape of its input."""
        unseen()
        return super().forward(x)


class Gpt(nn.Module):
    """Blocks on tokens, and the loss of the next one."""

    def __init__(self, middle: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        kinds = [middle if i == DEPTH // 2 else Block for i in range(DEPTH)]
        self.blocks = nn.Sequential(*(kind() for kind in kinds))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The loss."""
        at = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.words(tokens) + self.places(at)))
        scores = F.linear(x[:, :-1], self.words.weight)
        return F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())


class LayerDrop(nn.Module):
    """Blocks, of which each is left out with a chance of one in ten."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH + 2))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The loss."""
        x = self.words(tokens)
        for block in self.blocks:
            if torch.rand([]) >= 0.1:
                x = block(x)
        scores = F.linear(x[:, :-1], self.words.weight)
        return F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())


def processor_ms(step: Callable[[], object]) -> float:
    """Processor time of a step, which other processes do not disturb."""
    began = time.process_time_ns()
    step()
    return (time.process_time_ns() - began) / 1e6


def tokens() -> torch.Tensor:
    return torch.randint(0, WORDS, (BATCH, TOKENS))


def trained(module: nn.Module, call: Callable[..., torch.Tensor], given: torch.Tensor) -> Any:
    """Loss and gradients of one step."""
    module.zero_grad()
    torch.manual_seed(1)
    loss = call(given)
    loss.backward()
    params = list(module.parameters())
    return [loss.detach(), *(None if p.grad is None else p.grad.clone() for p in params)]


def check_equal(ours: Any, theirs: Any, what: str) -> None:
    pairs = zip(ours, theirs, strict=True)
    assert all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs), what


def step_of(module: nn.Module, call: Callable[..., torch.Tensor], given: torch.Tensor) -> Any:
    def step() -> None:
        module.zero_grad()
        torch.manual_seed(1)
        call(given).backward()

    return step


def ample(rounds: int) -> dict[str, Any]:
    """Times of the opaque step beside the traced one."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    opaque, given = Gpt(Untraceable), tokens()
    traced = Gpt(Block)
    traced.load_state_dict(opaque.state_dict())
    plain = copy.deepcopy(traced)
    modules = {"opaque": opaque, "traced": traced}
    calls: dict[str, Any] = {
        name: memfit.fit(m, budget=2**50, cost="analytic") for name, m in modules.items()
    }
    theirs = trained(plain, plain, given)
    for name, module in modules.items():
        check_equal(trained(module, calls[name], given), theirs, name)
    assert any("one op" in note for note in calls["opaque"].plan.notes)
    assert not any("one op" in note for note in calls["traced"].plan.notes)
    modules["plain"], calls["plain"] = plain, plain
    steps = {name: step_of(m, calls[name], given) for name, m in modules.items()}
    with steady_allocator():
        found = interleaved(
            {name: partial(processor_ms, step) for name, step in steps.items()},
            rounds,
            warmup=WARMUP,
        )
    middle = medians(found)
    paired = statistics.median(ratios(found["opaque"], found["traced"]))
    return {
        **{f"{name}_ms": middle[name] for name in steps},
        "overhead_percent": 100 * (paired - 1),
        "rounds": rounds,
    }


def tight(name: str, make: Callable[[], nn.Module], budget: str | int, rounds: int) -> Any:
    """A model within a budget: peaks, and times beside plain PyTorch's."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, given = make(), tokens()
    plain = copy.deepcopy(module)
    fitted = memfit.fit(module, budget=budget)
    check_equal(trained(module, fitted, given), trained(plain, plain, given), f"{name} {budget}")
    plan, resident = fitted.plan, fitted.graph.resident_bytes
    steps = {"memfit": step_of(module, fitted, given), "plain": step_of(plain, plain, given)}
    peaks = {
        key: resident + measure_step(step, reset=partial(m.zero_grad, set_to_none=True)).peak_bytes
        for (key, step), m in zip(steps.items(), (module, plain), strict=True)
    }
    with steady_allocator():
        found = interleaved(
            {key: partial(processor_ms, step) for key, step in steps.items()}, rounds, warmup=WARMUP
        )
    (note,) = [one for one in plan.notes if "one op" in one]
    return {
        "model": name,
        "budget": budget if isinstance(budget, str) else "smallest",
        "budget_bytes": plan.budget_bytes,
        "predicted_bytes": plan.peak_bytes,
        "measured_bytes": peaks["memfit"],
        "plain_bytes": peaks["plain"],
        "predicted_overhead_percent": plan.overhead_percent,
        "measured_overhead_percent": 100
        * (statistics.median(ratios(found["memfit"], found["plain"])) - 1),
        "opaque": "run again" if "run again" in note else "kept",
        "in_pieces": "one by one" in note,
    }


def smallest(make: Callable[[], nn.Module]) -> int:
    torch._dynamo.reset()
    torch.manual_seed(0)
    return memfit.plan(make(), (tokens(),), budget=2**50).smallest_feasible_budget_bytes


def page(document: dict[str, Any]) -> str:
    """The results as a page."""
    first = document["ample"]
    rows = [
        (
            row["model"],
            row["budget"],
            f"{row['budget_bytes'] / MIB:.2f}",
            f"{row['predicted_bytes'] / MIB:.2f}",
            f"{row['measured_bytes'] / MIB:.2f}",
            f"{row['plain_bytes'] / MIB:.2f}",
            row["opaque"] + (", in pieces" if row["in_pieces"] else ""),
            f"{row['predicted_overhead_percent']:.0f}%",
            f"{row['measured_overhead_percent']:.0f}%",
        )
        for row in document["tight"]
    ]
    head = ("model", "budget", "MiB", "predicted", "measured", "plain", "opaque part")
    head = (*head, "overhead predicted", "measured")
    lines = [
        "# Modules that cannot be traced",
        "",
        "Made by `python -m benchmarks.training.opaque`; the raw figures are in",
        "`benchmarks/results/opaque.json`. A GPT-like model whose middle block (one of six)",
        "cannot be traced runs that block [as one op](../any-model.md#opaque-modules). Beside it,",
        "the same model with a block that is traced. Losses and gradients are bitwise plain",
        f"PyTorch's everywhere on this page. torch {document['torch']}, {document['machine']}, "
        f"{document['threads']} threads.",
        "",
        "## With an ample budget",
        "",
        f"A step takes {first['opaque_ms']:.1f} ms of processor time with the opaque block, "
        f"{first['traced_ms']:.1f} ms with the traced one and {first['plain_ms']:.1f} ms in plain",
        f"PyTorch: the op costs **{first['overhead_percent']:+.1f}%** (median of the ratios of "
        f"{first['rounds']} interleaved rounds; at most {LIMIT_PERCENT:.0f}% is asserted).",
        "",
        "## With a tight budget",
        "",
        "Peaks in MiB, of the whole step with parameters, as planned and as measured. Shares are",
        "of the plain step. Overhead is planned against the step without anything that runs again,",
        "and measured against plain PyTorch (which also pays for calling modules, where memfit",
        "does not). LayerDrop leaves blocks out by chance: all of it is one op; in pieces, its",
        "blocks are computed again one by one.",
        "",
        *table(head, rows, 2),
    ]
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Measure, print, write, and say whether the limits hold."""
    parser = command_line(__doc__, quick=f"{QUICK_ROUNDS} rounds", report=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(words)
    if options.report:
        write_page(PAGE, page(read_results(RESULTS)))
        return 0
    torch.set_num_threads(options.threads)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    first = ample(rounds)
    print(
        f"ample: opaque {first['opaque_ms']:.2f} ms, traced {first['traced_ms']:.2f} ms, plain "
        f"{first['plain_ms']:.2f} ms: {first['overhead_percent']:+.2f}%",
        flush=True,
    )
    gpt = partial(Gpt, Untraceable)
    rows = []
    cases = [("GPT", gpt, budget) for budget in (*SHARES, smallest(gpt))]
    cases += [("LayerDrop", LayerDrop, budget) for budget in LAYER_DROP_SHARES]
    for name, make, budget in cases:
        row = tight(name, make, budget, max(5, rounds // 3))
        rows.append(row)
        print(
            f"{name} {row['budget']}: {row['budget_bytes'] / MIB:.2f} MiB, predicted "
            f"{row['predicted_bytes'] / MIB:.2f}, measured {row['measured_bytes'] / MIB:.2f}, "
            f"{row['opaque']}{', in pieces' if row['in_pieces'] else ''}, overhead predicted "
            f"{row['predicted_overhead_percent']:.1f}%, measured "
            f"{row['measured_overhead_percent']:.1f}%",
            flush=True,
        )
    document = {**step_facts(), "ample": first, "tight": rows}
    write_results(RESULTS, document)
    write_page(PAGE, page(document))
    broken = [
        f"{row['model']} {row['budget']}: measured peak above the budget"
        for row in rows
        if row["measured_bytes"] > row["budget_bytes"]
    ]
    if first["overhead_percent"] > LIMIT_PERCENT:
        broken.append(f"the op costs {first['overhead_percent']:.1f}%, over {LIMIT_PERCENT}%")
    print("\n".join(broken) or "all promises kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
