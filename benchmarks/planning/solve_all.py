"""Plans graph files by the command line of whichever memfit is installed; `same_plans` runs it.

Reads a JSON list of lists of arguments of `memfit solve` from standard input and prints, for each,
a line of JSON: the exit code, the plan, and the first line of what was complained about. Runs as a
file, in another interpreter too: it imports nothing of this project but what is installed.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from importlib.metadata import entry_points
from typing import Any


def main() -> None:
    """Run all commands, one after the other."""
    (command,) = entry_points(group="console_scripts", name="memfit")
    memfit = command.load()
    for arguments in json.load(sys.stdin):
        print(json.dumps(_solved(memfit, arguments)), flush=True)


def _solved(memfit: Any, arguments: list[str]) -> dict[str, Any]:
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        try:
            code = memfit(["solve", *arguments, "--json", "--quiet"])
        except SystemExit as end:
            code = end.code
    plan = json.loads(said.getvalue()) if code == 0 else None
    return {"code": code or 0, "plan": plan, "error": complained.getvalue().partition("\n")[0]}


if __name__ == "__main__":
    main()
