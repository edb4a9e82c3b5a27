from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from memfit.analysis.trace import Trace, trace_of
from memfit.errors import UsageError
from memfit.graph.schedule import Schedule, make_schedule
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind
from memfit.report.figure import save_timeline_figure

KIB = 2**10
LENGTH = 6


def chain(cost: int = 10) -> TrainingGraph:
    """x -> f0 -> f1 -> … -> f5 (the loss), and back; every activation has 100 KiB.

    Ids: 0 input, 1 parameter, 2 … 7 activations, 8 tangent, 9 parameter gradient, 10 … 14 gradients
    of activations, last to first.
    """
    values = [
        Value("x", 50 * KIB, ValueKind.INPUT),
        Value("w", 20 * KIB, ValueKind.PARAMETER),
        *(
            Value(f"a{i}", 100 * KIB, ValueKind.ACTIVATION, is_output=i == LENGTH - 1)
            for i in range(LENGTH)
        ),
        Value("t", 4, ValueKind.TANGENT),
        Value("gw", 20 * KIB, ValueKind.GRADIENT, is_output=True),
        *(Value(f"g{i}", 100 * KIB, ValueKind.GRADIENT) for i in reversed(range(LENGTH - 1))),
    ]
    ops = [
        Op(f"f{i}", "f", Phase.FORWARD, (i + 1, 1) if i else (0, 1), (i + 2,), cost)
        for i in range(LENGTH)
    ]
    for i in reversed(range(LENGTH)):
        gradient = 8 if i == LENGTH - 1 else 9 + LENGTH - 1 - i
        inputs = (gradient, i + 1 if i else 0, 1)
        outputs = (9, gradient + 1 if i < LENGTH - 1 else 10) if i else (9,)
        ops.append(
            Op(f"b{i}", "b", Phase.BACKWARD, inputs, outputs, 2 * cost, workspace_bytes=30 * KIB)
        )
    return TrainingGraph(tuple(values), tuple(ops))


def plain_schedule(graph: TrainingGraph) -> Schedule:
    return make_schedule(graph, range(LENGTH), range(LENGTH, 2 * LENGTH))


def planned_schedule(graph: TrainingGraph) -> Schedule:
    """Keep a2; the last stage is not recomputed, f0 and f1 are."""
    backward = [6, 7, 8, 0, 1, 9, 10, 11]
    return make_schedule(graph, range(LENGTH), backward, keep={4, 5, 6, 7})


@pytest.fixture
def traces() -> tuple[Trace, Trace]:
    graph = chain()
    planned = planned_schedule(graph)
    planned.validate(graph)
    return trace_of(graph, plain_schedule(graph)), trace_of(graph, planned)


def svg_texts(path: Path) -> str:
    """Texts of an SVG: matplotlib draws glyphs and leaves the text in a comment."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.parse(path, parser).getroot()
    return "\n".join(e.text or "" for e in root.iter() if e.tag is ElementTree.Comment)


def test_time_is_the_cumulated_cost(traces: tuple[Trace, Trace]) -> None:
    plain, planned = traces
    assert plain.edges == (*range(0, 60, 10), *range(60, 181, 20))
    assert plain.total == 180
    assert planned.total == 200
    assert plain.backward_start == planned.backward_start == 60
    assert len(planned.edges) == len(planned.timeline.live_bytes) + 1


def test_the_peak_lies_within_its_step(traces: tuple[Trace, Trace]) -> None:
    for trace in traces:
        step = trace.timeline.peak_step
        assert trace.edges[step] < trace.peak_time < trace.edges[step + 1]
        assert trace.timeline.live_bytes[step] == trace.timeline.peak_bytes


def test_ops_without_cost_still_have_a_width() -> None:
    graph = chain(cost=0)
    assert trace_of(graph, plain_schedule(graph)).edges == tuple(range(13))


def test_an_empty_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match="no steps"):
        trace_of(TrainingGraph((), ()), Schedule((), 0))


def test_svg_says_what_it_shows(traces: tuple[Trace, Trace], tmp_path: Path) -> None:
    plain, planned = traces
    path = tmp_path / "timeline.svg"
    save_timeline_figure(
        path, plain=plain, planned=planned, budget_bytes=700 * KIB, title="A chain"
    )
    texts = svg_texts(path)
    assert "A chain" in texts
    assert "budget 700.0 KiB" in texts
    assert f"plain peak {plain.timeline.peak_bytes / KIB:.1f} KiB" in texts
    assert f"planned peak {planned.timeline.peak_bytes / KIB:.1f} KiB" in texts
    assert "live memory (KiB)" in texts
    for band in ("kept activations", "recomputed", "activation gradients", "workspace"):
        assert band in texts


def test_bands_that_are_empty_have_no_legend(traces: tuple[Trace, Trace], tmp_path: Path) -> None:
    path = tmp_path / "timeline.svg"
    save_timeline_figure(path, plain=traces[0], planned=traces[0])
    texts = svg_texts(path)
    assert "kept activations" in texts
    assert "recomputed" not in texts
    assert "budget" not in texts


def test_png_is_a_png_of_readable_size(traces: tuple[Trace, Trace], tmp_path: Path) -> None:
    path = tmp_path / "timeline.PNG"
    save_timeline_figure(path, plain=traces[0], planned=traces[1])
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    assert width >= 1200
    assert height >= 700


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_picture_is_the_same_file(
    traces: tuple[Trace, Trace], tmp_path: Path, suffix: str
) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in files:
        save_timeline_figure(path, plain=traces[0], planned=traces[1], budget_bytes=10**6)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_no_global_state_of_pyplot_is_touched(traces: tuple[Trace, Trace], tmp_path: Path) -> None:
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    save_timeline_figure(tmp_path / "a.svg", plain=traces[0], planned=traces[1])
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.jpeg"])
def test_other_formats_are_refused(traces: tuple[Trace, Trace], tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        save_timeline_figure(tmp_path / name, plain=traces[0], planned=traces[1])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_one_clear_error(traces: tuple[Trace, Trace], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose a folder that exists"):
        save_timeline_figure(tmp_path / "no" / "a.svg", plain=traces[0], planned=traces[1])


def test_without_matplotlib_the_error_names_the_extra(
    traces: tuple[Trace, Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"memfit\[plot\]"):
        save_timeline_figure(tmp_path / "a.svg", plain=traces[0], planned=traces[1])
    assert list(tmp_path.iterdir()) == []
