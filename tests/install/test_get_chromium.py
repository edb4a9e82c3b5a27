"""`.ci/get-chromium` never fails, says what became of it, and asks apt-get only as root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "get-chromium"
pytestmark = pytest.mark.skipif(
    os.name != "posix" or shutil.which("bash") is None, reason="needs bash"
)


def _program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("there", "user", "apt_get", "said"),
    [
        ("exit 0", 0, "exit 1", "with chromium"),
        (None, 0, "exit 100", "SKIPPED"),
        (None, 0, None, "SKIPPED"),
        (None, 0, "made", "with chromium"),
        (None, 1000, "made", "SKIPPED"),
        ("exit 1", 0, "exit 0", "SKIPPED"),
    ],
)
def test_what_becomes_of_it(
    there: str | None, user: int, apt_get: str | None, said: str, tmp_path: Path
) -> None:
    for name in ("bash", "sh", "timeout", "ln"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    _program(tmp_path, "id", f"echo {user}")
    _program(tmp_path, "browser", "exit 0")
    if there is not None:
        _program(tmp_path, "chromium", there)
    if apt_get is not None:
        made = f"ln -sf {tmp_path}/browser {tmp_path}/chromium"
        _program(tmp_path, "apt-get", made if apt_get == "made" else apt_get)
    environment = {k: v for k, v in os.environ.items() if k != "MEMFIT_CHROMIUM"}
    done = subprocess.run(
        ["bash", str(SCRIPT)],
        env={**environment, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert said in done.stdout.splitlines()[-1]
