"""Graph files: memfit's own versioned JSON; the text format of published graphs is `published`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from memfit.errors import GraphError, GraphFileError
from memfit.files import write_text_whole
from memfit.graph.published import graph_from_published
from memfit.graph.training_graph import (
    Estimate,
    Op,
    Phase,
    Source,
    TrainingGraph,
    Value,
    ValueKind,
)

__all__ = [
    "GRAPH_FORMAT",
    "GRAPH_SCHEMA_VERSION",
    "graph_from_json",
    "graph_to_json",
    "read_graph",
    "write_graph",
]

GRAPH_FORMAT = "memfit-graph"
GRAPH_SCHEMA_VERSION = 2
_READ_VERSIONS = (1, GRAPH_SCHEMA_VERSION)  # in 1, the source of an op was one text

_Choice = TypeVar("_Choice", bound=StrEnum)


def read_graph(path: str | Path) -> TrainingGraph:
    """Read a graph file of either format; which one is seen from its first character.

    Raises:
        GraphFileError: the file cannot be read, or breaks a rule of its format.
    """
    path = Path(path)
    where = f"graph file {path}"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise GraphFileError(
            f"{where} is not UTF-8 text; give a memfit JSON graph or a published cg_*.txt graph"
        ) from None
    except OSError as error:
        raise GraphFileError(
            f"{where} cannot be read: {error.strerror or error}; check the path"
        ) from None
    first = text.lstrip()[:1]
    if first == "{":
        return graph_from_json(text, where=where)
    if first.isdigit():
        return graph_from_published(text, where=where, name=path.stem)
    raise GraphFileError(
        f"{where} starts with {first!r}, which no known format does; give a memfit JSON graph "
        "(an object) or a published text graph (a line with two numbers first)"
    )


def write_graph(graph: TrainingGraph, path: str | Path) -> None:
    """Write `graph` as JSON to `path`, whole or not at all."""
    write_text_whole(Path(path), graph_to_json(graph) + "\n")


def graph_to_json(graph: TrainingGraph) -> str:
    """The graph as JSON text, read back by `graph_from_json`."""
    data = {
        "format": GRAPH_FORMAT,
        "schema_version": GRAPH_SCHEMA_VERSION,
        "name": graph.name,
        "cost_unit": graph.cost_unit,
        "values": [asdict(v) for v in graph.values],
        "ops": [asdict(op) for op in graph.ops],
    }
    return json.dumps(data, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class _Fields:
    """One JSON object and where it stands, with checked access to its fields."""

    data: dict[str, Any]
    where: str

    @classmethod
    def of(cls, data: Any, where: str) -> _Fields:
        if not isinstance(data, dict):
            raise GraphFileError(f"{where} is {_kind(data)}; it must be an object")
        return cls(data, where)

    def _get(self, key: str, default: Any) -> Any:
        if key in self.data:
            return self.data[key]
        if default is ...:
            raise GraphFileError(f"{self.where} has no {key!r}; is the file truncated? add it")
        return default

    def _fail(self, key: str, value: Any, wanted: str) -> NoReturn:
        raise GraphFileError(f"{self.where}: {key} is {_kind(value)}; it must be {wanted}")

    def text(self, key: str) -> str:
        value = self._get(key, ...)
        if not isinstance(value, str):
            self._fail(key, value, "text")
        return value

    def optional_text(self, key: str) -> str | None:
        value = self._get(key, None)
        if value is not None and not isinstance(value, str):
            self._fail(key, value, "text or null")
        return value

    def source(self, key: str) -> Source | None:
        value = self._get(key, None)
        if value is None:
            return None
        if isinstance(value, str):
            return Source.of_text(value) if value else None
        if not isinstance(value, dict):
            self._fail(key, value, "an object, text or null")
        data = _Fields(value, f"{self.where}, {key}")
        return Source(data.text("module"), data.text("file"), data.number("line"))

    def number(self, key: str, default: Any = ...) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self._fail(key, value, "a whole number")
        return value

    def optional_number(self, key: str) -> int | None:
        return None if self._get(key, None) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._fail(key, value, "true or false")
        return value

    def numbers(self, key: str) -> tuple[int, ...]:
        value = self._get(key, ...)
        if not isinstance(value, list) or any(
            isinstance(v, bool) or not isinstance(v, int) for v in value
        ):
            self._fail(key, value, "a list of whole numbers")
        return tuple(value)

    def items(self, key: str) -> Iterator[_Fields]:
        value = self._get(key, ...)
        if not isinstance(value, list):
            self._fail(key, value, "a list")
        for i, item in enumerate(value):
            yield _Fields.of(item, f"{self.where}, {key}[{i}]")

    def choice(self, key: str, choices: type[_Choice]) -> _Choice:
        text = self.text(key)
        if text not in [choice.value for choice in choices]:
            self._fail(key, text, "one of " + ", ".join(choice.value for choice in choices))
        return choices(text)

    def optional_choice(self, key: str, choices: type[_Choice]) -> _Choice | None:
        return None if self._get(key, None) is None else self.choice(key, choices)


def _kind(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def graph_from_json(text: str, *, where: str = "the graph") -> TrainingGraph:
    """Read a graph from JSON text.

    Args:
        text: what `graph_to_json` wrote.
        where: where the text came from, for messages.

    Raises:
        GraphFileError: the text is no JSON, of another schema version, or breaks a rule of
            `TrainingGraph`.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GraphFileError(
            f"{where} is not JSON ({error}); is it truncated? write it again"
        ) from None
    top = _Fields.of(data, where)
    form = top.optional_text("format")
    if form != GRAPH_FORMAT and "graph_fingerprint" in data:
        raise GraphFileError(
            f"{where} is a plan, not a graph; give the graph that it was made for (memfit report "
            "draws plans)"
        )
    if form != GRAPH_FORMAT:
        raise GraphFileError(
            f"{where} has format {form!r}; a graph file has format {GRAPH_FORMAT!r}: give one "
            "written by memfit.graph.graph_file.write_graph"
        )
    version = top.number("schema_version")
    if version not in _READ_VERSIONS:
        raise GraphFileError(
            f"{where} has graph schema version {version}, this memfit reads versions "
            f"{' and '.join(map(str, _READ_VERSIONS))}; write the graph again with this version"
        )
    values = tuple(
        Value(
            v.text("name"),
            v.number("size_bytes"),
            v.choice("kind", ValueKind),
            v.flag("is_output", False),
        )
        for v in top.items("values")
    )
    ops = tuple(
        Op(
            name=op.text("name"),
            target=op.text("target"),
            phase=op.choice("phase", Phase),
            inputs=op.numbers("inputs"),
            outputs=op.numbers("outputs"),
            cost=op.number("cost"),
            workspace_bytes=op.number("workspace_bytes", 0),
            recomputable=op.flag("recomputable", True),
            forward_op=op.optional_number("forward_op"),
            source=op.source("source"),
            workspace_estimate=op.optional_choice("workspace_estimate", Estimate),
        )
        for op in top.items("ops")
    )
    forward = sum(op.phase is Phase.FORWARD for op in ops)
    for i, op in enumerate(ops):
        if op.forward_op is not None and (i < forward or not 0 <= op.forward_op < forward):
            raise GraphFileError(
                f"{where}, ops[{i}]: forward_op is {op.forward_op}; it must be null, or for a "
                f"backward op one of the {forward} forward ops"
            )
    try:
        return TrainingGraph(values, ops, top.text("cost_unit"), top.text("name"))
    except GraphError as error:
        raise GraphFileError(f"{where}: {error}") from None
