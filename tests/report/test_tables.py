from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

from memfit.graph.plan import Plan, PlanStatus, Stage, make_plan
from memfit.graph.schedule import make_schedule
from memfit.graph.training_graph import Op, Phase, Source, TrainingGraph, Value, ValueKind
from memfit.report import (
    DemoRow,
    demo_row,
    demo_table,
    plan_table,
    print_tables,
    stages_table,
    verify_table,
)

MIB = 2**20
GRAPH = TrainingGraph(
    (
        Value("x", 5 * MIB, ValueKind.INPUT),
        Value("a", 40 * MIB, ValueKind.ACTIVATION),
        Value("loss", 4, ValueKind.ACTIVATION, is_output=True),
        Value("t", 4, ValueKind.TANGENT),
        Value("g", 40 * MIB, ValueKind.GRADIENT, is_output=True),
    ),
    (
        Op("f", "exp", Phase.FORWARD, (0,), (1,), 3_000_000),
        Op("l", "sum", Phase.FORWARD, (1,), (2,), 1_000_000),
        Op(
            "b",
            "mul",
            Phase.BACKWARD,
            (1, 3),
            (4,),
            4_000_000,
            source=Source(file="model.py", line=7),
        ),
    ),
)


def plan(**changes: Any) -> Plan:
    made = make_plan(
        GRAPH,
        make_schedule(GRAPH, [0, 1], [0, 2]),
        planner="liveness",
        family="pruned+prefix",
        mode=None,
        status=PlanStatus.OPTIMAL_IN_FAMILY,
        budget_bytes=100 * MIB,
        smallest_feasible_budget_bytes=90 * MIB,
        lower_sets=3,
        stages=(Stage(1, "f[0]", "f[0]", 0, 3_000_000), Stage(1, "l", "l", 4, 0)),
        seconds=0.5,
    )
    return replace(made, **{"plain_peak_bytes": 170 * MIB, **changes})


def text_of(*tables: Table, terminal: bool = False) -> str:
    stream = io.StringIO()
    colors = "standard" if terminal else None
    console = Console(file=stream, force_terminal=terminal, width=140, color_system=colors)
    print_tables(console, *tables)
    return stream.getvalue()


def lines_of(*tables: Table) -> list[str]:
    return [" ".join(line.split()) for line in text_of(*tables).splitlines()]


def test_plan_shows_peak_parts_and_overhead() -> None:
    lines = lines_of(plan_table(plan()))
    assert "predicted peak of the step 85.0 MiB (50.0% of the plain step's 170.0 MiB)" in lines
    assert "recomputed 40.0 MiB (47.1%)" in lines
    assert "parameter gradients 40.0 MiB (47.1%)" in lines
    assert "inputs 5.00 MiB (5.9%)" in lines
    assert not any(line.startswith("optimizer") for line in lines)
    assert "overhead 3.00 ms (+37.5% of a step of 8.00 ms)" in lines
    assert "smallest feasible budget 90.0 MiB" in lines
    assert "status OPTIMAL_IN_FAMILY" in lines


def test_plan_shows_mode_units_and_notes() -> None:
    made = plan(mode="memory", cost_unit="unit", notes=("family [all] was too large",))
    lines = lines_of(plan_table(made))
    assert "planner liveness, mode memory" in lines
    assert "note family [all] was too large" in lines
    assert "overhead 3000000 units (+37.5% of a step of 8000000 units)" in lines


def test_stages_are_listed_in_order_with_names_as_they_are() -> None:
    lines = lines_of(stages_table(plan()))
    assert "1 1 f[0] f[0] 0 B 3.00 ms" in lines
    assert "2 1 l l 4 B 0 ns" in lines


def test_a_very_long_list_of_stages_says_what_it_leaves_out() -> None:
    stages = tuple(Stage(1, f"op{i}", f"op{i}", i, 0) for i in range(1, 101))
    lines = lines_of(stages_table(plan(stages=stages)))
    shown = [line for line in lines if line[:1].isdigit()]
    assert len(shown) == 40
    assert shown[19].startswith("20 ")
    assert shown[20].startswith("81 ")
    assert "… 60 stages left out" in lines


def result(**changes: Any) -> Any:
    """The figures of a verification that the tables read."""
    figures = {
        "budget_bytes": 100 * MIB,
        "within_budget": True,
        "gradients_equal": True,
        "plain_gradients_equal": False,
        "plain_largest_difference": 2.5e-7,
        "plain_largest_difference_in": "down.0.weight",
        "buffers_equal": True,
        "plain_peak_bytes": 170 * MIB,
        "captured_peak_bytes": 169 * MIB,
        "planned_peak_bytes": 85 * MIB,
        "predicted_peak_bytes": 86 * MIB,
        "prediction_error_percent": 1.25,
        "plain_time_ns": 8_000_000,
        "captured_time_ns": 9_000_000,
        "planned_time_ns": 11_000_000,
        "measured_overhead_percent": 22.2,
        "predicted_overhead_percent": 37.5,
    }
    return SimpleNamespace(**{**figures, **changes})


def test_verification_shows_the_three_steps_side_by_side() -> None:
    lines = lines_of(verify_table(result()))
    assert "measured peak of the step 170.0 MiB 169.0 MiB 85.0 MiB" in lines
    assert "time of a step 8.00 ms 9.00 ms 11.0 ms" in lines
    assert "within budget yes" in lines
    assert "gradients identical to captured yes" in lines
    assert "gradients identical to plain to 2.5e-07 (down.0.weight)" in lines
    assert "overhead predicted +37.5%" in lines
    assert "overhead measured, against captured +22.2%" in lines


def test_verification_shows_what_failed() -> None:
    bad = result(within_budget=False, gradients_equal=False, buffers_equal=False)
    lines = lines_of(verify_table(bad))
    assert "within budget NO" in lines
    assert "gradients identical to captured NO" in lines
    assert "buffers identical to plain NO" in lines
    good = lines_of(verify_table(result(plain_gradients_equal=True)))
    assert "gradients identical to plain yes" in good


def test_demo_shows_one_row_for_each_budget() -> None:
    rows = [
        demo_row("60%", result()),
        DemoRow("40%", 68 * MIB, 67 * MIB, 69 * MIB, 10.0, 12.0, False),
    ]
    lines = lines_of(demo_table(rows, plain_peak_bytes=170 * MIB, plain_time_ns=10**9))
    assert lines[0] == "Training steps within a budget (a plain step takes 1.00 s)"
    assert "plain step 170.0 MiB" in lines
    assert "60% 100.0 MiB 86.0 MiB 85.0 MiB +37.5% +22.2% yes" in lines
    assert "40% 68.0 MiB 67.0 MiB 69.0 MiB over +10.0% +12.0% NO" in lines


def test_plain_text_outside_of_a_terminal() -> None:
    text = text_of(plan_table(plan()), stages_table(plan()))
    assert text.isascii()
    assert "\x1b[" not in text
    assert "\x1b[" in text_of(plan_table(plan()), terminal=True)
