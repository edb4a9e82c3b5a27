"""Random and adversarial input for the native core, under address and undefined-behaviour checks.

`native/fuzz` is a program of its own, without Python. It checks answers against plain ways to the
same ones, and that unsound input is refused by an exception. `make fuzz` runs it for longer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SANITIZERS = "address,undefined"
SEEDS = (1, 2)
CASES = 400


def find_program(*names: str) -> str | None:
    """The first of the programs on the path or beside the interpreter."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def run(*command: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built; skipped only where there is nothing to build it with."""
    compiler = find_program(*filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    cmake = find_program("cmake")
    if cmake is None:
        pytest.skip("no CMake on this machine")
    trial = tmp_path_factory.mktemp("trial")
    (trial / "trial.cpp").write_text("int main() { return 0; }\n", encoding="utf-8")
    program = trial / "trial"
    made = run(compiler, f"-fsanitize={SANITIZERS}", trial / "trial.cpp", "-o", program)
    if made.returncode != 0 or run(program).returncode != 0:
        pytest.skip(f"{compiler} has no runtime for -fsanitize={SANITIZERS}")

    # Kept between runs, so that only what has changed is built again.
    folder = REPOSITORY / "build" / "fuzz-test"
    source = REPOSITORY / "native" / "fuzz"
    configure = (cmake, "-S", source, "-B", folder, "-DMEMFIT_OPTIMIZATION=-Og")
    configured = run(*configure)
    if configured.returncode != 0:
        # It may have been made by another compiler or for another place.
        shutil.rmtree(folder)
        configured = run(*configure)
    assert configured.returncode == 0, configured.stdout + configured.stderr
    built = run(cmake, "--build", folder, "--parallel", str(os.cpu_count() or 1))
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "fuzz"


@pytest.mark.slow
def test_no_input_breaks_the_native_core(fuzzer: Path) -> None:
    running = [
        subprocess.Popen(
            [str(fuzzer), "--seed", str(seed), "--cases", str(CASES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in SEEDS
    ]
    for process in running:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        assert output.count(f": {CASES} cases, ") == output.count("\n") >= 5, output


def test_every_public_header_is_fuzzed() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8")
        for path in (REPOSITORY / "native" / "fuzz").glob("*.[ch]pp")
    )
    headers = {
        line.split('"')[1]
        for line in (REPOSITORY / "native" / "bindings.cpp")
        .read_text(encoding="utf-8")
        .splitlines()
        if line.startswith('#include "')
    }
    assert headers
    assert {name for name in headers if f'#include "{name}"' not in sources} == set()


@pytest.mark.slow
def test_an_unknown_target_is_refused(fuzzer: Path) -> None:
    done = run(fuzzer, "--target", "nothing")
    assert done.returncode == 2
    assert "no target is called nothing; there are:" in done.stderr
