"""memfit without the libraries that its adapters are for."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys

class Blocked:
    names = {names!r}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run(code: str, *names: str) -> str:
    """What the code prints in a Python without these libraries."""
    code = BLOCKED.format(names=names) + code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_memfit_and_the_package_of_adapters_need_none_of_them() -> None:
    code = (
        "import memfit, memfit.integrations, memfit.pytorch.api.entry\nprint(sorted(sys.modules))"
    )
    out = run(code, "transformers", "accelerate", "lightning", "pytorch_lightning")
    assert "'memfit.integrations'" in out
    assert "memfit.integrations.transformers" not in out


CASES = [
    ("lightning", ("lightning", "pytorch_lightning"), "lightning"),
    ("transformers", ("accelerate",), "accelerate"),
    ("transformers", ("transformers",), "transformers"),
]


@pytest.fixture(scope="module")
def errors() -> list[str]:
    """What is said in each case, by one Python that forgets in between what it has imported."""
    code = f"""
import memfit
for adapter, names, _ in {CASES!r}:
    Blocked.names = names
    for known in list(sys.modules):
        if known.split(".")[0] in names or known == f"memfit.integrations.{{adapter}}":
            del sys.modules[known]
    try:
        getattr(memfit.integrations, adapter)
    except memfit.UsageError as error:
        assert isinstance(error, ImportError)
        print(error)
    else:
        print("imported")
"""
    return run(code).splitlines()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{a}-{m}" for a, _, m in CASES])
def test_the_error_names_the_extra(case: int, errors: list[str]) -> None:
    adapter, _, missing = CASES[case]
    if adapter == "transformers" and missing == "transformers":
        pytest.importorskip("accelerate", reason="accelerate is asked for first")
    assert f"needs {missing}" in errors[case]
    assert "which is not installed" in errors[case]
    assert errors[case].endswith(f"run: pip install 'memfit[{adapter}]'")


def test_an_unknown_adapter() -> None:
    import memfit.integrations

    with pytest.raises(AttributeError, match="has no attribute 'keras'"):
        _ = memfit.integrations.keras
