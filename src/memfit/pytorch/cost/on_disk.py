"""Measured op costs, kept on disk between runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from memfit.errors import UsageError
from memfit.files import PACKAGE_FOLDER, write_text_whole
from memfit.pytorch.cost.op_calls import OpCall, OpCost

__all__ = [
    "FORMAT_VERSION",
    "CostCache",
    "cache_enabled",
    "cache_folder",
    "conditions_digest",
    "open_cost_cache",
    "source_digest",
]

FORMAT_VERSION = 1
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where costs are kept: `$MEMFIT_CACHE_DIR`, or `memfit` in the user's cache folder (XDG).

    Raises:
        UsageError: there is no such user.
    """
    chosen = os.environ.get("MEMFIT_CACHE_DIR")
    if chosen:
        return _found(chosen, "MEMFIT_CACHE_DIR", lambda: Path(chosen).expanduser())
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else _found("", "HOME", Path.home) / ".cache") / "memfit"


def _found(value: str, variable: str, find: Callable[[], Path]) -> Path:
    try:
        return find()
    except RuntimeError as error:
        raise UsageError(
            f"the cache has no folder, {variable} is {value!r}: {error}; set MEMFIT_CACHE_DIR to a "
            "folder, or MEMFIT_CACHE=0 to keep nothing"
        ) from None


def cache_enabled(enabled: bool | None = None) -> bool:
    """Whether anything is kept on disk.

    Args:
        enabled: on or off; None means on, unless the environment says `MEMFIT_CACHE=0`.
    """
    if enabled is None:
        return os.environ.get("MEMFIT_CACHE", "1").strip().lower() not in ("0", "off", "false")
    return enabled


def open_cost_cache(enabled: bool | None = None, *, read_only: bool = False) -> CostCache | None:
    """The cache of this machine, or None where it is turned off.

    Args:
        enabled: as for `cache_enabled`.
        read_only: new costs are not kept: they are too rough to be used again.
    """
    if not cache_enabled(enabled):
        return None
    return _ReadOnly(cache_folder()) if read_only else CostCache(cache_folder())


class CostCache:
    """Op costs measured before under the same conditions.

    A cost is found again only for the same op signature, code of memfit, PyTorch version, device,
    processor, thread count, determinism setting and, on CUDA, settings of cuDNN. There is one JSON
    file for each set of conditions, written whole. Processes that save at the same time do not
    damage it; at worst one's newest costs are missed and measured again. A file that cannot be read
    is ignored, with a warning in the log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, dict[str, OpCost]] = {}
        self._fresh: dict[Path, dict[str, OpCost]] = {}

    def get(self, call: OpCall) -> OpCost | None:
        """The cost measured before, with source `cached`."""
        signature = call.signature()
        return None if signature is None else self._load(self._file(call)).get(signature)

    def put(self, call: OpCall, cost: OpCost) -> None:
        """Remember a measured cost until `save`; calls without a stable signature are left out."""
        signature = call.signature()
        if signature is not None:
            cached = OpCost(cost.time_ns, cost.workspace_bytes, cost.output_bytes, "cached")
            self._fresh.setdefault(self._file(call), {})[signature] = cached

    def save(self) -> None:
        """Write what was put since, merged with what other processes wrote meanwhile.

        A cache that cannot be written costs time, not correctness: it is logged, not raised.
        """
        for path, fresh in self._fresh.items():
            merged = {**_read(path), **fresh}
            self._known[path] = merged
            entries = {
                key: [cost.time_ns, cost.workspace_bytes, cost.output_bytes]
                for key, cost in sorted(merged.items())
            }
            payload = {"format_version": FORMAT_VERSION, "costs": entries}
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text_whole(path, json.dumps(payload, indent=0) + "\n")
            except (OSError, UsageError) as error:
                _log.warning("op costs were not kept in %s: %s", path, error)
        self._fresh = {}

    def _file(self, call: OpCall) -> Path:
        digest = conditions_digest(call.device)
        return self._folder / f"op-costs-{call.device.type}-{digest}.json"

    def _load(self, path: Path) -> dict[str, OpCost]:
        if path not in self._known:
            self._known[path] = _read(path)
        return self._known[path]


class _ReadOnly(CostCache):
    """Gives costs and takes none."""

    def put(self, call: OpCall, cost: OpCost) -> None:
        """Nothing is kept."""


def _read(path: Path) -> dict[str, OpCost]:
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
        if payload["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {payload['format_version']!r}")
        return {str(key): _entry(value) for key, value in payload["costs"].items()}
    except FileNotFoundError:
        return {}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        _log.warning("op costs in %s are ignored: %s: %s", path, type(error).__name__, error)
        return {}


def _entry(value: Any) -> OpCost:
    time_ns, workspace_bytes, output_bytes = value
    if any(type(v) is not int or v < 0 for v in value):
        raise ValueError(f"cost {value!r} is not three integers of 0 or more")
    return OpCost(time_ns, workspace_bytes, output_bytes, "cached")


def source_digest(folder: Path) -> str:
    """A digest of the Python files of a package, by name and text."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _own_code() -> str:
    """Memfit's: what estimates, measures and plans, which releases and checkouts differ in."""
    return source_digest(PACKAGE_FOLDER)


def conditions_digest(device: torch.device) -> str:
    """A digest of all that changes what the same op costs on this machine, memfit's code too."""
    text = json.dumps(_conditions(device), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _conditions(device: torch.device) -> dict[str, Any]:
    """All that changes what the same op costs."""
    cuda = device.type == "cuda" and torch.cuda.is_available()
    more = _cudnn_conditions() if device.type == "cuda" else {}
    return {
        "format_version": FORMAT_VERSION,
        "memfit": _own_code(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "onednn": torch.backends.mkldnn.enabled,
        **more,
    }


def _cudnn_conditions() -> dict[str, Any]:
    """What chooses among cuDNN's algorithms, whose times and workspaces differ."""
    cudnn = torch.backends.cudnn
    try:
        tf32: object = cudnn.allow_tf32
    except RuntimeError:  # where the user has set precisions op by op
        tf32 = [cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]
    return {
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
        "cudnn_enabled": cudnn.enabled,
        "cudnn_benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
        "cudnn_tf32": tf32,
    }


@cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
