"""Tables for people: a plan, a verification, the demo. In a file or a pipe they are plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from memfit.graph.plan import Plan
from memfit.units import format_bytes, format_cost, format_time_ns

if TYPE_CHECKING:
    from memfit.pytorch.api.verify import VerifyResult

__all__ = [
    "DemoRow",
    "demo_row",
    "demo_table",
    "figures_table",
    "plan_table",
    "print_tables",
    "stages_table",
    "verify_table",
]

_MAX_STAGES = 40


def print_tables(console: Console, *tables: Table) -> None:
    """Print tables with lines and colours on a terminal, as aligned plain text elsewhere."""
    for number, table in enumerate(tables):
        if number:
            console.print()
        if not console.is_terminal:
            table.box = None
            table.title_justify = "left"
        console.print(table)


def _table(title: str, *columns: str, header: bool = True, texts: Collection[int] = (0,)) -> Table:
    """A table; the columns at the positions `texts` are text, the others figures."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold", show_header=header)
    table.title_justify = "left"
    for number, column in enumerate(columns):
        justify: JustifyMethod = "left" if number in texts else "right"
        table.add_column(column, justify=justify, overflow="fold")
    return table


def figures_table(title: str, *columns: str, texts: Collection[int] = (0,)) -> Table:
    """An empty table; the columns at the positions `texts` are text, the others figures.

    It has a header where a column has a name.
    """
    return _table(title, *columns, header=any(columns), texts=texts)


def _percent(value: float, *, sign: bool = True) -> str:
    return f"{value:+.1f}%" if sign else f"{value:.1f}%"


def _yes(value: bool, no: str = "NO") -> str:
    return "[green]yes[/]" if value else f"[bold red]{no}[/]"


def plan_table(plan: Plan) -> Table:
    """The plan in a few lines: what it reaches, what is alive at its peak and what that costs."""
    share = 100 * plan.peak_bytes / plan.plain_peak_bytes if plan.plain_peak_bytes else 0.0
    table = _table("Plan", "", "", header=False, texts=(0, 1))
    planner = f"{plan.planner}, mode {plan.mode}" if plan.mode else plan.planner
    table.add_row("planner", planner)
    table.add_row("family of lower sets", f"{plan.family} ({plan.lower_sets} of them)")
    table.add_row("status", plan.status.value)
    table.add_row("budget", format_bytes(plan.budget_bytes))
    table.add_row(
        "predicted peak of the step",
        f"{format_bytes(plan.peak_bytes)} ({_percent(share, sign=False)} of the plain step's "
        f"{format_bytes(plan.plain_peak_bytes)})",
    )
    for name, size in plan.peak_parts.items():
        if size:
            part = _percent(100 * size / plan.peak_bytes, sign=False)
            table.add_row(f"  {name.replace('_', ' ')}", f"  {format_bytes(size)} ({part})")
    table.add_row(
        "overhead",
        f"{format_cost(plan.overhead, plan.cost_unit)} ({_percent(plan.overhead_percent)} of a "
        f"step of {format_cost(plan.total_cost, plan.cost_unit)})",
    )
    table.add_row("kept from forward to backward", format_bytes(plan.cached_bytes))
    table.add_row("smallest feasible budget", format_bytes(plan.smallest_feasible_budget_bytes))
    table.add_row("stages", str(len(plan.stages)))
    table.add_row("planned in", f"{plan.seconds:.2f} s")
    for note in plan.notes:
        table.add_row("note", escape(note))
    return table


def stages_table(plan: Plan) -> Table:
    """The stages, in forward order; the middle of a very long list is left out."""
    table = _table(
        "Stages", "stage", "ops", "first op", "last op", "kept", "recompute", texts=(2, 3)
    )
    left_out = max(0, len(plan.stages) - _MAX_STAGES)
    for number, stage in enumerate(plan.stages, start=1):
        if left_out and number == _MAX_STAGES // 2 + 1:
            table.add_row("…", "", f"{left_out} stages left out", "", "", "")
        if left_out and _MAX_STAGES // 2 < number <= _MAX_STAGES // 2 + left_out:
            continue
        table.add_row(
            str(number),
            str(stage.forward_ops),
            escape(stage.first_op),
            escape(stage.last_op),
            format_bytes(stage.kept_bytes),
            format_cost(stage.recompute_cost, plan.cost_unit),
        )
    return table


