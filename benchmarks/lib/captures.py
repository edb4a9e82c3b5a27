"""Graphs captured from PyTorch, kept in a cache on disk as long as what they were made of stays."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import memfit
from benchmarks.lib.harness import ROOT
from memfit.files import write_text_whole
from memfit.graph.graph_file import write_graph
from memfit.graph.training_graph import TrainingGraph

__all__ = ["CACHE", "KEY_LENGTH", "facts_of", "graph_file", "is_kept", "keep"]

CACHE = ROOT / "benchmarks" / ".cache"
KEY_LENGTH = 16


def graph_file(name: str, threads: int, sources: Iterable[Path]) -> Path:
    """Where a captured graph is kept, by what it is made of.

    Args:
        name: of the network, and of how it is captured.
        threads: analytic costs and workspace depend on them.
        sources: files that build the network; memfit's own and PyTorch's version are counted in.
    """
    package = Path(memfit.__file__).parent
    own = [*(package / "graph").glob("*.py"), *(package / "pytorch").rglob("*.py")]
    digest = hashlib.sha256()
    for part in (name, importlib.metadata.version("torch"), str(threads)):
        digest.update(part.encode() + b"\0")
    for source in sorted([*sources, *own]):
        digest.update(source.read_bytes())
    return CACHE / f"{name}-{digest.hexdigest()[:KEY_LENGTH]}.graph.json"


def _facts_file(graph: Path) -> Path:
    return graph.with_name(graph.name.replace(".graph.", ".facts."))


def is_kept(file: Path) -> bool:
    """Whether a graph and the facts about it are there."""
    return file.is_file() and _facts_file(file).is_file()


def facts_of(file: Path) -> dict[str, Any]:
    """Facts about the capture of a graph that is kept."""
    return dict(json.loads(_facts_file(file).read_text(encoding="utf-8")))


def keep(graph: TrainingGraph, facts: dict[str, Any], file: Path) -> None:
    """Keep a graph and facts about its capture, in place of what `name` was before."""
    CACHE.mkdir(exist_ok=True)
    start = file.name[: -KEY_LENGTH - len(".graph.json")]
    for stale in CACHE.glob(f"{start}{'?' * KEY_LENGTH}.*.json"):
        stale.unlink()
    write_text_whole(_facts_file(file), json.dumps(facts, indent=1) + "\n")
    write_graph(graph, file)
