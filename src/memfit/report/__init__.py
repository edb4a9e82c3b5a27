"""What people look at: tables and pictures of plans and of what they do."""

from memfit.analysis.trace import Trace, trace_of
from memfit.report.figure import save_timeline_figure
from memfit.report.tables import (
    DemoRow,
    demo_row,
    demo_table,
    plan_table,
    print_tables,
    stages_table,
    verify_table,
)

__all__ = [
    "DemoRow",
    "Trace",
    "demo_row",
    "demo_table",
    "plan_table",
    "print_tables",
    "save_timeline_figure",
    "stages_table",
    "trace_of",
    "verify_table",
]
