"""On a CUDA device; `pytest -m gpu`. What needs none of it is tested without one at the end.

A budget is compared with `torch.cuda.max_memory_allocated`. Blocks above 1 MiB may be up to 1 MiB
larger than asked for unless segments are expandable, which these tests therefore switch on.
"""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import memfit
from memfit.pytorch.capture import storage_sizes as sizes
from memfit.pytorch.capture.cuda_workspace import kept_workspace_bytes
from memfit.pytorch.capture.resident import optimizer_state_bytes
from memfit.pytorch.compat.eager import clear_cublas_workspaces
from memfit.pytorch.compat.whole_ops import whole_ops
from memfit.pytorch.cost import profile
from memfit.pytorch.cost.measure import FREE_MARGIN_PERCENT, free_bytes
from memfit.pytorch.cost.on_disk import conditions_digest
from support.models import Logits, token_loss

AMPLE = 2**50
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
Case = tuple[nn.Module, tuple[torch.Tensor, ...], Callable[..., torch.Tensor]]


class Residual(nn.Module):
    """ResNet18's basic block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two convolutions and a projection."""
        h = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x), inplace=True)


def resnet_case() -> Case:
    torch.manual_seed(0)
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    model = nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        *(Residual(a, b, 1 if a == b else 2) for a, b in pairwise(widths)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 1000),
    ).cuda()
    args = (torch.randn(32, 3, 224, 224).cuda(), torch.randint(0, 1000, (32,)).cuda())
    return model, args, F.cross_entropy


def gpt2_case() -> Case:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=6, n_embd=384, n_head=6, n_positions=256, vocab_size=5000, use_cache=False
    )
    ids = torch.randint(0, 5000, (8, 256)).cuda()
    return Logits(transformers.GPT2LMHeadModel(config).cuda()), (ids, ids), token_loss


class Recurrent(nn.Module):
    """A layer that cuDNN would run as one op."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(128, 128, num_layers=2, dropout=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs of all steps."""
        return self.layer(x)[0]


def lstm_case() -> Case:
    torch.manual_seed(0)
    x = torch.randn(64, 256, 128).cuda()
    return Recurrent().cuda(), (x, torch.randn_like(x)), F.mse_loss


CASES = {"resnet": resnet_case, "gpt2": gpt2_case, "lstm": lstm_case}


@pytest.fixture
def exact_device() -> Iterator[None]:
    """Deterministic kernels, blocks of the size asked for, nothing left over."""
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
        torch._dynamo.reset()
        yield
    gc.collect()
    torch.cuda.empty_cache()


def observe(model: nn.Module, step: Callable[..., torch.Tensor]) -> tuple[Any, ...]:
    """Loss, gradients, buffers and the generator's state of one step, and the peak of a second."""
    torch.manual_seed(3)
    model.zero_grad()
    loss = step()
    loss.backward()
    seen = (
        loss.detach().cpu(),
        [p.grad.cpu() for p in model.parameters() if p.grad is not None],
        [b.cpu().clone() for b in model.buffers()],
        torch.cuda.get_rng_state(),
    )
    del loss
    model.zero_grad()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step().backward()
    torch.cuda.synchronize()
    return (*seen, torch.cuda.max_memory_allocated())


def captured(name: str) -> tuple[Any, ...]:
    """What the captured graph that keeps everything leaves behind."""
    model, args, loss = CASES[name]()
    saving = memfit.fit(model, loss, budget=AMPLE, planner="store-all")
    return observe(model, lambda: saving(*args))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("share", ["60%", "smallest"])
