"""`memfit plan`, `verify` and `demo` in this process, on models that run in a moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from memfit.cli import main
from memfit.cli.commands import demo as demo_command
from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import Plan
from memfit.graph.plan_file import load_plan_file
from memfit.pytorch.api import demo_model, verify

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        width = 8
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(12))
        self.norm = nn.BatchNorm2d(width)
    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.norm(x)

class Talkative(Net):
    def __init__(self):
        super().__init__()
        print("a word on stdout")

class Branching(Net):
    def forward(self, x):
        x = super().forward(x)
        return x * 2 if torch.rand([]) > 0.5 else x

class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
"""
INPUT = ("--input", "4x8x48x48", "--cost", "analytic")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with models, and a cost cache of its own."""
    (tmp_path / "command_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("MEMFIT_DEBUG", raising=False)
    monkeypatch.syspath_prepend("")
    monkeypatch.delitem(__import__("sys").modules, "command_models", raising=False)
    torch.compiler.reset()
    # Threads that wait for each other take long on a busy machine, and ops this small gain nothing.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def test_plan_json_is_the_plan(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    words = ("plan", "command_models:Net", *INPUT, "--budget", "70%", "--json")
    assert main([*words, "-o", "plan.json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    payload: dict[str, Any] = json.loads(out)
    plan = Plan.load(folder / "plan.json")
    assert json.loads(plan.to_json()) == payload
    assert Plan.from_json(plan.to_json()) == plan
    file = load_plan_file(folder / "plan.json")
    assert file.plan == plan
    assert file.graph is not None
    shapes = dict(zip([op.target for op in file.graph.ops], file.shapes, strict=True))
    assert shapes["aten.convolution.default"] == "4x8x48x48 float32"
    assert main(["report", "plan.json", "--quiet"]) == 0
    assert "4x8x48x48 float32" in (folder / "report.html").read_text()
    capsys.readouterr()
    assert payload["peak_bytes"] <= payload["budget_bytes"] < payload["plain_peak_bytes"]
    assert sum(payload["peak_parts"].values()) == payload["peak_bytes"]
    assert payload["peak_parts"]["parameters"] == sum(
        4 * size for size in [12 * (8 * 8 * 9 + 8) + 2 * 8]
    )
    assert payload["overhead"] > 0
    assert payload["smallest_feasible_budget_bytes"] <= payload["budget_bytes"]
    assert payload["schema_version"] == 2
    assert payload["stages"]


def test_plan_for_people(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    words = ("plan", "command_models:Net", *INPUT, "--budget", "70%", "-o", "plan.json")
    assert main(words) == 0
    out, err = capsys.readouterr()
    plan = Plan.load(folder / "plan.json")
    assert err == ""
    assert "smallest feasible budget" in out
    assert f"{plan.overhead_percent:+.1f}%" in out
    assert "plan written to plan.json" in out


def test_plan_with_its_bound(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    pytest.importorskip("highspy")
    words = ("plan", "command_models:Net", *INPUT, "--budget", "70%", "--cost", "analytic")
    limit = ("--bound", "--bound-time-limit", "5")
    assert main([*words, *limit, "-o", "plan.json"]) == 0
    out, _ = capsys.readouterr()
    plan = Plan.load(folder / "plan.json")
    bound = plan.provenance["bound"]
    assert 0 <= bound["overhead"] <= plan.overhead
    assert bound["budget_bytes"] == plan.budget_bytes
    assert "lower bound" in out
    assert f"{bound['gap_percent']:.1f}% of a forward pass" in out


def test_an_optimizer_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "command_models:Net", *INPUT, "--budget", "1GiB", "--json")
    assert main([*words, "--optimizer", "adam"]) == 0
    parts = json.loads(capsys.readouterr().out)["peak_parts"]
    # Two moments for each entry, and a step count for each parameter.
    assert 2 * parts["parameters"] < parts["optimizer_state"] < 2.1 * parts["parameters"]


def test_what_the_model_prints_stays_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "command_models:Talkative", *INPUT, "--budget", "1GiB", "--json")
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["overhead"] == 0
    assert err == "a word on stdout\n"


def test_an_infeasible_budget_names_one_that_succeeds(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    words = ("plan", "command_models:Net", *INPUT, "--json", "-o", "plan.json", "--budget")
    assert main([*words, "50KiB"]) == 3
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    payload = json.loads(out)
    assert payload["status"] == "INFEASIBLE"
    assert not (folder / "plan.json").exists()
    smallest = payload["smallest_feasible_budget"]
    assert str(smallest) in err
    assert main([*words, str(smallest)]) == 0
    assert json.loads(capsys.readouterr().out)["peak_bytes"] <= smallest
    assert main([*words, str(smallest - 1)]) == 3
    assert json.loads(capsys.readouterr().out)["smallest_feasible_budget"] == smallest


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("Branching", "--budget", "90%", "--fullgraph"), "command_models.py:"),
        (("Branching", "--budget", "90%", "--fullgraph"), "torch.where"),
        (("Frozen", "--budget", "90%"), "requires_grad"),
        (("Frozen", "--budget", "90%", "--optimizer", "sgd"), "leave it out"),
        (("Net", "--budget", "90%", "-o", "no-such-folder/plan.json"), "no-such-folder"),
        (("Net", "--budget", "90%", "-o", "."), "it is a folder"),
        (("Net", "--budget", "90%", "--planner", "oracle"), "known planners: auto, liveness"),
        (("Net", "--budget", "-3"), "cannot be read"),
        (("Net", "--budget", "0%"), "0%"),
        (("Net", "--budget", "90%", "--input", "4x8x48x48"), "too many positional arguments"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    before = sorted(folder.rglob("*"))
    model, *rest = words
    assert main(["plan", f"command_models:{model}", *INPUT, "--json", *rest]) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert part in err
    payload = json.loads(out)
    assert payload["status"] == "ERROR"
    assert part in payload["message"]
    after = [p for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts]
    assert after == before


def test_verify(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("verify", "command_models:Net", *INPUT, "--budget", "70%", "--rounds", "1")
    assert main([*words, "--json", "--loss", "mse", "--target", "4x8x48x48"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    payload = json.loads(out)
    assert payload["ok"]
    assert payload["gradients_equal"]
    assert payload["planned_peak_bytes"] <= payload["budget_bytes"] < payload["plain_peak_bytes"]
    assert main(words) == 0
    assert "gradients identical to plain" in capsys.readouterr().out


def test_verify_fails_where_gradients_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    observe = verify._Bench.observe
    seen = []

    def spoil_the_first(self: Any, run: Any) -> Any:
        found = observe(self, run)
        seen.append(found)
        if len(seen) == 1:
            next(iter(found.gradients.values())).view(-1)[0] += 1
        return found

    monkeypatch.setattr(verify._Bench, "observe", spoil_the_first)
    words = ("verify", "command_models:Net", *INPUT, "--budget", "70%", "--rounds", "1", "--json")
    assert main(words) == 1
    payload = json.loads(capsys.readouterr().out)
    assert not payload["gradients_equal"]
    assert not payload["ok"]


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo on smaller images, so that it takes seconds."""
    case = demo_model.demo_case
    monkeypatch.setattr(demo_model, "demo_case", lambda **_: case(batch=1, size=32, width=8))
    monkeypatch.setattr(demo_command, "ROUNDS", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("small_demo")
def test_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    pytest.importorskip("matplotlib")
    assert demo_command.SHARES == (80, 60, 40)
    monkeypatch.setattr(demo_command, "SHARES", (80, 40))
    assert main(["demo", "--json", "-o", "deep/er"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    payload = json.loads(out)
    assert payload["status"] == "OK"
    assert [row["share_percent"] for row in payload["budgets"]] == [80, 40]
    for row in payload["budgets"]:
        assert row["asked_bytes"] == payload["plain_peak_bytes"] * row["share_percent"] // 100
        assert row["raised_to_smallest_feasible"] == (row["budget_bytes"] > row["asked_bytes"])
        assert row["planned_peak_bytes"] <= row["budget_bytes"]
        assert row["gradients_equal"]
        assert row["buffers_equal"]
    peaks = [row["planned_peak_bytes"] for row in payload["budgets"]]
    assert peaks == sorted(peaks, reverse=True)
    picture = folder / "deep/er/timeline.svg"
    assert payload["picture"] == "deep/er/timeline.svg"
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")
    assert payload["report"] == "deep/er/report.html"
    assert 'id="data"' in (folder / "deep/er/report.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("small_demo")
def test_demo_raises_a_budget_that_is_too_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_command, "SHARES", (5,))
    monkeypatch.setattr(demo_command.importlib.util, "find_spec", lambda name: None)
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert "smallest feasible" in out
    assert "5% of the plain step's peak" in out
    assert "matplotlib is not installed" in out
    assert [path.name for path in Path("demo-output").iterdir()] == ["report.html"]


def test_an_infeasible_verify_is_exit_3(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("verify", "command_models:Net", *INPUT, "--budget", "20KiB", "--rounds", "1")
    assert main(words) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "smallest feasible budget" in err
    assert issubclass(InfeasibleBudgetError, Exception)
