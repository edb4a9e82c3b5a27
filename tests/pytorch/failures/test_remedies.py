"""Models that cannot be captured: one line with the place, the cause and what to do about it."""

from __future__ import annotations

import copy
import logging
import random
import re
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

import memfit
from memfit.cli import main
from memfit.errors import CaptureError
from memfit.pytorch.failures.source_files import is_users

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

Layer = Callable[["Net", torch.Tensor, torch.Tensor], Any]
LOCK, SPARSE = threading.Lock(), torch.eye(8).to_sparse()


@torch.library.custom_op("memfit_remedies::without_fake", mutates_args=())
def without_fake(x: torch.Tensor) -> torch.Tensor:
    """A copy, of which tracing knows nothing."""
    return x.clone()


@torch.library.custom_op("memfit_remedies::without_formula", mutates_args=())
def without_formula(x: torch.Tensor) -> torch.Tensor:
    """A copy, of which autograd knows nothing."""
    return x.clone()


@without_formula.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.compiler.disable
def disabled(h: torch.Tensor) -> torch.Tensor:
    """Not for the compiler."""
    return h * 2


def locked(net: Net, h: torch.Tensor, x: torch.Tensor) -> Any:
    with LOCK:
        return h * 2


def seeded(net: Net, h: torch.Tensor, x: torch.Tensor) -> Any:
    torch.manual_seed(3)
    return h * torch.rand(8)


def warned(net: Net, h: torch.Tensor, x: torch.Tensor) -> Any:
    warnings.warn("careful", stacklevel=2)
    return h


def told(net: Net, h: torch.Tensor, x: torch.Tensor) -> Any:
    print(h.shape)
    logging.getLogger("a model").warning("sum %s", h.sum())
    return h


def read(net: Net, h: torch.Tensor, x: torch.Tensor) -> Any:
    with open("/dev/null") as file:
        file.read()
    return h


def tried(net: Net, h: torch.Tensor, x: torch.Tensor) -> Any:
    try:
        return net.a(x, lengths=None)
    except TypeError:
        return h


def compared(net: Net, h: torch.Tensor, x: torch.Tensor) -> Any:
    return h if torch.equal(torch.rand(1), torch.rand(1)) else -h


def repeated(net: Net, h: torch.Tensor, x: torch.Tensor) -> Any:
    for i in x[:, 0].gt(0).nonzero().flatten():
        h = h + x[i]
    return h


def packed(net: Net, h: torch.Tensor, x: torch.Tensor) -> Any:
    lengths = x[:1, 0].gt(9).long() + 8
    return nn.utils.rnn.pack_padded_sequence(h[None], lengths, batch_first=True).data


class Sum(torch.autograd.Function):
    """Of two tensors."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return gradient, gradient


def into_gaps(net: Net, h: torch.Tensor, x: torch.Tensor) -> Any:
    torch.sin(x, out=(made := torch.zeros(8, 16)[:, ::2]))
    return h + made


def of_mixed_devices(net: Net, h: torch.Tensor, x: torch.Tensor) -> Any:
    return h + torch.ones(8, device="meta")


CASES: dict[str, tuple[Layer, str, str]] = {
    "a branch": (
        lambda n, h, x: h if torch.rand([]) > 0.5 else -h,
        "ata-dependent",
        "torch.where, which",
    ),
    "a comparison": (compared, "equal", "== b).all()"),
    "a loop over data": (repeated, "ata-dependent", "sizes, loops and branches"),
    "a size": (
        lambda n, h, x: h.repeat_interleave(x[:, 0].gt(0).long(), dim=0),
        "depends on the data",
        "memfit.bound_size",
    ),
    "a print": (told, "print", "leave printing"),
    "a warning": (warned, "warn", "is_compiling()"),
    "Python's random": (lambda n, h, x: h * random.random(), "random", "torch.rand"),
    "NumPy's random": (lambda n, h, x: h * float(np.random.rand()), "", "torch.rand"),  # noqa: NPY002
    "a clock": (lambda n, h, x: h * (time.time() % 2), "time", "clocks"),
    "a file": (read, "open", "read and write files"),
    "a lock": (locked, "lock", "around the call"),
    "a seed": (seeded, "manual_seed", "before the step"),
    "what is disabled": (lambda n, h, x: disabled(h), "disable", "take off what keeps"),
    "a custom op": (lambda n, h, x: without_fake(h), "fake impl", "@op.register_fake"),
    "a formula": (lambda n, h, x: without_formula(h), "formula", "op.register_autograd"),
    "a sparse tensor": (lambda n, h, x: torch.sparse.mm(SPARSE, h), "sparse", "to_dense()"),
    "a parameter": (lambda n, h, x: h * nn.Parameter(torch.ones(8)), "Parameter", "in __init__"),
    "a copy": (lambda n, h, x: copy.deepcopy(n.b)(h), "deepcopy", "in __init__"),
    "packing": (packed, "pack_padded_sequence", "mask"),
    "checkpoints": (
        lambda n, h, x: checkpoint_sequential(nn.Sequential(n.a, n.b), 2, x, use_reentrant=False),
        "checkpoint_sequential",
        "leave checkpointing out",
    ),
    "a try": (tried, "bind arguments", "arguments that they take"),
    "devices": (of_mixed_devices, "device", "model.to(device)"),
    "a view in place": (lambda n, h, x: h + x.t_(), "inplace view", "x.t()"),
    "integers in place": (lambda n, h, x: h + h.detach().random_(), "random_", "torch.randint"),
    "a tensor given twice": (lambda n, h, x: Sum.apply(h, h), "duplicate", "x.clone()"),
    "a result with gaps": (into_gaps, "out=", "copy the result in"),
    "another error": (lambda n, h, x: h @ torch.ones(3, 3), "reduction dim", "check number"),
}


class Net(nn.Module):
    """Two layers, and something between that cannot be captured."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.layer = layer

    def forward(self, x: torch.Tensor) -> Any:
        """The layer's result."""
        return self.layer(self, self.a(x), x)


X = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


SHORT = {
    "a branch", "a comparison", "a loop over data", "a print", "Python's random", "a custom op",
    "a formula", "a size", "a try", "devices", "another error",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SHORT else pytest.mark.slow) for n in CASES]
)
def test_the_remedy_fits_the_cause(name: str) -> None:
    layer, cause, remedy = CASES[name]
    with pytest.raises(CaptureError) as caught:
        memfit.plan(Net(layer), (X,), budget="1GiB", cost="analytic", fullgraph=True)
    said, _, after = str(caught.value).partition("; ")
    assert type(caught.value) is CaptureError
    assert "\n" not in said + after
    assert said.startswith("Net ")
    assert cause in said
    assert remedy in after
    places = re.findall(r"([\w./-]+\.py):\d+", said)
    assert [Path(place).name for place in places] == [Path(__file__).name]


def test_what_is_written_may_not_be_expanded() -> None:
    def write(net: Net, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x.diagonal().add_(1.0)
        return h + x.sum()

    x = torch.randn(3, 6, 8).expand(2, 3, 6, 8)
    with pytest.raises(CaptureError, match=r"written-to.*; write into a copy"):
        memfit.plan(Net(write), (x,), budget="1GiB", cost="analytic")


def test_a_compiled_graph_gets_the_same_remedies() -> None:
    torch._dynamo.reset()
    options = {"budget": "1GiB", "cost": "analytic"}
    with pytest.raises(CaptureError, match=r"no autograd formula.*; .*op\.register_autograd"):
        torch.compile(Net(CASES["a formula"][0]), backend="memfit", options=options)(X)


def test_what_breaks_a_graph_is_planned_around_as_the_remedy_says() -> None:
    torch._dynamo.reset()
    plain = Net(CASES["a branch"][0])
    compiled = torch.compile(
        copy.deepcopy(plain), backend="memfit", options={"budget": "1GiB", "cost": "analytic"}
    )
    torch.manual_seed(0)
    ours = compiled(X)
    torch.manual_seed(0)
    assert torch.equal(ours, plain(X))


def test_the_command_line_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cannot_be_captured.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(8, 8)\n\n    def forward(self, x):\n"
        "        return super().forward(x) if torch.rand([]) > 0.5 else -x\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    words = ["cannot_be_captured:Net", "--input", "8x8", "--cost", "analytic", "--fullgraph"]
    assert main(["plan", *words, "--budget", "100%"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(r"Net cannot be captured .*cannot_be_captured\.py:10: .*; choose by", said)


def test_whose_file_it_is() -> None:
    assert is_users(__file__)
    assert is_users("/home/somebody/torch/model.py")
    assert is_users(f"{Path(torch.__file__).parents[1]}/transformers/models/bert.py")
    for path in (torch.__file__, memfit.__file__, logging.__file__, "<frozen genericpath>"):
        assert not is_users(str(path))
