"""The list of ops (docs/ops.md) is what benchmarks/ops finds, and what memfit goes by."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memfit.pytorch.layouts.as_traced import surveyed
from support.benchmarks import FOLDER, ROOT, benchmark_module

EQUAL = 20  # ops without a difference that are looked at again


@pytest.fixture(scope="module")
def survey() -> dict[str, Any]:
    file = FOLDER / "results" / "ops.json"
    if not file.is_file():
        pytest.skip("the benchmarks are not there: a source distribution leaves them out")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.fixture(scope="module")
def tools(survey: dict[str, Any]) -> SimpleNamespace:
    """The modules of the survey, PyTorch's op database among them."""
    pytest.importorskip("expecttest")
    names = ("samples", "watch", "verdicts", "page")
    return SimpleNamespace(**{n: benchmark_module(f"ops.{n}") for n in names})


def test_verdicts_follow_from_differences(survey: dict[str, Any], tools: SimpleNamespace) -> None:
    verdicts = list(tools.verdicts.VERDICTS)
    for name, op in survey["ops"].items():
        assert op["verdict"] in verdicts, name
        for kind in op.get("differs", ()):
            assert kind["verdict"] == tools.verdicts.call_verdict(kind["fake"], kind["told"])
            assert verdicts.index(kind["verdict"]) <= verdicts.index(op["verdict"])
    assert sum(survey["verdicts"].values()) == survey["totals"]["overloads"] == len(survey["ops"])


def test_page_and_list_are_those_of_the_survey(
    survey: dict[str, Any], tools: SimpleNamespace
) -> None:
    assert (ROOT / "docs" / "ops.md").read_text() == tools.page.page(survey)
    text = tools.page.surveyed_text(survey)
    assert (ROOT / "src/memfit/pytorch/layouts/surveyed.txt").read_text() == text
    assert set(tools.verdicts.trusted(survey)) == surveyed()


def same_torch(survey: dict[str, Any]) -> None:
    if survey["torch"] != torch.__version__.partition("+")[0]:
        pytest.skip(f"the survey was made with PyTorch {survey['torch']}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ops_that_differ_still_do_and_some_others_do_not(
    survey: dict[str, Any], tools: SimpleNamespace
) -> None:
    same_torch(survey)
    crashed = {run for crash in survey["crashes"] for run in crash["runs"]}
    chosen: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for example in tools.verdicts.examples(survey, same=EQUAL):
        chosen[example["entry"]][example["run"]].append(example)
    calls: dict[str, Any] = {}
    watch = tools.watch.Watch(lambda call: calls.setdefault(call.key, call), lambda _: None)
    logging.disable(logging.ERROR)
    try:
        for entry, wanted in chosen.items():
            for number, run in enumerate(tools.samples.runs_of(entry, survey["samples"])):
                if number in wanted and f"{entry}, {run.label}" not in crashed:
                    with watch:
                        refused(tools, run)
                else:
                    wanted.pop(number, None)
                if number >= max(wanted, default=-1):
                    break
    finally:
        logging.disable(logging.NOTSET)
    examples = [e for runs in chosen.values() for found in runs.values() for e in found]
    differing = {op for op, found in survey["ops"].items() if found.get("differs")}
    assert len({e["op"] for e in examples} & differing) >= 0.95 * len(differing)
    assert len({e["op"] for e in examples} - differing) >= EQUAL
    for example in examples:
        call = calls[example["key"]]
        found = (call.op, list(call.raw), list(call.told))
        assert found == (example["op"], example["fake"], example["told"]), example


def refused(tools: SimpleNamespace, run: Any) -> None:
    """A run; what eager refuses is compared, too."""
    try:
        tools.samples.execute(run)
    except Exception as error:
        logging.getLogger("memfit").debug("%s: %s", run.label, error)


@pytest.mark.slow
def test_the_whole_survey(survey: dict[str, Any], tmp_path: Path) -> None:
    same_torch(survey)
    new = tmp_path / "ops.json"
    command = [sys.executable, "-m", "benchmarks.ops.run", "--results", str(new)]
    command += ["--samples", str(survey["samples"])]
    subprocess.run(command, check=True, cwd=ROOT)
    assert verdicts(json.loads(new.read_text())) == verdicts(survey)


def verdicts(survey: dict[str, Any]) -> dict[str, tuple[str, int, list[Any]]]:
    """What does not depend on the order of calls: a kernel that refuses an index does, by data.

    Nor does the number of calls of an op whose kernel ends the process: by what it reads behind its
    memory it ends one run or another.
    """
    crashing = {crash["op"] for crash in survey["crashes"]}
    found = {}
    for name, op in survey["ops"].items():
        kinds = [[k["fake"], k["told"]] for k in op.get("differs", ()) if k["verdict"] != "refused"]
        found[name] = (op["verdict"], 0 if name in crashing else op["calls"], kinds)
    return found
