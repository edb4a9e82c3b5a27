"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings

# Inductor else compiles a program for each instruction set to see whether it can.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

from memfit import _core
from memfit.graph.published import bare_graph
from memfit.graph.training_graph import Op, Phase, TrainingGraph, Value, ValueKind

settings.register_profile("memfit", deadline=None, max_examples=100, print_blob=True)
settings.load_profile("memfit")

_files = count(1)
MakeGraph = Callable[[Random, int], TrainingGraph]


@pytest.hookimpl(tryfirst=True)  # before what is slow is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of cases that are alike (`sampled`), one of so many runs by default."""
    cases: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is None or item.get_closest_marker("slow") is not None:
            continue
        test = item.nodeid.partition("[")[0]
        if cases[test] % mark.args[0]:
            item.add_marker(pytest.mark.slow)
        cases[test] += 1


@pytest.fixture(scope="module", autouse=True)
def _collections() -> Iterator[None]:
    yield
    if next(_files) % 4 == 0:  # a second or more each time
        gc.unfreeze()
        gc.collect()


@pytest.fixture(autouse=True)
def _short_collections(_collections: None) -> None:
    """Garbage collections pass over what was there before, until some files are through.

    PyTorch's modules alone are over a million objects, and a step that is captured or measured
    collects garbage each time.
    """
    gc.freeze()


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of the published graphs and golden values; the test is skipped where it is absent."""
    given = os.environ.get("MEMFIT_REFERENCE")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "reference"
    if not (folder / "golden.json").is_file():
        pytest.skip(f"no reference data at {folder}; set MEMFIT_REFERENCE to its folder")
    return folder


@pytest.fixture(params=["native", "python"])
def core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once with each core; the native run is skipped where it is not built."""
    name: str = request.param
    if name == "native":
        module = pytest.importorskip("memfit._core.native", reason="native core is not built")
        monkeypatch.setattr(_core, "_fast", module)
    else:
        monkeypatch.setattr(_core, "_fast", None)
        monkeypatch.setattr(_core, "_told", True)
    return name


def _shape(random: Random, ops: int) -> list[list[int]]:
    """For each op those that it reads from: a chain, with skips, forks, long skips, or anything."""
    kind = random.choice(["chain", "skips", "forks", "deep", "any", "wide"])
    before: list[list[int]] = [[] for _ in range(ops)]
    for v in range(1, ops):
        if kind == "any":
            before[v] = sorted(random.sample(range(v), random.randint(0, min(v, 3))))
        elif kind == "wide":
            before[v] = sorted({random.randrange(max(0, v - 3), v) for _ in range(2)})
        elif kind == "deep" and v >= ops // 2 and random.random() < 0.7:
            before[v] = sorted({v - 1, min(v - 1, ops - 1 - v)})
        elif kind == "forks" and v % 4 in (2, 3):
            before[v] = [v - 2] if v % 4 == 2 else [v - 2, v - 1]
        elif kind == "skips" and random.random() < 0.5:
            before[v] = sorted({v - 1, max(0, v - random.randint(2, 4))})
        else:
            before[v] = [v - 1]
    return before


class _JointGraph:
    """Makes one random training graph; see the fixture `joint_graph`."""

    TANGENT, INPUT, WEIGHT = range(3)

    def __init__(self, random: Random, ops: int) -> None:
        self.random = random
        self.paired = random.random() < 0.4
        # Plain graphs have one output an op, no workspaces, no effects and one backward op an op.
        self.rich = random.random() < 0.7
        self.unit = random.choice([1, 1000, 10**7])
        self.most = random.choice([1, 3, 40])
        self.values = [
            Value("tangent", 3, ValueKind.TANGENT),
            Value("input", 5, ValueKind.INPUT),
            Value("weight", 7, ValueKind.PARAMETER),
        ]
        self.forward: list[Op] = []
        self.backward: list[Op] = []
        self.made: list[list[int]] = []
        for before in _shape(random, ops):
            self._add_forward(before, last=len(self.made) == ops - 1)
        self.owner = {s: v for v, outputs in enumerate(self.made) for s in outputs}
        self.gradient: dict[int, int] = {}
        for v in reversed(range(ops)):
            self._differentiate(v)

    def graph(self) -> TrainingGraph:
        return TrainingGraph(tuple(self.values), (*self.forward, *self.backward))

    def _chance(self, share: float) -> bool:
        """An event of rich graphs."""
        return self.rich and self.random.random() < share

    def _size(self) -> int:
        return self.unit * self.random.randint(1, self.most)

    def _little(self) -> int:
        return self.random.choice([0, 8, 900, self.random.randint(0, self.unit // 50)])

    def _value(self, name: str, size: int, kind: ValueKind, is_output: bool = False) -> int:
        self.values.append(Value(f"{name}.{len(self.values)}", size, kind, is_output))
        return len(self.values) - 1

    def _add_forward(self, before: list[int], last: bool) -> None:
        random, v = self.random, len(self.forward)
        inputs = {random.choice(self.made[p][: random.choice([1, 3])]) for p in before}
        if random.random() < 0.5:
            inputs.add(random.choice([self.INPUT, self.WEIGHT]))
        size = self._little() if self._chance(0.1) else self._size()
        outputs = [self._value(f"v{v}", size, ValueKind.ACTIVATION, last or self._chance(0.05))]
        while self._chance(0.3):
            size = self._little() if random.random() < 0.6 else self._size()
            outputs.append(self._value(f"v{v}", size, ValueKind.ACTIVATION))
        self.made.append(outputs)
        self.forward.append(
            Op(
                f"f{v}",
                "f",
                Phase.FORWARD,
                tuple(sorted(inputs)),
                tuple(outputs),
                cost=random.choice([0, 1, 1, random.randint(1, 9)]),
                workspace_bytes=self._size() if self._chance(0.4) else 0,
                recomputable=not self._chance(0.08),
            )
        )

    def _add_backward(self, reads: set[int], writes: list[int], v: int) -> None:
        self.backward.append(
            Op(
                f"b{len(self.backward)}",
                "b",
                Phase.BACKWARD,
                tuple(sorted(reads - set(writes))),
                tuple(writes),
                cost=self.random.randint(0, 5),
                workspace_bytes=self._size() if self._chance(0.4) else 0,
                recomputable=False,
                forward_op=v if self.paired else None,
            )
        )

    def _differentiate(self, v: int) -> None:
        """The backward ops of a forward op that a gradient reaches."""
        random, op = self.random, self.forward[v]
        touched = (*op.inputs, *op.outputs)
        come = {self.gradient[s] for s in op.outputs if s in self.gradient}
        if v == len(self.forward) - 1 or (not come and random.random() < 0.3):
            come.add(self.TANGENT)
        if not come:
            return
        for _ in range(2 if self._chance(0.3) else 1):
            reads = come | {s for s in touched if random.random() < 0.6}
            if self._chance(0.2):
                constant = self._value("c", self._size(), ValueKind.GRADIENT)
                self._add_backward({s for s in touched if random.random() < 0.4}, [constant], v)
                reads.add(constant)
            if not self.paired and self._chance(0.1):
                reads.add(random.choice(self.made)[0])
            wanted = [s for s in op.inputs if s != self.INPUT and random.random() < 0.9]
            self._add_backward(reads, [self._gradient(s) for s in wanted], v)

    def _gradient(self, s: int) -> int:
        """The gradient of a value, which several ops may write; each time a new one of a weight."""
        if s == self.WEIGHT:
            return self._value("w", self._size(), ValueKind.GRADIENT, is_output=True)
        if s not in self.gradient:
            same = self.random.random() < 0.8
            size = self.values[s].size_bytes if same else self._size()
            self.gradient[s] = self._value(f"g{s}", size, ValueKind.GRADIENT)
        return self.gradient[s]


@pytest.fixture(scope="session")
def joint_graph() -> MakeGraph:
    """Makes a training graph with so many forward ops.

    Random are the shape, sizes and costs (with ties and zeros), several outputs of an op (large or
    negligible), workspaces, ops that must not run again, forward outputs, several backward ops of a
    forward op, gradients with several writers, backward constants, reads of values that are not the
    op's own, and whether backward ops name their forward op.
    """
    return lambda random, ops: _JointGraph(random, ops).graph()


@pytest.fixture(scope="session")
def full_graph() -> MakeGraph:
    """Makes a bare graph of one source whose backward ops read all that their forward ops touch."""

    def make(random: Random, ops: int) -> TrainingGraph:
        before = [b or [v - 1] if v else [] for v, b in enumerate(_shape(random, ops))]
        most_bytes, most_cost = random.choice([1, 5, 10**6]), random.choice([1, 3, 20])
        sizes = [random.randint(1, most_bytes) for _ in range(ops)]
        costs = [random.randint(1, most_cost) for _ in range(ops)]
        return bare_graph(before, sizes, costs, [[*b, v] for v, b in enumerate(before)])

    return make