def verify_table(result: VerifyResult) -> Table:
    """Measured against predicted, and planned against plain."""
    table = _table("Verification", "", "plain", "captured, all kept", "planned")
    table.add_row(
        "measured peak of the step",
        format_bytes(result.plain_peak_bytes),
        format_bytes(result.captured_peak_bytes),
        format_bytes(result.planned_peak_bytes),
    )
    table.add_row(
        "time of a step",
        format_time_ns(result.plain_time_ns),
        format_time_ns(result.captured_time_ns),
        format_time_ns(result.planned_time_ns),
    )
    table.add_section()
    rows = (
        ("budget", format_bytes(result.budget_bytes)),
        ("within budget", _yes(result.within_budget)),
        ("predicted peak", format_bytes(result.predicted_peak_bytes)),
        ("prediction error above resident memory", f"{result.prediction_error_percent:+.2f}%"),
        ("overhead predicted", _percent(result.predicted_overhead_percent)),
        ("overhead measured, against captured", _percent(result.measured_overhead_percent)),
        ("gradients identical to captured", _yes(result.gradients_equal)),
        ("gradients identical to plain", _plain_gradients(result)),
        ("buffers identical to plain", _yes(result.buffers_equal)),
    )
    for name, value in rows:
        table.add_row(name, "", "", value)
    return table


def _plain_gradients(result: VerifyResult) -> str:
    if result.plain_gradients_equal:
        return _yes(True)
    where = result.plain_largest_difference_in or "unknown"
    return escape(f"to {result.plain_largest_difference:.1e} ({where})")


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One budget of the demo.

    Attributes:
        label: the budget as asked for, such as `60%`.
        budget_bytes, predicted_peak_bytes, measured_peak_bytes: of the whole step.
        predicted_overhead_percent, measured_overhead_percent: time, against keeping everything.
        gradients_identical: bit for bit those of the step that keeps everything.
    """

    label: str
    budget_bytes: int
    predicted_peak_bytes: int
    measured_peak_bytes: int
    predicted_overhead_percent: float
    measured_overhead_percent: float
    gradients_identical: bool

    @property
    def within_budget(self) -> bool:
        """The measured peak is at most the budget."""
        return self.measured_peak_bytes <= self.budget_bytes


def demo_row(label: str, result: VerifyResult) -> DemoRow:
    """The demo's row of one verification."""
    return DemoRow(
        label=label,
        budget_bytes=result.budget_bytes,
        predicted_peak_bytes=result.predicted_peak_bytes,
        measured_peak_bytes=result.planned_peak_bytes,
        predicted_overhead_percent=result.predicted_overhead_percent,
        measured_overhead_percent=result.measured_overhead_percent,
        gradients_identical=result.gradients_equal,
    )


def demo_table(rows: Sequence[DemoRow], *, plain_peak_bytes: int, plain_time_ns: int) -> Table:
    """Budget, predicted and measured peak and overhead, gradients; a plain step on top."""
    table = _table(
        f"Training steps within a budget (a plain step takes {format_time_ns(plain_time_ns)})",
        "budget",
        "",
        "peak predicted",
        "peak measured",
        "overhead predicted",
        "overhead measured",
        "gradients identical",
    )
    table.add_row("plain step", "", "", format_bytes(plain_peak_bytes), "", "", "")
    table.add_section()
    for row in rows:
        measured = format_bytes(row.measured_peak_bytes)
        table.add_row(
            escape(row.label),
            format_bytes(row.budget_bytes),
            format_bytes(row.predicted_peak_bytes),
            measured if row.within_budget else f"[bold red]{measured} over[/]",
            _percent(row.predicted_overhead_percent),
            _percent(row.measured_overhead_percent),
            _yes(row.gradients_identical),
        )
    return table
