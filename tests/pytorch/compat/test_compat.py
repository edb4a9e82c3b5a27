"""The private names that memfit relies on exist in this PyTorch; others are refused clearly."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

import memfit.pytorch.compat.versions as versions
from memfit.errors import UnsupportedTorchError
from memfit.files import PACKAGE_FOLDER

SOURCE = PACKAGE_FOLDER
FILES = sorted(SOURCE.rglob("*.py"))
PLAIN = ("__init__", "config_values", "remedies", "versions")  # no private name is in them
COMPAT = [p for p in FILES if p.parent.name == "compat" or p.name.endswith("_patch.py")]


def live(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, without branches that `if TORCH >= (2, 13)` and the like leave out here."""
    if isinstance(tree, ast.If) and "TORCH" in {ast.unparse(n) for n in ast.walk(tree.test)}:
        taken = eval(ast.unparse(tree.test), {"TORCH": versions.torch_version()})
        children: Iterable[ast.AST] = tree.body if taken else tree.orelse
    else:
        yield tree
        children = ast.iter_child_nodes(tree)
    for child in children:
        yield from live(child)


def imported(tree: ast.AST) -> Iterator[tuple[str, ast.alias]]:
    """Modules of torch and names out of them (or a module itself), imported anywhere in a file."""
    for node in live(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, a) for a in node.names if a.name.split(".")[0] == "torch")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            yield from ((str(node.module), alias) for alias in node.names)


def full_names(tree: ast.AST) -> dict[str, str]:
    """What local names stand for: `torch`, and each name imported out of one of its modules."""
    found = {"torch": "torch"}
    for module, alias in imported(tree):
        if alias.name != module:
            found[alias.asname or alias.name] = f"{module}.{alias.name}"
        elif alias.asname:
            found[alias.asname] = module
    return found


def dotted(node: ast.AST, known: dict[str, str]) -> str | None:
    """`torch.a.b` of an attribute access, None of any other expression."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, known)
        return f"{base}.{node.attr}" if base else None
    return None


def named(tree: ast.AST) -> set[str]:
    """Every `torch.a.b` that a file imports or names.

    Not ops (looked up where they are used) nor what there is only while Inductor compiles.
    """
    known = full_names(tree)
    found = {dotted(node, known) for node in live(tree) if isinstance(node, ast.Attribute)}
    names = {name for name in found if name} | set(known.values())
    late = ("torch.ops.", "torch._inductor.virtualized.V.graph")
    return {name for name in names if not name.startswith(late)}


def private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def resolve(name: str) -> object:
    """The object of that name, whose modules are imported on the way.

    A module counts before what its package has of the same name: `while_loop` is in `while_loop`.
    """
    first, *rest = name.split(".")
    value: object = importlib.import_module(first)
    for part in rest:
        path = f"{getattr(value, '__name__', '')}.{part}"
        if hasattr(value, "__path__") and importlib.util.find_spec(path):
            value = importlib.import_module(path)
        else:
            value = getattr(value, part)
    return value


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # Inductor's own
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_private_name_that_is_used_exists(path: Path) -> None:
    names = {n for n in named(ast.parse(path.read_text(encoding="utf-8"))) if private(n)}
    assert bool(names) or path not in COMPAT or path.stem in PLAIN
    for name in names:
        if name.startswith("torch._C._cuda_") and not torch.backends.cuda.is_built():
            continue
        resolve(name)


def test_the_check_sees_a_name_that_is_gone() -> None:
    text = (
        "from torch._dynamo import nowhere\n"
        "from torch._inductor.codegen import wrapper as w\n"
        "x = torch._C._no_such_thing(1), w.Gone, y.torch.z\n"
        "if TORCH >= (99, 0):\n    from torch import _later\nelse:\n    from torch import _now\n"
    )
    assert named(ast.parse(text)) == {
        "torch",
        "torch._C",
        "torch._C._no_such_thing",
        "torch._dynamo.nowhere",
        "torch._inductor.codegen.wrapper",
        "torch._inductor.codegen.wrapper.Gone",
        "torch._now",
    }
    with pytest.raises(AttributeError):
        resolve("torch._C._no_such_thing")


def test_private_modules_are_imported_in_compat_alone() -> None:
    for path in set(FILES) - set(COMPAT):
        for module, alias in imported(ast.parse(path.read_text(encoding="utf-8"))):
            assert not private(f"{module}.{alias.name}"), f"{path}: {module}.{alias.name}"


@pytest.mark.parametrize(
    "version", ["2.11.0", "2.12.0+cpu", "2.12.1+cu130", "2.13.0", "2.13.1+rocm7", "2.13.0a0+git12"]
)
def test_supported_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    versions.check_torch_version()


@pytest.mark.parametrize("version", ["1.13.1", "2.2.0", "2.10.1+cpu", "2.14.0", "2.111.0", "3.0.0"])
def test_other_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(UnsupportedTorchError) as caught:
        versions.check_torch_version()
    message = str(caught.value)
    assert message.startswith(f"torch {version} is not supported; memfit runs with torch 2.11 to")
    assert message.endswith("2.13; install one of these")


@pytest.fixture
def other_torch(tmp_path: Path) -> Path:
    """A folder with a torch of another version, which has none of the names that memfit needs."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text('__version__ = "2.10.0"\n', encoding="utf-8")
    return tmp_path


def run_with(torch_in: Path, code: str) -> subprocess.CompletedProcess[str]:
    """The code in a process of its own, where this memfit and that torch come first."""
    paths = f"import sys; sys.path[:] = {[str(torch_in), str(SOURCE.parent), *sys.path]}; "
    command = [sys.executable, "-S", "-c", paths + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


REFUSAL = "torch 2.10.0 is not supported; memfit runs with torch 2.11 to 2.13; install one of these"


@pytest.mark.parametrize(
    "use",
    [
        "import memfit; memfit.fit",
        "import torch, memfit; memfit.verify",
        "import memfit.pytorch.inductor.scheduler_patch",
        # What torch.compile looks up:
        "from memfit.pytorch.compiled.compile_backend import memfit_backend",
    ],
)
def test_another_torch_is_refused_before_its_private_names_are_asked_for(
    use: str, other_torch: Path
) -> None:
    done = run_with(other_torch, use)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"memfit.errors.UnsupportedTorchError: {REFUSAL}"


def test_the_command_line_refuses_another_torch_in_one_line(other_torch: Path) -> None:
    done = run_with(other_torch, "from memfit.cli import main; sys.exit(main(['demo']))")
    assert done.returncode != 0
    assert REFUSAL in done.stderr
    assert "Traceback" not in done.stderr


def test_another_torch_does_not_stop_what_needs_none(other_torch: Path) -> None:
    done = run_with(other_torch, "import torch, memfit; print(memfit.Plan, memfit.build_info())")
    assert done.returncode == 0, done.stderr
