"""What `make` installs has exact versions: constraints-dev.txt names it all, for every Python."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ("3.11.0", "3.11.9", "3.12.0", "3.13.0")
NOT_PINNED = {"memfit", "setuptools", "torch"}
"""By name: ourselves, and PyTorch, which TORCH chooses and which says what setuptools it takes."""


def pins_for(environment: Mapping[str, str]) -> dict[str, str]:
    """The version that an environment gets of each package."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints-dev.txt").read_text(encoding="utf-8").splitlines():
        if not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(dict(environment)):
                name = canonicalize_name(requirement.name)
                (specifier,) = requirement.specifier
                assert specifier.operator == "==", line
                assert name not in found, f"{name} has two versions"
                found[name] = specifier.version
    return found


def python(version: str) -> dict[str, str]:
    """Python of a version on Linux, as markers see it."""
    short = version.rpartition(".")[0]
    machine = {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"}
    return {
        **{name: str(value) for name, value in default_environment().items()},
        **machine,
        "python_version": short,
        "python_full_version": version,
    }


def declared() -> list[Requirement]:
    """What pyproject.toml asks for itself, for all purposes but the zoo, which pins its own."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    texts: Iterable[str] = (
        *project["dependencies"],
        *(text for name, extra in extras.items() if name != "zoo" for text in extra),
        *PROJECT["build-system"]["requires"],
    )
    return [r for r in map(Requirement, texts) if canonicalize_name(r.name) not in NOT_PINNED]


@pytest.mark.parametrize("version", PYTHONS)
def test_everything_declared_is_pinned_within_its_range(version: str) -> None:
    pins = pins_for(python(version))
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not pinned; run make constraints"
        assert requirement.specifier.contains(pins[name]), f"{requirement}: {pins[name]}"


def test_the_zoo_pins_its_own_packages() -> None:
    for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"]["zoo"]):
        assert [pin.operator for pin in requirement.specifier] == ["=="], requirement
        assert canonicalize_name(requirement.name) not in NOT_PINNED


@pytest.mark.parametrize("version", PYTHONS)
def test_pytorch_is_left_to_itself(version: str) -> None:
    pins = pins_for(python(version))
    assert NOT_PINNED.isdisjoint(pins)
    assert [name for name in pins if re.match(r"nvidia|cuda|triton|torchvision", name)] == []


def installed_below(names: Iterable[str]) -> dict[str, str]:
    """Installed packages that the named ones need, with their versions, PyTorch's own left out."""
    found: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found or name in NOT_PINNED:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = package.version
        needs = (Requirement(text) for text in package.requires or ())
        waiting += [r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def test_nothing_is_installed_that_is_not_pinned() -> None:
    pins = pins_for({name: str(value) for name, value in default_environment().items()})
    installed = installed_below(r.name for r in declared())
    asked = {canonicalize_name(r.name) for r in declared()} & set(installed)
    if other := sorted(n for n in asked if Version(installed[n]) != Version(pins[n])):
        pytest.skip(f"not the pinned environment: {', '.join(other)}")
    assert len(installed) > 50
    assert {n: v for n, v in installed.items() if pins.get(n) != v} == {}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_every_installation_is_held_to_the_versions(tmp_path: Path) -> None:
    def installs(*settings: str) -> list[str]:
        done = subprocess.run(
            ["make", "--dry-run", f"VENV={tmp_path}", *settings, "demo", "test", "docs"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return [
            line for line in done.stdout.replace("\\\n", "").splitlines() if " install " in line
        ]

    held = re.compile(r"PIP_CONSTRAINT=(\S*) PIP_BUILD_CONSTRAINT=(\S*)\s")
    for settings, file in [((), "constraints-dev.txt"), (("CONSTRAINTS=",), "")]:
        commands = installs(*settings)
        assert len(commands) >= 4
        for command in commands:
            found = held.search(command)
            assert found is not None, command
            assert found.groups() == (file, file)


def test_continuous_integration_runs_the_commands_of_the_readme() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").split("```")[1]
    commands = re.findall(r"^make \w+", first, flags=re.MULTILINE)
    assert len(commands) == 3
    assert set(commands) <= set((ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines())
