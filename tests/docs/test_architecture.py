"""The house as the contracts say: one way, without cycles; and its picture as it is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import grimp
import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "pictures" / "make_architecture.py"
MOST_FILES, MOST_LINES = 16, 500


@pytest.fixture(scope="module")
def drawing() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("make_architecture", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_architecture"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_architecture"]


def all_imports() -> grimp.ImportGraph:
    graph = grimp.build_graph("memfit", exclude_type_checking_imports=True)
    # The compiled core is no file that imports are read from; what is seen is its package.
    graph.remove_import(importer="memfit._core.native", imported="memfit._core")
    return graph


def in_order(graph: grimp.ImportGraph) -> None:
    TopologicalSorter(
        {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    ).prepare()


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        in_order(all_imports())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_arrow_goes_upwards(drawing: ModuleType) -> None:
    for house in drawing.houses():
        level = {room: i for i, layer in enumerate(house.layers) for room in layer}
        assert house.imports
        upwards = [f"{a} -> {b}" for a, b in house.imports if level[a] >= level[b]]
        assert not upwards, (house.package, upwards)


def test_a_cycle_and_an_upward_arrow_would_be_seen(drawing: ModuleType) -> None:
    graph = all_imports()
    graph.add_import(importer="memfit.units", imported="memfit.errors")
    with pytest.raises(CycleError):
        in_order(graph)
    package, layers = drawing.contracts()[0]
    house = drawing.read_house(graph, package, layers)
    assert ("units", "errors") in house.imports


def test_the_picture_is_that_of_the_code(drawing: ModuleType) -> None:
    wanted = drawing.draw(drawing.houses())
    assert wanted == drawing.PICTURE.read_text(encoding="utf-8"), f"run python {FILE}"


def test_rooms_and_files_are_of_a_size_that_one_can_read() -> None:
    for folder in sorted(p.parent for p in (ROOT / "src").rglob("*.py")):
        held = [p for p in folder.iterdir() if p.is_file() and p.suffix not in (".so", ".pyd")]
        assert len(held) <= MOST_FILES, folder
    for path in (ROOT / "src").rglob("*.py"):
        assert path.read_text(encoding="utf-8").count("\n") <= MOST_LINES, path


def test_all_contracts_are_kept() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout
