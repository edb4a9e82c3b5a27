"""memfit without the libraries that its adapters are for."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
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


@pytest.mark.parametrize(
    ("adapter", "blocked", "missing"),
    [
        ("lightning", ("lightning", "pytorch_lightning"), "lightning"),
        ("transformers", ("transformers",), "transformers"),
        ("transformers", ("accelerate",), "accelerate"),
    ],
)
def test_the_error_names_the_extra(adapter: str, blocked: tuple[str, ...], missing: str) -> None:
    if adapter == "transformers" and missing == "transformers":
        pytest.importorskip("accelerate", reason="accelerate is asked for first")
    code = f"""
import memfit
try:
    memfit.integrations.{adapter}
except memfit.UsageError as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    out = run(code, *blocked)
    assert f"needs {missing}" in out
    assert "which is not installed" in out
    assert out.endswith(f"run: pip install 'memfit[{adapter}]'")


def test_an_unknown_adapter() -> None:
    import memfit.integrations

    with pytest.raises(AttributeError, match="has no attribute 'keras'"):
        _ = memfit.integrations.keras
