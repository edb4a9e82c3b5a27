from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from memfit.pytorch.cost import on_disk as cost_cache
from memfit.pytorch.cost.on_disk import (
    FORMAT_VERSION,
    CostCache,
    cache_folder,
    open_cost_cache,
    source_digest,
)
from memfit.pytorch.cost.op_calls import OpCall, OpCost, TensorSpec
from memfit.pytorch.cost.profile import profile_calls

aten = torch.ops.aten
RUNS: list[int] = []


def counted(x: torch.Tensor) -> torch.Tensor:
    RUNS.append(1)
    return x.relu()


def call_of(size: int) -> OpCall:
    return OpCall(counted, (TensorSpec.of(torch.empty(size)),))


def cost(time_ns: int) -> OpCost:
    return OpCost(time_ns, 20, 30, "measured")


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_what_was_saved_is_found_again(tmp_path: Path) -> None:
    cache = CostCache(tmp_path / "deep" / "folder")
    assert cache.get(call_of(3)) is None
    cache.put(call_of(3), cost(10))
    cache.save()
    found = CostCache(tmp_path / "deep" / "folder").get(call_of(3))
    assert found == OpCost(10, 20, 30, "cached")
    assert CostCache(tmp_path / "deep" / "folder").get(call_of(4)) is None


def test_nothing_is_written_before_save(tmp_path: Path) -> None:
    CostCache(tmp_path).put(call_of(3), cost(10))
    assert files(tmp_path) == []


def test_a_second_profile_measures_nothing(tmp_path: Path) -> None:
    calls = [call_of(8), call_of(9)]
    first = profile_calls(calls, time_budget_s=0, cache=CostCache(tmp_path))
    RUNS.clear()
    second = profile_calls(calls, time_budget_s=0, cache=CostCache(tmp_path))
    assert RUNS == []
    assert (second.cached, second.rounds) == (2, 0)
    assert [(c.time_ns, c.workspace_bytes, c.output_bytes) for c in first.costs] == [
        (c.time_ns, c.workspace_bytes, c.output_bytes) for c in second.costs
    ]
    assert {c.source for c in second.costs} == {"cached"}


def test_estimates_are_not_kept(tmp_path: Path) -> None:
    bad = OpCall(aten.view.default, (TensorSpec.of(torch.empty(3)), [7, 7]))
    profile = profile_calls([bad], time_budget_s=0, cache=CostCache(tmp_path))
    assert profile.costs[0].source == "analytic"
    assert files(tmp_path) == []


def test_other_conditions_are_other_costs(tmp_path: Path) -> None:
    cache = CostCache(tmp_path)
    cache.put(call_of(3), cost(10))
    cache.save()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert CostCache(tmp_path).get(call_of(3)) is None
    finally:
        torch.set_num_threads(threads)
    assert CostCache(tmp_path).get(call_of(3)) is not None


def test_costs_of_other_code_are_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CostCache(tmp_path)
    cache.put(call_of(3), cost(10))
    cache.save()
    monkeypatch.setattr(cost_cache, "_own_code", lambda: "another checkout")
    assert CostCache(tmp_path).get(call_of(3)) is None
    monkeypatch.undo()
    assert CostCache(tmp_path).get(call_of(3)) is not None


def test_code_is_known_by_names_and_text(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        shutil.rmtree(tmp_path)
        for name, text in files.items():
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "rules.py").write_text(text, encoding="utf-8")
        return source_digest(tmp_path)

    first = digest(a="x = 1", b="y = 2")
    assert digest(a="x = 1", b="y = 2") == first
    assert len({first, digest(a="x = 2", b="y = 2"), digest(a="x = 1", c="y = 2")}) == 3


def test_two_processes_keep_each_others_costs(tmp_path: Path) -> None:
    one, two = CostCache(tmp_path), CostCache(tmp_path)
    one.get(call_of(1)), two.get(call_of(1))
    one.put(call_of(1), cost(1))
    two.put(call_of(2), cost(2))
    one.save()
    two.save()
    third = CostCache(tmp_path)
    assert [third.get(call_of(n)).time_ns for n in (1, 2)] == [1, 2]
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format_version": 0, "costs": {}}',
        json.dumps({"format_version": FORMAT_VERSION, "costs": {"a": [1, 2]}}),
        json.dumps({"format_version": FORMAT_VERSION, "costs": {"a": [1, -2, 3]}}),
        json.dumps({"format_version": FORMAT_VERSION, "costs": {"a": [1, "2", 3]}}),
        json.dumps({"format_version": FORMAT_VERSION}),
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CostCache(tmp_path)
    cache.put(call_of(3), cost(10))
    cache.save()
    (path,) = files(tmp_path)
    path.write_text(text)
    again = CostCache(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert again.get(call_of(3)) is None
    assert str(path) in caplog.text
    again.put(call_of(3), cost(11))
    again.save()
    assert CostCache(tmp_path).get(call_of(3)) == OpCost(11, 20, 30, "cached")


def test_a_folder_that_cannot_be_made_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = CostCache(tmp_path / "file" / "inside")
    cache.put(call_of(3), cost(10))
    with caplog.at_level(logging.WARNING):
        cache.save()
    assert "not kept" in caplog.text


def test_calls_without_a_stable_text_are_left_out(tmp_path: Path) -> None:
    cache = CostCache(tmp_path)
    call = OpCall(lambda x: x, (TensorSpec.of(torch.empty(3)),))
    cache.put(call, cost(10))
    cache.save()
    assert cache.get(call) is None
    assert files(tmp_path) == []


def test_environment_chooses_folder_and_turns_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEMFIT_CACHE", raising=False)
    monkeypatch.delenv("MEMFIT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "memfit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "memfit"
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
    assert open_cost_cache() is not None
    assert open_cost_cache(False) is None
    monkeypatch.setenv("MEMFIT_CACHE", "0")
    assert open_cost_cache() is None
    assert open_cost_cache(True) is not None
