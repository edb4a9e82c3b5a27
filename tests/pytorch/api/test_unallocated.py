"""Steps captured without memory: the same graph as with memory, the peak that is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from memfit.graph.plain import store_all_schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import ValueKind
from memfit.pytorch.api.entry import capture
from memfit.pytorch.api.unallocated import holds_memory, without_memory
from memfit.pytorch.cost.analytic import analytic_cost, output_specs
from memfit.pytorch.cost.kernel_workspace import known_workspace_bytes
from memfit.pytorch.cost.likely_workspace import likely_workspace_bytes
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.cost.op_calls import OpCall, TensorSpec
from memfit.pytorch.cost.profile import profile_calls

ROOT = Path(__file__).parents[3]
aten = torch.ops.aten


class Net(nn.Module):
    """Convolutions, batch norm, a tied parameter, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.third.weight = self.second.weight
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.third(torch.relu(self.second(x))))
        return self.head(nn.functional.dropout(x.mean((2, 3)), 0.1))


def case() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    return Net().train(), (torch.randn(8, 3, 32, 32), torch.randint(4, (8,)))


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output, target)


def test_same_graph_and_the_measured_peak() -> None:
    unallocated = without_memory()
    with unallocated.building:
        model, args = case()
    assert not holds_memory(model)
    fake = unallocated.capture(model, args, loss, likely=True).graph
    assert not holds_memory(model)
    model, args = case()
    real = capture(model, args, loss, cost="analytic").graph
    assert fake.fingerprint == real.fingerprint

    def step() -> torch.Tensor:
        result = loss(model(args[0]), args[1])
        result.backward()
        return result

    measured = measure_step(step, reset=lambda: model.zero_grad(set_to_none=True)).peak_bytes
    predicted = simulate(fake, store_all_schedule(fake)).peak_bytes
    assert predicted == pytest.approx(fake.resident_bytes + measured, rel=0.05)


def test_more_than_any_machine_has() -> None:
    unallocated = without_memory()
    with unallocated.building:
        model = nn.Linear(2_000_000, 1_000_000)
        x = torch.randn(4, 2_000_000)
    graph = unallocated.capture(model, (x,)).graph
    assert sum(v.size_bytes for v in graph.values if v.kind is ValueKind.PARAMETER) > 7 * 2**40


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there() -> None:
    unallocated = without_memory("cuda")
    with unallocated.building:
        model, args = case()
    step = unallocated.capture(model, args, loss)
    assert all(v.size_bytes % 512 == 0 for v in step.graph.values if "rng_state" not in v.name)
    devices = {
        t.device
        for node in step.node_of
        for t in torch.utils._pytree.tree_leaves(node.meta["val"])
        if isinstance(t, torch.Tensor)
    }
    assert devices == {torch.device("cuda", 0)}
    on_cpu = without_memory()
    with on_cpu.building:
        model, args = case()
    other = on_cpu.capture(model, args, loss)
    kinds = {v.kind: 0 for v in step.graph.values}
    for graph, sign in ((step.graph, 1), (other.graph, -1)):
        for value in graph.values:
            kinds[value.kind] += sign * (value.size_bytes > 0)
    assert not any(kinds.values())  # the same values, of other sizes


def test_a_model_with_memory_is_captured_without() -> None:
    model, args = case()
    unallocated = without_memory()
    tied = model.second.weight is model.third.weight
    unallocated.fake_module(model)
    assert tied
    assert model.second.weight is model.third.weight
    assert isinstance(model.second.weight, nn.Parameter)
    assert unallocated.capture(model, args, loss).graph.ops


def spec(*shape: int) -> TensorSpec:
    return TensorSpec.of(torch.empty(shape))


CONVOLUTIONS = [
    # batch, inputs, outputs, size, kernel, transposed
    (2, 64, 64, 32, 1, False),
    (2, 64, 64, 32, 3, False),
    (2, 128, 64, 32, 3, False),
    (2, 64, 128, 32, 3, False),
    (4, 64, 32, 32, 2, True),
]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, which is put back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_workspaces_of_convolutions_are_near_what_is_measured(
    shape: tuple[int, int, int, int, int, bool], count: int, threads: Callable[[int], None]
) -> None:
    threads(count)
    batch, inputs, outputs, size, kernel, transposed = shape
    x = spec(batch, inputs, size, size)
    channels = (inputs, outputs) if transposed else (outputs, inputs)
    weight = spec(*channels, kernel, kernel)
    stride, padding = (2, 0) if transposed else (1, kernel // 2)
    gradient = spec(batch, outputs, size * stride, size * stride)
    rest = ([stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1)
    calls = [
        OpCall(aten.convolution.default, (x, weight, None, *rest)),
        OpCall(
            aten.convolution_backward.default,
            (gradient, x, weight, [0], *rest, [True, True, False]),
        ),
    ]
    measured = [cost.workspace_bytes for cost in profile_calls(calls, time_budget_s=0.0).costs]
    assert [likely_workspace_bytes(call) for call in calls] == pytest.approx(
        measured, rel=0.1, abs=2**16
    )


@pytest.mark.parametrize("turned", [False, True])
def test_workspace_of_the_backward_of_softmax(turned: bool) -> None:
    gradient = torch.empty(64, 128).t() if turned else torch.empty(128, 64)
    given = (TensorSpec.of(gradient), spec(128, 64), 1, torch.float32)
    for target in (aten._log_softmax_backward_data.default, aten._softmax_backward_data.default):
        call = OpCall(target, given)
        (measured,) = profile_calls([call], time_budget_s=0.0).costs
        assert measured.source == "measured"
        known = known_workspace_bytes(call, output_specs(call))
        if turned:  # copied; how much more is taken is not known
            assert known is None
            assert 0 < measured.workspace_bytes <= analytic_cost(call).workspace_bytes
        else:
            assert known == measured.workspace_bytes == 0


def test_no_likely_workspace_where_nothing_is_known() -> None:
    assert likely_workspace_bytes(OpCall(aten.relu.default, (spec(4),))) is None


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet50", "unet", "gpt2", "lstm"])
def test_prediction_of_real_networks(network: str) -> None:
    pytest.importorskip("pytorchcv")
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training.inspect_accuracy", network],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert abs(found["error_percent"]) < 5
    assert not found["model_allocated"]
