"""Nested strategies beside revolve and equal segments: recompute factor against memory.

    python -m benchmarks.recurrence.planning            # all of it, some minutes
    python -m benchmarks.recurrence.planning --quick    # short chains; the rest keeps its rows

Writes benchmarks/results/recurrence_planning.json, docs/benchmarks/recurrence-planning.md and a
picture beside it.

- *chain*: an alike step holds a state of 1 MiB and records 8 MiB that its backward reads, as a
  recurrent cell does. The graph is real, plans are whole schedules, peaks are simulated.
- *states*: the chain of theory, where a recording counts as nothing. Only numbers of steps: ours by
  the chain's dynamic program, revolve's by its closed form.
- *networks*: ResNet152 and DenseNet161, as published with the paper and captured from PyTorch.

The *forward work* is that of all forward ops that run, over that of one forward pass.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.lib.captures import CACHE
from benchmarks.lib.harness import (
    MIB,
    command_line,
    read_results,
    reference_folder,
    write_results,
)
from benchmarks.recurrence.from_papers import gruslys_mixed, sqrt_checkpointing
from memfit import _core
from memfit._core.problem import ChainUnit
from memfit.errors import InfeasibleBudgetError
from memfit.graph.graph_file import read_graph
from memfit.graph.plain import store_all_order
from memfit.graph.plan import Plan
from memfit.graph.simulator import peak_of_order
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.planners import PlannerOptions, get_planner
from memfit.planners.liveness import planner as liveness_dp
from memfit.planners.nested import planner as nested_dp
from memfit.planners.nested.table import EFFORT, build_nested
from memfit.strategies.binomial import forward_steps

STATE, RECORDING = MIB, 8 * MIB
RESULTS = "recurrence_planning"
SHARES = (0.0012, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
OPTIONS = PlannerOptions()


def recurrence(steps: int) -> TrainingGraph:
    """A chain of alike steps with a loss at its end."""
    values = [Value("x", STATE, ValueKind.INPUT), Value("tangent", 0, ValueKind.TANGENT)]
    ops: list[Op] = []

    def value(name: str, size: int, kind: ValueKind, is_output: bool = False) -> int:
        values.append(Value(name, size, kind, is_output))
        return len(values) - 1

    states, recordings = [0], []
    for i in range(steps):
        recordings.append(value(f"r{i}", RECORDING, ValueKind.ACTIVATION))
        made = value(f"x{i}", STATE, ValueKind.ACTIVATION)
        outputs = (recordings[-1], made)
        ops.append(Op(f"f{i}", "step", Phase.FORWARD, (states[-1],), outputs, 1))
        states.append(made)
    loss = value("loss", 4, ValueKind.ACTIVATION, True)
    ops.append(Op("loss", "loss", Phase.FORWARD, (states[-1],), (loss,), 0))
    g = value("g", STATE, ValueKind.GRADIENT)
    ops.append(Op("dloss", "dloss", Phase.BACKWARD, (1, states[-1]), (g,), 0, forward_op=steps))
    for i in reversed(range(steps)):
        below = value(f"g{i}", STATE, ValueKind.GRADIENT)
        reads = (g, recordings[i], states[i])
        ops.append(Op(f"b{i}", "dstep", Phase.BACKWARD, reads, (below,), 2, forward_op=i))
        g = below
    return TrainingGraph(tuple(values), tuple(ops), "unit", f"recurrence of {steps} steps")


def plain_bytes(graph: TrainingGraph) -> int:
    """Peak of the plain step beyond what is resident."""
    return peak_of_order(graph, store_all_order(graph)) - graph.resident_bytes


def described(plan: Plan, graph: TrainingGraph, began: float) -> dict[str, Any]:
    """Peak and work of a plan."""
    plan.schedule.validate(graph)
    return {
        "bytes": plan.peak_bytes - graph.resident_bytes,
        "work": 1 + plan.overhead / graph.forward_cost,
        "most_recomputations": plan.most_recomputations,
        "slots": plan.provenance.get("slots"),
        "planner": plan.planner,
        "seconds": round(time.perf_counter() - began, 2),
    }


def chain(steps: int) -> dict[str, Any]:
    """Plans of an unrolled chain at shares of the plain peak."""
    graph = recurrence(steps)
    plain = plain_bytes(graph)
    began = time.perf_counter()
    table = liveness_dp.table_for(graph, OPTIONS)
    single_s = time.perf_counter() - began
    began = time.perf_counter()
    plans = build_nested(graph, EFFORT[_core.core_name()])
    nested_s = time.perf_counter() - began
    rows = []
    for share in SHARES:
        budget = graph.resident_bytes + int(share * plain)
        row: dict[str, Any] = {"share": share, "nested": None, "revolve": None, "proven": None}
        try:
            began = time.perf_counter()
            plan = nested_dp.plan_from_tables(table, plans, budget, began)
            row["nested"] = described(plan, graph, began)
            began = time.perf_counter()
            plan = get_planner("revolve")(graph, budget, OPTIONS)
            row["revolve"] = described(plan, graph, began)
            row["proven"] = forward_steps(steps, plan.provenance["slots"]) / steps
        except InfeasibleBudgetError as error:
            print(f"{steps} steps, {share:.2%}: {error}", file=sys.stderr)
        if row["nested"]:
            rows.append(row)
            print(steps, row, file=sys.stderr)
    segments = []
    for k in sorted({max(1, round(steps * s)) for s in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3)}):
        runs, longest = sqrt_checkpointing(steps, k)
        # States of the segments, one segment's recordings and states, a gradient.
        alive = (k - 1) * STATE + longest * (STATE + RECORDING) + STATE
        segments.append({"bytes": alive, "work": runs / steps, "segments": k})
    return {
        "steps": steps,
        "plain_bytes": plain,
        "smallest_single_bytes": table.fixed_bytes
        + table.stages.smallest_budget()
        - graph.resident_bytes,
        "single_seconds": round(single_s, 2),
        "nested_seconds": round(nested_s, 2),
        "rows": rows,
        "segments": segments,
    }


def states(lengths: tuple[int, ...], slots: int) -> list[dict[str, Any]]:
    """Least numbers of runs of a step, ours and the proven ones."""
    result = []
    longest = max(lengths)
    began = time.perf_counter()
    unit = ChainUnit(1, 1, 0, 0, 0, ((1,), (0,)))
    table = _core.chain_table(unit, longest, None, slots + 1)
    seconds = time.perf_counter() - began
    every = range(1, longest + 1) if longest <= 2_000 else lengths
    pairs = [(n, s) for n in every for s in range(1, slots + 1)]
    equal = sum(table.reversal_cost(n, s) == forward_steps(n, s) for n, s in pairs)
    more = sum((table.reversal_cost(n, s) or 0) > forward_steps(n, s) for n, s in pairs)
    result.append(
        {
            "longest": longest,
            "slots": slots,
            "pairs": len(pairs),
            "equal": equal,
            "more": more,
            "seconds": round(seconds, 2),
            "examples": [
                {
                    "steps": n,
                    "slots": s,
                    "ours": table.reversal_cost(n, s),
                    "proven": forward_steps(n, s),
                }
                for n in lengths
                for s in (1, 2, 4, 8, 16, 32)
                if s <= slots
            ],
        }
    )
    return result


def mixed(steps: int, memories: tuple[int, ...], recording: int) -> list[dict[str, Any]]:
    """Ours beside the optimum of Gruslys et al. where recordings may be stored too."""
    unit = ChainUnit(
        1,
        1,
        recording,
        recording,
        recording,
        ((1,), (recording,)),
        staged=[(1, recording + 1, recording, recording)],
    )
    most = max(memories)
    table = _core.chain_table(unit, steps, None, most + 1)
    return [
        {
            "memory": m,
            "ours": table.reversal_cost(steps, m),
            "gruslys_mixed": gruslys_mixed(steps, m, recording + 1),
            "revolve": forward_steps(steps, m),
        }
        for m in memories
    ]


def any_schedule_bytes(graph: TrainingGraph) -> tuple[int, str]:
    """A bound that no schedule which runs backward ops once can beat, and the op that sets it.

    While an op runs, alive beyond what is resident are its inputs, outputs and workspace, finished
    gradients of ops that must have run before, and gradients that such ops made and ops which must
    come after read.
    """
    count, ops = graph.forward_count, graph.ops
    writers: dict[int, list[int]] = {}
    before: list[int] = []
    for b, op in enumerate(graph.backward_ops):
        mask = 0
        for v in (*op.inputs, *op.outputs):
            for w in writers.get(v, ()):
                if v in op.inputs:
                    mask |= before[w] | 1 << w
        before.append(mask)
        for v in op.outputs:
            writers.setdefault(v, []).append(b)
    best = (0, "")
    for b, op in enumerate(graph.backward_ops):
        alive = {*op.inputs, *op.outputs}
        for v, made in writers.items():
            if any(before[b] >> w & 1 for w in made):
                readers = [r - count for r in graph.consumers[v] if r >= count]
                if graph.values[v].is_output or any(before[r] >> b & 1 for r in readers):
                    alive.add(v)
        size = sum(graph.values[v].size_bytes for v in alive if not graph.values[v].kind.resident)
        best = max(best, (size + op.workspace_bytes, ops[count + b].name))
    return best


def networks() -> Iterator[dict[str, Any]]:
    """The smallest peaks of real networks."""
    files = [reference_folder() / "graphs" / f"cg_{name}.txt" for name in ("resnet152", "densenet")]
    files += sorted(CACHE.glob("torch-resnet152-*.graph.json"))
    files += sorted(CACHE.glob("torch-densenet161-*.graph.json"))
    for file in files:
        if not file.is_file():
            print(f"{file} is not there", file=sys.stderr)
            continue
        graph = read_graph(file)
        single = liveness_dp.trade_off(graph, OPTIONS)
        began = time.perf_counter()
        plans = build_nested(graph, EFFORT[_core.core_name()])
        seconds = time.perf_counter() - began
        smallest = nested_dp.candidate(plans, len(plans.front[0]) - 1)
        resident = graph.resident_bytes
        bound, op = any_schedule_bytes(graph)
        gradients = smallest.timeline.peak_parts()["parameter_gradients"]
        yield {
            "name": file.name.split(".")[0],
            "plain_bytes": plain_bytes(graph),
            "single_bytes": single.points[0].budget_bytes - resident,
            "single_work": 1 + single.points[0].overhead / graph.forward_cost,
            "nested_bytes": smallest.peak_bytes - resident,
            "nested_work": 1 + smallest.overhead / graph.forward_cost,
            "nested_most": smallest.schedule.most_recomputations,
            "gradient_bytes": gradients,
            "bound_bytes": bound,
            "bound_op": op,
            "seconds": round(seconds, 2),
        }


def quick_run(known: dict[str, Any]) -> dict[str, Any]:
    """Short chains measured again, and the other rows of `known`."""
    return {
        "core": _core.core_name(),
        "states": states((10, 100, 500, 2_000), 64) + known.get("states", [])[1:],
        "mixed": mixed(200, (12, 16, 24, 40, 80, 200), 8),
        "chains": [chain(100), *known.get("chains", [])[1:]],
        "networks": known.get("networks", []),
    }


def whole_run() -> dict[str, Any]:
    """All of it."""
    return {
        "core": _core.core_name(),
        "states": states((10, 100, 500, 2_000), 64) + states((1_000, 10_000, 99_999, 100_000), 40),
        "mixed": mixed(200, (12, 16, 24, 40, 80, 200), 8),
        "chains": [chain(steps) for steps in (100, 512, 2_000)],
        "networks": list(networks()),
    }


def main() -> None:
    parser = command_line(__doc__, quick="short chains; the rest is kept", report=True)
    args = parser.parse_args()
    if not args.report:
        data = quick_run(read_results(RESULTS, {})) if args.quick else whole_run()
        write_results(RESULTS, data)
    from benchmarks.recurrence.page import write_pages

    write_pages(read_results(RESULTS))


if __name__ == "__main__":
    main()
