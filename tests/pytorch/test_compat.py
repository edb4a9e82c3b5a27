"""The private names that memfit relies on exist in this PyTorch; others are refused clearly."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import memfit.pytorch.compat as compat
from memfit.errors import UnsupportedTorchError

SOURCE = Path(compat.__file__).parents[1]
FILES = sorted(SOURCE.rglob("*.py"))
COMPAT = [path for path in FILES if path.name.startswith("compat")]


def imported(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Modules of torch and names out of them, as they are imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, None) for a in node.names if a.name.split(".")[0] == "torch")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            yield from ((str(node.module), alias.name) for alias in node.names)


def dotted(node: ast.AST) -> str | None:
    """`torch.a.b` of an attribute access, None of any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else None
    return None


def named(tree: ast.AST) -> set[str]:
    """Every `torch.a.b` that a file names, without ops (looked up where they are used)."""
    found = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {n for n in found if n and n.startswith("torch.") and not n.startswith("torch.ops.")}


def private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def resolve(name: str) -> object:
    """The object of that name, whose modules are imported on the way."""
    first, *rest = name.split(".")
    value: object = importlib.import_module(first)
    for i, part in enumerate(rest):
        if not hasattr(value, part):
            importlib.import_module(".".join([first, *rest[: i + 1]]))
        value = getattr(value, part)
    return value


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # Inductor's own
@pytest.mark.parametrize("path", COMPAT, ids=lambda path: path.name)
def test_everything_that_is_imported_exists(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = list(imported(tree))
    used = {f"{module}.{name}" for module, name in found} | named(tree)
    assert any(private(name) for name in used)
    for module, name in found:
        assert name is None or hasattr(importlib.import_module(module), name), (module, name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_private_name_that_is_used_exists(path: Path) -> None:
    for name in named(ast.parse(path.read_text(encoding="utf-8"))):
        absent = name.startswith("torch._C._cuda_") and not torch.backends.cuda.is_built()
        if private(name) and not absent:
            resolve(name)


def test_the_check_sees_a_name_that_is_gone() -> None:
    tree = ast.parse("from torch._dynamo import nowhere\nx = torch._C._no_such_thing(1)")
    assert list(imported(tree)) == [("torch._dynamo", "nowhere")]
    assert "torch._C._no_such_thing" in named(tree)
    with pytest.raises(ImportError):
        resolve("torch._C._no_such_thing")


def test_private_modules_are_imported_in_compat_alone() -> None:
    for path in set(FILES) - set(COMPAT):
        for module, name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            assert not private(f"{module}.{name}"), f"{path}: {module}.{name}"


@pytest.mark.parametrize(
    "version", ["2.11.0", "2.12.0+cpu", "2.12.1+cu130", "2.13.0", "2.13.1+rocm7", "2.13.0a0+git12"]
)
def test_supported_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    compat.check_torch_version()


@pytest.mark.parametrize("version", ["1.13.1", "2.2.0", "2.10.1+cpu", "2.14.0", "2.111.0", "3.0.0"])
def test_other_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(UnsupportedTorchError) as caught:
        compat.check_torch_version()
    message = str(caught.value)
    assert message.startswith(f"torch {version} is not supported; memfit runs with torch 2.11 to")
    assert message.endswith("2.13; install one of these")
