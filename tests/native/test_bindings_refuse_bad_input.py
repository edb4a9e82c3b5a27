"""Every bad argument to the native module is refused by a Python exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_bad_arguments_raise_and_never_crash() -> None:
    pytest.importorskip("memfit._core._native", reason="native core is not built")
    # A process of its own: a crash must fail this test and not end all of them.
    done = subprocess.run(
        [
            sys.executable,
            *("-X", "faulthandler"),
            *("-W", "ignore::RuntimeWarning"),  # nanobind warns of uninitialized instances
            str(Path(__file__).with_name("bad_calls.py")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    *not_refused, last = done.stdout.splitlines()
    assert not_refused == []
    count, word = last.split()
    assert word == "calls"
    assert int(count) > 500
    assert count == str(len(done.stderr.splitlines()))
