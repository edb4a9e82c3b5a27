"""Peak memory of steps too long for a profiler: PyTorch's CPU blocks counted below it.

`allocation_meter.c` stands in front of the C library. A process that shall be measured is started
with `environment()`, and calls `peak_of`. Both meters agree to the byte where both can be used.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

__all__ = ["environment", "peak_of"]

SOURCE = Path(__file__).with_suffix(".c")


def environment(folder: Path) -> dict[str, str]:
    """What a process needs in its environment to be measured; compiles the meter into `folder`.

    Raises:
        SystemExit: there is no C compiler.
    """
    library = folder / "allocation_meter.so"
    command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", str(SOURCE), "-o"]
    try:
        subprocess.run([*command, str(library), "-lpthread"], check=True)
    except FileNotFoundError as error:
        raise SystemExit(f"{error.filename}: not found; set CC to a C compiler") from error
    return {**os.environ, "LD_PRELOAD": str(library)}


def peak_of(step: Callable[[], object]) -> int:
    """Most bytes alive at once in PyTorch's CPU memory, above what was alive before `step`.

    Raises:
        SystemExit: this process was not started with the meter.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "meter_reset"):
        raise SystemExit("allocations are not counted here; start with LD_PRELOAD, see environment")
    library.meter_peak_bytes.restype = ctypes.c_longlong
    gc.collect()
    library.meter_reset()
    step()
    return int(library.meter_peak_bytes())
