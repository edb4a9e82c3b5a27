"""`memfit sweep`, `inspect`, `max-batch` and `explain` in this process, on small models."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from memfit.cli import main
from memfit.graph.graph_file import write_graph
from memfit.graph.published import bare_graph

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(8))
    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x

class Huge(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2_000_000, 1_000_000)
    def forward(self, x):
        return self.layer(x)

class ReadsData(nn.Module):
    def __init__(self):
        super().__init__()
        self.rates = [x.item() for x in torch.linspace(0, 1, 3)]
        self.layer = nn.Linear(4, 4)
    def forward(self, x):
        return self.layer(x) * self.rates[1]

def needs_arguments(width, depth):
    return Net(width)

def with_inputs(batch=4):
    return nn.Linear(8, 8), (torch.randn(batch, 8), torch.randn(batch, 8)), nn.functional.mse_loss
"""
NET = ("sight_models:Net", "--input", "4x8x24x24")
ANALYTIC = ("--cost", "analytic")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with models and a graph, and a cost cache of its own."""
    (tmp_path / "sight_models.py").write_text(MODELS)
    before = [[v - 1] if v else [] for v in range(9)]
    reads = [[*before[v], v] for v in range(9)]
    write_graph(bare_graph(before, [100] * 9, [2] * 9, reads, name="chain"), tmp_path / "g.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MEMFIT_DEBUG", raising=False)
    monkeypatch.syspath_prepend("")
    monkeypatch.delitem(__import__("sys").modules, "sight_models", raising=False)
    torch.compiler.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command: exit code, the object on stdout, stderr."""

    def call(*words: str) -> tuple[int, dict[str, Any], str]:
        code = main([*words, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return call


# --- sweep ----------------------------------------------------------------------------------------


def test_sweep_of_a_model(run: Any, folder: Path) -> None:
    words = ("sweep", *NET, *ANALYTIC, "--csv", "all.csv")
    code, found, err = run(*words)
    assert (code, err) == (0, "")
    points, peers = found["points"], found["peers"]
    assert points[0]["overhead"] == 0
    assert points[0]["peak_bytes"] <= found["plain_peak_bytes"]
    assert points[-1]["peak_bytes"] == found["smallest_feasible_budget"]
    assert [p["overhead"] for p in points] == sorted(p["overhead"] for p in points)
    assert {p["series"] for p in peers} == {
        "chen", "sqrt(n)", "per module", "paper, time", "paper, memory", "salimans",
    }  # fmt: skip
    for peer in peers:  # no peer does better within the same memory
        best = min(p["overhead"] for p in points if p["peak_bytes"] <= peer["peak_bytes"])
        assert best <= peer["overhead"]
    rows = list(csv.DictReader(io.StringIO((folder / "all.csv").read_text())))
    assert len(rows) == len(points) + len(peers)
    assert [int(r["peak_bytes"]) for r in rows[: len(points)]] == [p["peak_bytes"] for p in points]
    # The smallest point is a budget that can be planned for, and one byte less is not.
    smallest = found["smallest_feasible_budget"]
    for budget, feasible in ((smallest, True), (smallest - 1, False)):
        code, why, _ = run("explain", *NET, *ANALYTIC, "--budget", str(budget))
        assert (why["feasible"], code) == (feasible, 0 if feasible else 3)


def test_sweep_of_a_graph_file(run: Any, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    pytest.importorskip("matplotlib")
    code, found, _ = run("sweep", "g.json", "--figure", "g.svg")
    assert code == 0
    assert found["cost_unit"] == "unit"
    assert ElementTree.fromstring((folder / "g.svg").read_text()).tag.endswith("svg")
    once = (folder / "g.svg").read_bytes()
    assert main(["sweep", "g.json", "--figure", "g.svg", "--rows", "3"]) == 0
    assert (folder / "g.svg").read_bytes() == once
    out = capsys.readouterr().out
    assert "3 of " in out
    assert "Peers on the same graph" in out
    assert main(["sweep", "g.json", "--no-peers", "--csv", "-"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["series"] for row in rows} == {"memfit"}


# --- inspect --------------------------------------------------------------------------------------


def test_inspect(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = run("inspect", *NET, "--memory", "1GiB")
    assert (code, err) == (0, "")
    assert found["fits"] is True
    assert found["model_allocated"] is False
    assert sum(found["parts"].values()) == found["peak_bytes"]
    assert found["parts"]["parameters"] == 8 * 4 * (8 * 8 * 9 + 8)
    assert found["live"] == sorted(found["live"], key=lambda v: -v["size_bytes"])
    assert main(["inspect", *NET, "--memory", "100KB", "--optimizer", "adam"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "The peak is reached in the backward op" in out
    assert "optimizer state" in out
    assert "no plan can go below" in out  # what to do: planning alone does not help
    assert main(["inspect", *NET, "--memory", "700KB"]) == 0
    assert "memfit plan with --budget 700000" in capsys.readouterr().out


def test_inspect_a_model_larger_than_the_machine(run: Any) -> None:
    code, found, _ = run("inspect", "sight_models:Huge", "--input", "4x2000000")
    assert code == 0
    assert found["peak_bytes"] > 14 * 2**40
    assert (found["fits"], found["model_allocated"]) == (False, False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_inspect_for_a_device_that_is_not_there(run: Any) -> None:
    code, found, _ = run("inspect", *NET, "--device", "cuda")
    assert code == 0
    assert found["parts"]["parameters"] == 8 * (2560 + 512)  # in blocks of 512 bytes
    assert found["fits"] is None
    assert "not on this machine" in found["notes"][0]


def test_inspect_says_where_it_needed_memory(run: Any) -> None:
    code, found, _ = run("inspect", "sight_models:ReadsData", "--input", "2x4")
    assert code == 0
    assert found["model_allocated"] is True
    assert "built with memory" in found["notes"][0]


# --- gradients that are accumulated ---------------------------------------------------------------

GRADIENTS = 8 * 4 * (8 * 8 * 9 + 8)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_inspect_counts_gradients_that_are_there_already(run: Any, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    _, once, _ = run("inspect", *NET, "--device", device)
    _, found, _ = run("inspect", *NET, "--device", device, "--accumulate")
    held = GRADIENTS if device == "cpu" else 8 * (2560 + 512)  # in blocks of 512 bytes
    assert found["parts"]["parameter_gradients"] == held
    assert once["peak_bytes"] < found["peak_bytes"] <= once["peak_bytes"] + held


@pytest.mark.slow
def test_accumulated_gradients_are_in_every_budget(run: Any) -> None:
    words = (*NET, *ANALYTIC, "--accumulate")
    _, swept, _ = run("sweep", *words, "--no-peers")
    smallest = swept["smallest_feasible_budget"]
    _, planned, _ = run("plan", *words, "--budget", "100%")
    assert planned["peak_parts"]["parameter_gradients"] == GRADIENTS
    assert planned["smallest_feasible_budget_bytes"] >= smallest
    code, found, _ = run("explain", *words, "--budget", str(smallest))
    assert code == 0
    code, found, _ = run("explain", *words, "--budget", str(smallest - GRADIENTS // 2))
    assert code == 3
    words = ("max-batch", "sight_models:with_inputs", "--budget", "20KB")
    _, without, _ = run(*words)
    _, found, _ = run(*words, "--accumulate", "--verify")
    assert found["batch"] < without["batch"]
    assert found["verified"]["within_budget"]


# --- max-batch ------------------------------------------------------------------------------------


def test_max_batch(run: Any) -> None:
    code, found, err = run("max-batch", *NET, "--budget", "2MiB", "--planner", "liveness")
    assert (code, err) == (0, "")
    assert found["batch"] > found["plain_batch"] >= 1
    assert found["peak_bytes"] <= found["budget_bytes"]
    assert found["model_allocated"] is False
    trials = {t["batch"]: t["fits"] for t in found["trials"]}
    assert trials[found["batch"]]
    assert not trials[found["batch"] + 1]


@pytest.mark.slow
def test_max_batch_verified_with_inputs_of_the_target(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, _ = run("max-batch", "sight_models:with_inputs", "--budget", "20KB", "--verify")
    assert (code, found["status"]) == (0, "OK")
    assert found["verified"]["within_budget"]
    assert found["verified"]["gradients_equal"]
    _, by_argument, _ = run(
        "max-batch", "sight_models:with_inputs", "--budget", "20KB", "--batch-arg", "batch"
    )
    assert by_argument["batch"] == found["batch"]
    assert main(["max-batch", "sight_models:with_inputs", "--budget", "20KB"]) == 0
    assert "batches tried" in capsys.readouterr().out


def test_max_batch_where_not_even_one_fits(run: Any) -> None:
    code, found, err = run("max-batch", *NET, "--budget", "10KB")
    assert code == 3
    assert found["smallest_feasible_budget"] > 10_000
    assert "of a batch of 1" in err
    assert "the batch smaller" not in err


# --- explain --------------------------------------------------------------------------------------


def test_explain(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = run("explain", *NET, *ANALYTIC, "--budget", "10%")
    assert (code, err) == (3, "")
    assert found["status"] == "INFEASIBLE"
    assert found["floor_bytes"] <= found["smallest_feasible_budget"] <= found["plain_peak_bytes"]
    first, second, _ = found["why"]
    assert str(found["smallest_feasible_budget"]) in first
    assert "sight_models.py:" in second  # the op's source line
    assert "must be alive" in second
    assert any("batch smaller" in text for text in found["remedies"])
    assert main(["explain", "g.json", "--budget", "100%"]) == 0
    assert "without any recomputation" in capsys.readouterr().out
    assert main(["explain", "g.json", "--budget", "300"]) == 3
    assert "No plan of any kind can go below" in capsys.readouterr().out


# --- the message alone says what to do ------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("inspect resnet50 --input 2x3", ("module:callable",)),
        ("inspect sight_models.py:Net --input 2x3", ("leave .py out", "sight_models:Net")),
        ("inspect sight_models:Nett --input 2x3", ("did you mean Net?",)),
        ("inspect sight_models:Net", ("--input 8x3x224x224",)),
        ("inspect sight_models:needs_arguments --input 2x8x8x8", ("'width'", "--arg NAME=VALUE")),
        ("inspect sight_models:Net --input 2x3x4x4", ("check number, shapes",)),
        ("inspect sight_models:Net --input 2x8x8x8 --memory 50%", ("write bytes",)),
        ("inspect sight_models:Net --input 2x8x8x8 --device tpu", ("write cpu, cuda",)),
        ("inspect ./sight_models.py:Net --input 2x3", ("write sight_models:Net",)),
        ("inspect lib/sight_models.py --input 2x3", ("write lib.sight_models:NAME",)),
        ("inspect sight_models.Net --input 2x3", ("write sight_models:Net",)),
        ("inspect plan.json", ("memfit report draws a plan", "memfit solve plans a graph")),
        ("inspect sight_models:Net --inputs 2x8x8x8", ("no option --inputs", "write --input")),
        ("inspect sight_models:Net --input 2x8x8x8 --memory 8 GiB", ("'GiB'", "in quotes")),
        ("inspect sight_models:Net --input 2x8x8x8 --budget 1MB", ("leave it out", "--help")),
        ("demo --budget 50%", ("no option --budget", "leave it out", "memfit demo --help")),
        ("solve plan.json --budget 50%", ("is a plan, not a graph", "memfit report")),
        ("solve g.json --budget 50% --family every", ("known families: auto, all",)),
        ("solve g.json --budget 50% -o no-such/plan.json", ("no folder no-such",)),
        ("solve g.json --budget 0.5", ('percent sign, "50%"',)),
        ("solve sight_models:Net --budget 50%", ("memfit plan",)),
        ("sweep no-such.json", ("no-such.json", "check the path")),
        ("sweep sight_models.py", ("no known format", "memfit JSON graph")),
        ("sweep g.json --input 2x3", ("graph file", "leave it out")),
        ("sweep g.json --figure g.pdf", (".svg or .png",)),
        ("sweep g.json --csv no-such/x.csv", ("no folder no-such",)),
        ("sweep g.json --csv - --json", ("both want stdout",)),
        ("sweep g.json --planner chen", ("no trade-off", "liveness")),
        ("sweep g.json --rows 1", ("2 or more",)),
        ("explain g.json --budget auto", ("needs a device",)),
        ("explain plan.json --budget 90%", ("is a plan, not a graph", "MODULE:CALLABLE")),
        ("max-batch sight_models:Net --input 4x8x8x8 --budget 50%", ("give bytes",)),
        ("max-batch sight_models:with_inputs --input 2x2 --batch-arg b --budget 1MB",
         ("leave --input out",)),
        ("max-batch sight_models:with_inputs --batch-arg size --budget 1MB", ("'size'",)),
    ],
)  # fmt: skip
def test_messages_name_the_remedy(
    words: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "plan.json").write_text('{"schema_version": 2, "graph_fingerprint": "0"}')
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    for part in parts:
        assert part in err
    if "--json" in words:
        assert json.loads(out)["status"] == "ERROR"
    else:
        assert out == ""
