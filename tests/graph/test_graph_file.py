"""Graph files: what they mean, and one line for each way in which they can be wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memfit.errors import GraphError, GraphFileError
from memfit.graph.graph_file import graph_from_json, graph_to_json, read_graph, write_graph
from memfit.graph.published import bare_graph, graph_from_published
from memfit.graph.training_graph import Source, ValueKind

#     x (input 0)   w (parameter 1)
#          \        /
#          Conv -> 2        2 and 3 are read by Add, which gives the output 4
#            |   \
#          ReLU   |
#            3    |
#             \  /
#             Add -> 4
PUBLISHED = """\
5 6
0 100 0
1 50 /conv/W
2 40 _
3 30 _
4 20 _
forward
2 1
2 _
3 _
4
Add
{}
forward
2 1
0 0
1 /conv/W
2
Convolution2DFunction
{}
forward
1 1
2 _
3
ReLU
{}
backward
1 2
4 gradient
2
3
Add
{}
backward
3 2
2 gradient
0 input
1 input
0
1
Convolution2DFunction
{}
backward
2 1
3 gradient
3 output
2
ReLU
{}
"""


def test_the_published_format() -> None:
    graph = graph_from_published(PUBLISHED, name="small")
    assert graph.name == "small"
    assert graph.cost_unit == "unit"
    # Inputs and parameters are no values; gradients have the size of their values.
    assert [(v.name, v.size_bytes, v.kind) for v in graph.values] == [
        ("Convolution2DFunction_2", 40, ValueKind.ACTIVATION),
        ("ReLU_3", 30, ValueKind.ACTIVATION),
        ("Add_4", 20, ValueKind.ACTIVATION),
        ("Convolution2DFunction_2.grad", 40, ValueKind.GRADIENT),
        ("ReLU_3.grad", 30, ValueKind.GRADIENT),
        ("Add_4.grad", 20, ValueKind.GRADIENT),
        ("Add_4.tangent", 0, ValueKind.TANGENT),
    ]
    assert [(op.name, op.inputs, op.outputs, op.cost, op.forward_op) for op in graph.ops] == [
        ("Convolution2DFunction_2", (), (0,), 10, None),
        ("ReLU_3", (0,), (1,), 1, None),
        ("Add_4", (0, 1), (2,), 1, None),
        ("Add_4.seed", (6,), (5,), 0, 2),
        ("Add_4.backward", (5,), (3, 4), 1, 2),
        ("ReLU_3.backward", (1, 4), (3,), 1, 1),
        ("Convolution2DFunction_2.backward", (3,), (), 10, 0),
    ]
    assert (graph.forward_cost, graph.total_cost, graph.resident_bytes) == (12, 24, 0)


def test_a_branch_is_finished_before_the_next_one_is_begun() -> None:
    # 0 -> 1 -> 2 -> 5 and 0 -> 3 -> 4 -> 5
    functions = [([], 0), ([0], 3), ([0], 1), ([3], 4), ([1], 2), ([2, 4], 5)]
    lines = ["6 12", *(f"{v} 1 _" for v in range(6))]
    for reads, result in functions:
        lines += ["forward", f"{len(reads)} 1", *(f"{v} _" for v in reads), str(result), "F", "{}"]
    for _, result in functions:
        lines += ["backward", "1 0", f"{result} gradient", "F", "{}"]
    graph = graph_from_published("\n".join(lines))
    names = [op.name for op in graph.forward_ops]
    assert names in (
        ["F_0", "F_1", "F_2", "F_3", "F_4", "F_5"],
        ["F_0", "F_3", "F_4", "F_1", "F_2", "F_5"],
    )


def replace(old: str, new: str) -> str:
    assert PUBLISHED.count(old) >= 1
    return PUBLISHED.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        (replace("5 6", "5"), 1, "has 1 fields; write two numbers"),
        (replace("5 6", "5 six"), 1, "is 'six', not a whole number"),
        (replace("5 6", "5 7"), 1, "7 functions; there must be as many backward"),
        (replace("2 40 _", "2 -40 _"), 4, "a variable's size is '-40', not a whole number"),
        (replace("2 40 _", "2 4.5e1 _"), 4, "is '4.5e1', not a whole number"),
        (replace("2 40 _", "2 ٤ _"), 4, "not a whole number"),
        (replace("2 40 _", "9 40 _"), 4, "variable 9 does not exist; use ids 0 to 4"),
        (replace("2 40 _", "1 40 _"), 4, "variable 1 is listed twice"),
        (replace("2 40 _", "2 40"), 4, "a variable has 2 fields"),
        (replace("2 _\n3 _", "2 _\n7 _"), 10, "variable 7 does not exist"),
        (replace("2 _\n3 _", "2 _\nx _"), 10, "a variable's id is 'x'"),
        (replace("2 _\n3 _", "2 _\n3"), 10, "needs an id and a kind"),
        (replace("forward", "sideways"), 7, "'sideways' stands where a forward function is due"),
        (replace("4 gradient", "4 gradeint"), 29, "kind 'gradeint' is unknown"),
        (replace("3\nReLU", "2\nReLU"), 21, "variable 2 is produced twice"),
        (replace("3\nAdd", "3\nSub"), 27, "backward function Sub stands where that of Add is due"),
        (PUBLISHED + "forward\n", 50, "'forward' stands after the last function"),
        # Conv reads 4, which depends on it.
        (replace("0 0\n1 /conv/W", "4 _\n1 /conv/W"), 14, "depends on itself"),
        (replace("2 _\n3 _", "2 _\n4 _"), 7, "variable 4 depends on itself"),
    ],
)
def test_a_broken_published_file(text: str, line: int, rule: str, tmp_path: Path) -> None:
    file = tmp_path / "cg_bad.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(GraphFileError) as caught:
        read_graph(file)
    message = str(caught.value)
    assert message.startswith(f"graph file {file}, line {line}: ")
    assert rule in message
    assert "\n" not in message


@pytest.mark.parametrize("lines", range(len(PUBLISHED.splitlines())))
def test_a_truncated_published_file(lines: int) -> None:
    text = "\n".join(PUBLISHED.splitlines()[:lines])
    with pytest.raises(GraphFileError, match="truncated"):
        graph_from_published(text)


def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update(fields)


def change_op(index: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["ops"][index].update(fields)


def change_value(index: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["values"][index].update(fields)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (change(format="other"), "has format 'other'"),
        (lambda data: data.pop("format"), "has format None"),
        (change(schema_version=3), "graph schema version 3, this memfit reads versions 1 and 2"),
        (change_op(0, source={"module": "a"}), "source has no 'file'"),
        (change_op(0, source={"module": "a", "file": "b", "line": "c"}), "a whole number"),
        (change(schema_version="1"), 'schema_version is "1"; it must be a whole number'),
        (lambda data: data.pop("ops"), "has no 'ops'"),
        (change(values={}), "values is {}; it must be a list"),
        (lambda data: data["values"].append(3), "values[5] is 3; it must be an object"),
        (change_value(0, size_bytes=1.5), "values[0]: size_bytes is 1.5"),
        (change_value(0, size_bytes=True), "values[0]: size_bytes is true"),
        (change_value(0, size_bytes=-1), "has size -1 bytes"),
        (change_value(0, kind="weight"), 'values[0]: kind is "weight"; it must be one of'),
        (change_value(0, is_output="no"), "must be true or false"),
        (change_op(0, phase="sideways"), 'ops[0]: phase is "sideways"'),
        (change_op(0, inputs=[7]), "names value 7; there are 5 values"),
        (change_op(0, inputs=[1]), "is there a cycle?"),
        (change_op(0, inputs=["a"]), "a list of whole numbers"),
        (change_op(0, outputs=None), "a list of whole numbers"),
        (change_op(0, cost=2**62), "2**59 or more"),
        (change_op(0, name=None), "name is null; it must be text"),
        (change_op(0, source=3), "source is 3; it must be an object, text or null"),
        (change_op(0, forward_op=0), "ops[0]: forward_op is 0"),
        (change_op(3, forward_op=2), "one of the 2 forward ops"),
    ],
)
def test_a_broken_json_file(
    spoil: Callable[[dict[str, Any]], None], rule: str, tmp_path: Path
) -> None:
    data = json.loads(graph_to_json(bare_graph([[], [0]], [1, 2], [3, 4], [[0], [0, 1]])))
    spoil(data)
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(data))
    with pytest.raises(GraphFileError) as caught:
        read_graph(file)
    message = str(caught.value)
    assert message.startswith(f"graph file {file}")
    assert rule in message
    assert "\n" not in message


def test_truncated_json() -> None:
    text = graph_to_json(bare_graph([[], [0]], [1, 2], [3, 4], [[0], [0, 1]]))
    for length in range(1, len(text)):
        with pytest.raises(GraphFileError, match="is not JSON"):
            graph_from_json(text[:length])


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "starts with ''"),
        (b"<graph/>", "starts with '<', which no known format does"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"{" * 100_000, "is not JSON"),
    ],
)
def test_other_files(data: bytes, rule: str, tmp_path: Path) -> None:
    file = tmp_path / "graph"
    file.write_bytes(data)
    with pytest.raises(GraphFileError, match="graph file") as caught:
        read_graph(file)
    assert rule in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(GraphFileError, match=r"cannot be read: .*; check the path"):
            read_graph(path)


def test_files_are_read_back(tmp_path: Path) -> None:
    graph = graph_from_published(PUBLISHED, name="small")
    write_graph(graph, tmp_path / "small.json")
    assert read_graph(tmp_path / "small.json") == graph
    (tmp_path / "small.txt").write_text(PUBLISHED)
    assert read_graph(tmp_path / "small.txt") == graph


def test_a_bare_graph_with_an_op_out_of_order_is_refused() -> None:
    with pytest.raises(GraphError, match="is there a cycle"):
        bare_graph([[1], []], [1, 1], [1, 1], [[], []])


SOURCES = {
    "layer1.0.conv1 (resnet.py:41)": Source("layer1.0.conv1", "resnet.py", 41),
    "model.py:7": Source(file="model.py", line=7),
    "layer1.0": Source("layer1.0"),
    "layer1 (somewhere)": Source("layer1", "somewhere"),
    "by hand, in a loop": Source(file="by hand, in a loop"),
}


@pytest.mark.parametrize("text", SOURCES)
def test_sources_and_their_texts(text: str) -> None:
    assert Source.of_text(text) == SOURCES[text]
    assert str(SOURCES[text]) == text


def test_sources_are_written_by_parts_and_read_from_the_texts_of_version_1() -> None:
    plain = bare_graph([[]] * len(SOURCES), [1] * len(SOURCES), [3] * len(SOURCES), [[]] * 5)
    ops = [
        dataclasses.replace(op, source=source)
        for op, source in zip(plain.forward_ops, SOURCES.values(), strict=True)
    ]
    graph = dataclasses.replace(plain, ops=(*ops, *plain.backward_ops))
    assert graph.fingerprint == plain.fingerprint
    data = json.loads(graph_to_json(graph))
    assert data["schema_version"] == 2
    assert data["ops"][0]["source"] == {
        "module": "layer1.0.conv1",
        "file": "resnet.py",
        "line": 41,
    }
    assert graph_from_json(json.dumps(data)) == graph
    data["schema_version"] = 1
    for op, text in zip(data["ops"], SOURCES, strict=False):
        op["source"] = text
    assert graph_from_json(json.dumps(data)) == graph
