"""Where the memory of a step goes: its peak, what is alive there, which modules keep how much."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from memfit.analysis.step_memory import StepMemory
from memfit.report.tables import figures_table
from memfit.units import format_bytes

__all__ = ["memory_tables"]


def memory_tables(memory: StepMemory, verdicts: Sequence[tuple[str, str]] = ()) -> list[Table]:
    """The tables of `memfit inspect`.

    Args:
        memory: the step.
        verdicts: further lines of the first table.
    """
    first = figures_table(
        f"Memory of a plain step of {escape(memory.name)}", "", "", "", texts=(0,)
    )
    first.add_row("peak, predicted", format_bytes(memory.peak_bytes), "")
    for name, size in memory.parts.items():
        share = f"{100 * size / memory.peak_bytes:.1f}%"
        first.add_row(f"  {name.replace('_', ' ')}", format_bytes(size), share)
    first.add_row("alive when the step ends", format_bytes(memory.end_bytes), "")
    first.add_row("ops", str(memory.ops), "")
    for name, value in verdicts:
        first.add_row(name, value, "")
    tables = [first]
    if memory.live:
        live = figures_table(
            "Alive at the peak, largest first",
            "value",
            "what",
            "bytes",
            "made by",
            texts=(0, 1, 3),
        )
        for one in memory.live:
            made_by = escape(one.made_by or "there from the start")
            live.add_row(escape(one.name), one.kind, format_bytes(one.size_bytes), made_by)
        if memory.live_left_out:
            live.add_row("…", f"{memory.live_left_out} smaller ones", "", "")
        tables.append(live)
    if memory.modules:
        modules = figures_table("Kept, by module", "module", "kept", "ops")
        for module in memory.modules:
            modules.add_row(escape(module.path), format_bytes(module.kept_bytes), str(module.ops))
        tables.append(modules)
    return tables