@pytest.mark.parametrize("name", CASES)
def test_fits_with_the_captured_graphs_gradients(name: str, share: str, exact_device: None) -> None:
    want = captured(name)
    torch._dynamo.reset()
    gc.collect()
    clear_cublas_workspaces()  # a budget counts them
    elsewhere = torch.cuda.memory_allocated()
    model, args, loss = CASES[name]()
    plan = memfit.plan(model, args, loss, budget=AMPLE)
    low, plain = plan.smallest_feasible_budget_bytes, plan.plain_peak_bytes
    budget = low if share == "smallest" else max(low, plain * 6 // 10)
    fitted = memfit.fit(model, loss, budget=budget)
    got = observe(model, lambda: fitted(*args))
    assert torch.equal(got[0], want[0])
    for mine, theirs in zip((*got[1], *got[2]), (*want[1], *want[2]), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(got[3], want[3])
    assert fitted.plan is not None
    peak = got[4] - elsewhere
    assert peak <= budget
    assert abs(fitted.plan.peak_bytes - peak) <= 0.03 * peak


@pytest.mark.gpu
@needs_cuda
def test_the_simulated_size_of_a_tensor_is_what_the_allocator_counts(exact_device: None) -> None:
    for elements in (1, 127, 128, 129, 1000, 300_000):
        before = torch.cuda.memory_allocated()
        tensor = torch.empty(elements, device="cuda")
        counted = torch.cuda.memory_allocated() - before
        assert sizes.block_bytes(elements * 4, tensor.device) == counted


@pytest.mark.gpu
@needs_cuda
def test_the_automatic_budget_is_what_is_free_and_held(exact_device: None) -> None:
    model, args, loss = resnet_case()
    plan = memfit.plan(model, args, loss, budget="auto")
    free, total = torch.cuda.mem_get_info()
    assert 0 < plan.budget_bytes <= total
    assert plan.budget_bytes >= free * (100 - FREE_MARGIN_PERCENT) // 100 * 9 // 10


# Without a device


def test_cuda_sizes_are_whole_blocks() -> None:
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert [sizes.block_bytes(n, cuda) for n in (0, 1, 512, 513)] == [0, 512, 512, 1024]
    assert sizes.block_bytes(513, cpu) == 513
    graph = fx.Graph()
    node = graph.placeholder("x")
    with FakeTensorMode():
        node.meta["val"] = torch.empty(129, device="cuda")
    assert sizes.allocated_bytes(node, 0, node.meta["val"]) == 1024


def test_nothing_is_kept_for_cublas_on_the_cpu() -> None:
    assert kept_workspace_bytes(torch.device("cpu")) == 0


@pytest.mark.parametrize(("allowed", "free"), [(1.0, 800), (0.6, 500), (0.05, 0)])
def test_free_cuda_memory_is_the_drivers_and_the_caches(
    monkeypatch: pytest.MonkeyPatch, allowed: float, free: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: allowed)
    assert free_bytes("cuda") == free * (100 - FREE_MARGIN_PERCENT) // 100


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_traced_without_cudnn(layer: type[nn.RNNBase]) -> None:
    seen: set[tuple[bool, bool]] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.add((torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled))
            return func(*args, **(kwargs or {}))

    before = torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled
    assert all(before)
    module = layer(3, 4)
    with whole_ops(), enable_python_dispatcher(), Watch():
        module(torch.zeros(5, 2, 3))
    assert (False, False) in seen
    assert (torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled) == before


def test_state_of_optimizers_that_count_steps_on_the_device() -> None:
    with FakeTensorMode():
        for options in ({"capturable": True}, {"capturable": True, "foreach": True}):
            parameter = nn.Parameter(torch.empty(1000, device="cuda"))
            optimizer = torch.optim.AdamW([parameter], **options)
            assert optimizer_state_bytes(optimizer) == 2 * 4096 + sizes.CUDA_BLOCK_BYTES
        plain = torch.optim.AdamW([parameter])
        assert optimizer_state_bytes(plain) == 2 * 4096 + 4


def test_cudnns_settings_are_conditions_of_costs_on_cuda() -> None:
    devices = torch.device("cpu"), torch.device("cuda", 0)
    found = []
    for benchmark in (False, True):  # PyTorch's own tests, once imported, let flags be set so only
        with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark):
            found.append([conditions_digest(device) for device in devices])
    before, after = found
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_what_memfit_makes_for_itself_is_on_the_cpu_whatever_the_default_device() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.3)) for _ in range(4)))
    plain = copy.deepcopy(model)
    x = torch.randn(512, 32)
    least = memfit.plan(model, (x,), budget=AMPLE, cost="analytic").smallest_feasible_budget_bytes
    fitted = memfit.fit(model, budget=least, cost="analytic", overlap=True)
    for call in (plain, fitted):
        torch.manual_seed(1)
        with torch.device("meta"):
            call(x).sum().backward()
    assert fitted.plan is not None
    assert fitted.plan.overhead > 0
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_cuda_ops_are_timed_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            assert end is not self
            return 0.006  # ms

    fake = SimpleNamespace(Event=Event, device=lambda _: contextlib.nullcontext())
    monkeypatch.setattr(profile.torch, "cuda", fake)
    sample = profile._cuda_sample(lambda: log.append("run"), 3, torch.device("cuda", 0))
    assert log == ["record", "run", "run", "run", "record", "synchronize"]
    assert sample.wall_ns == 2000
