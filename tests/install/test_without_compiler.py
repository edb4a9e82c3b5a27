"""`pip install .` with and without a C++ compiler: it works, and says which core it got."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import memfit
from memfit.graph.graph_file import write_graph
from memfit.graph.published import bare_graph

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "src", "native")
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++")
BUILD_TOOLS = ("cmake", "ninja", "make")  # what pip's build isolation brings in, or finds


@dataclass(frozen=True)
class Installed:
    """memfit in a folder of its own, used with the test environment's other packages."""

    folder: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs Python so that this memfit is imported and not the one under test.

        Without `site`, which would put an editable install first.
        """
        paths = [
            self.folder,
            *map(Path, {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}),
        ]
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("MEMFIT", "PYTHON"))
        }
        environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        return subprocess.run(
            [sys.executable, "-S", *arguments],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def memfit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the installed command."""
        return self.run(str(self.folder / "bin" / "memfit"), *arguments)

    def build_info(self) -> dict[str, str | None]:
        done = self.run(
            "-c", "import json, memfit; print(json.dumps([memfit.__file__, memfit.build_info()]))"
        )
        assert done.returncode == 0, done.stderr
        file, info = json.loads(done.stdout)
        assert Path(file).is_relative_to(self.folder)
        assert isinstance(info, dict)
        return info


def find(name: str) -> str | None:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    return shutil.which(name, path=path)


def install(folder: Path, environment: dict[str, str]) -> Installed:
    """Installs a copy of the checkout, with the build tools of the test environment."""
    # Asked in another process: importing pip hides setuptools' distutils from this one's compiler.
    asked = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True)
    if asked.returncode != 0:
        pytest.skip("no pip in this environment")
    pytest.importorskip("scikit_build_core")
    source = folder / "source"
    source.mkdir(parents=True)
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", ".*", "*.so")
            shutil.copytree(REPOSITORY / name, source / name, ignore=unwanted)
        else:
            shutil.copy(REPOSITORY / name, source / name)
    target = folder / "installed"
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)],
        env={"HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Installed(target)


def build_tools_only(folder: Path) -> Path:
    """A folder of programs to stand for the whole path: no compiler among them."""
    folder.mkdir(parents=True)
    for name in BUILD_TOOLS:
        found = find(name)
        if found is not None:
            (folder / name).symlink_to(found)
    return folder


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Installed where every compiler fails."""
    folder = tmp_path_factory.mktemp("pure")
    programs = build_tools_only(folder / "programs")
    for name in COMPILERS:
        (programs / name).write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    compilers = {"CC": str(programs / "cc"), "CXX": str(programs / "c++")}
    return install(folder, {"PATH": str(programs), **compilers})


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    n = 12
    before = [[] if v == 0 else [v - 1, *([v - 3] if v % 3 == 0 else [])] for v in range(n)]
    sizes = [(7 * v) % 5 + 1 for v in range(n)]
    graph = bare_graph(before, sizes, [2] * n, [[*before[v], v] for v in range(n)], name="ladder")
    path = tmp_path_factory.mktemp("graph") / "ladder.json"
    write_graph(graph, path)
    return path


def solve(installed: Installed, graph_file: Path, planner: str) -> tuple[dict[str, Any], str]:
    """The plan, without what differs from run to run, and what is said on stderr."""
    done = installed.memfit(
        "solve", str(graph_file), "--planner", planner, "--budget", "70%", "--json"
    )
    assert done.returncode == 0, done.stderr
    plan: dict[str, Any] = json.loads(done.stdout)
    del plan["seconds"]
    return plan, done.stderr


def slow_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if "slow" in line]


def test_the_python_core_is_installed_and_named(pure: Installed) -> None:
    assert not list(pure.folder.rglob("*.so"))
    assert pure.build_info() == {
        "version": memfit.__version__,
        "core": "python",
        "compiler": None,
    }
    done = pure.memfit("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"memfit {memfit.__version__} (python core)\n"


def test_no_compiler_at_all(tmp_path: Path) -> None:
    programs = build_tools_only(tmp_path / "programs")
    assert install(tmp_path, {"PATH": str(programs)}).build_info()["core"] == "python"


@pytest.mark.parametrize("planner", ["liveness", "exact"])
def test_planning_works_and_says_once_that_it_is_slower(
    pure: Installed, graph_file: Path, planner: str
) -> None:
    plan, said = solve(pure, graph_file, planner)
    assert plan["planner"] == planner
    assert plan["peak_bytes"] <= plan["budget_bytes"]
    (line,) = said.splitlines()
    assert "pure-Python core" in line
    assert slow_lines(said) == [line]


PLAN_TWICE = """
from memfit.graph.graph_file import read_graph
from memfit.planners import PlannerOptions, get_planner
graph = read_graph({path!r})
for name in ("liveness", "exact", "approximate", "liveness"):
    print(get_planner(name)(graph, 10**6, PlannerOptions()).status.name)
"""


@pytest.mark.parametrize("setup", ["", "import logging; logging.basicConfig()"])
def test_a_program_that_plans_often_is_told_once(
    pure: Installed, graph_file: Path, setup: str
) -> None:
    done = pure.run("-c", setup + PLAN_TWICE.format(path=str(graph_file)))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 4
    assert len(done.stderr.splitlines()) == 1
    assert len(slow_lines(done.stderr)) == 1


PLAN_MODEL = """
import torch, memfit
model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(4)])
for budget in ("100%", "90%"):
    try:
        print(memfit.plan(model, (torch.randn(4, 8),), budget=budget).peak_bytes > 0)
    except memfit.InfeasibleBudgetError:
        print("infeasible")
"""


@pytest.mark.slow
def test_a_model_is_planned_without_a_compiler(pure: Installed) -> None:
    done = pure.run("-c", PLAN_MODEL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "True"
    assert len(slow_lines(done.stderr)) == 1


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Installed with the compiler of this machine."""
    if not any(find(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler on this machine")
    kept = ("PATH", "CC", "CXX", "CXXFLAGS", "LDFLAGS")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment["PATH"] = os.pathsep.join(
        (environment.get("PATH", os.defpath), str(Path(sys.executable).parent))
    )
    return install(tmp_path_factory.mktemp("native"), environment)


@pytest.mark.slow
def test_the_native_core_is_installed_and_named(native: Installed) -> None:
    info = native.build_info()
    assert (info["version"], info["core"]) == (memfit.__version__, "native")
    assert info["compiler"]
    done = native.memfit("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"memfit {memfit.__version__} (native core, {info['compiler']})\n"


@pytest.mark.slow
@pytest.mark.parametrize("planner", ["liveness", "exact", "approximate"])
def test_both_installations_plan_alike(
    native: Installed, pure: Installed, graph_file: Path, planner: str
) -> None:
    plan, said = solve(native, graph_file, planner)
    assert said == ""
    assert solve(pure, graph_file, planner)[0] == plan
