"""Fitted modules train as plain PyTorch does: gradients, buffers, random draws, peaks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.errors import InfeasibleBudgetError
from memfit.graph.plan import Plan
from memfit.pytorch.api.entry import capture
from memfit.pytorch.api.verify import VerifyResult
from memfit.pytorch.cost.measure import measure_step


class ConvNet(nn.Module):
    """Batch norm, in-place ReLU, dropout, bilinear upsampling, a skip connection, pooling."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.up = nn.Conv2d(3 * width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits for each pixel."""
        skip = F.relu(self.norm(self.first(x)), inplace=True)
        deep = F.relu(self.norm2(self.down(F.max_pool2d(skip, 2))), inplace=True)
        deep = F.dropout(deep, 0.3, self.training)
        deep = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=True)
        return self.head(F.dropout2d(self.up(torch.cat([deep, skip], 1)), 0.2, self.training))


class Attention(nn.Module):
    """Embedding tied to the head, attention with dropout, layer norm."""

    def __init__(self, width: int = 32, vocabulary: int = 40) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width)
        )
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits for each token."""
        h = self.embed(ids)
        for _ in range(2):
            q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            p = 0.1 if self.training else 0.0
            a = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
            h = h + a.transpose(1, 2).flatten(2)
            h = h + self.mix(h)
        return self.head(h)


class Noisy(nn.Module):
    """Draws of its own in the forward pass, a running metric, two outputs."""

    metric: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        self.register_buffer("metric", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A hidden state and its square."""
        for layer in self.layers:
            x = torch.tanh(layer(x)) * torch.rand_like(x) + torch.randn(x.shape[1])
        self.metric += x.detach().mean()
        return x, x * x


def pixel_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, target)


def token_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def pair_loss(output: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    return (output[0] - target).square().mean() + output[1].mean()


Case = tuple[nn.Module, tuple[torch.Tensor, ...], Callable[..., torch.Tensor]]


def conv_case() -> Case:
    torch.manual_seed(0)
    return ConvNet(), (torch.randn(4, 3, 32, 32), torch.randint(0, 5, (4, 32, 32))), pixel_loss


def attention_case() -> Case:
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (4, 32))
    return Attention(), (ids, ids.roll(1, 1)), token_loss


def noisy_case() -> Case:
    torch.manual_seed(0)
    return Noisy(), (torch.randn(128, 64), torch.randn(128, 64)), pair_loss


CASES: dict[str, Callable[[], Case]] = {
    "conv": conv_case,
    "attention": attention_case,
    "noisy": noisy_case,
}


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    torch._dynamo.reset()
    cache = tmp_path_factory.getbasetemp() / "costs"
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(cache))


def smallest(case: Case) -> int:
    model, args, loss = case
    return memfit.plan(model, args, loss, budget=2**50).smallest_feasible_budget_bytes


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
def test_gradients_buffers_and_peaks_at_every_budget(name: str) -> None:
    case = CASES[name]()
    model, args, loss = case
    plan = memfit.plan(model, args, loss, budget=2**50)
    plain, low = plan.plain_peak_bytes, plan.smallest_feasible_budget_bytes
    between = [(plain + low) // 2] if name == "conv" else []
    peaks = []
    for budget in (plain, *between, low):
        torch._dynamo.reset()
        result = memfit.verify(model, args, loss, budget=budget, rounds=1)
        assert isinstance(result, VerifyResult)
        assert result.gradients_equal
        assert result.plain_largest_difference <= 1e-6
        assert result.buffers_equal
        assert result.within_budget
        above = result.planned_peak_bytes - result.resident_bytes
        predicted = result.predicted_peak_bytes - result.resident_bytes
        assert -0.005 * above <= predicted - above <= 0.02 * above
        peaks.append(result.planned_peak_bytes)
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < peaks[0]
    assert result.plan.overhead > 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
def test_random_draws_are_those_of_plain_training_over_many_seeds(name: str) -> None:
    case = CASES[name]()
    model, args, loss = case
    fitted = memfit.fit(copy.deepcopy(model), loss, budget=smallest(case))
    for seed in range(10):
        grads = []
        for run in (lambda: fitted(*args), lambda: loss(model(*args[:-1]), args[-1])):
            torch.manual_seed(seed)
            run().backward()
            after = torch.rand(3)
            target = fitted if not grads else model
            grads.append(([p.grad.clone() for p in target.parameters()], after))
            target.zero_grad()
        for a, b in zip(grads[0][0], grads[1][0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))
        assert torch.equal(grads[0][1], grads[1][1])


def test_training_for_several_steps_gives_the_same_parameters() -> None:
    model, args, loss = conv_case()
    twin = copy.deepcopy(model)
    fitted = memfit.fit(twin, loss, budget=smallest((model, args, loss)))
    runs = []
    for module, call in (
        (model, lambda: loss(model(args[0]), args[1])),
        (fitted, lambda: fitted(*args)),
    ):
        torch.manual_seed(3)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        for _ in range(4):
            optimizer.zero_grad()
            call().backward()
            optimizer.step()
        runs.append({k: v.clone() for k, v in module.state_dict().items()})
    assert runs[0].keys() == runs[1].keys()
    for key in runs[0]:
        assert torch.equal(runs[0][key], runs[1][key]), key


def test_without_a_loss_the_outputs_are_the_models() -> None:
    model, args, loss = conv_case()
    fitted = memfit.fit(model, budget="90%")
    torch.manual_seed(1)
    logits = fitted(args[0])
    loss(logits, args[1]).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.manual_seed(1)
    # The running statistics moved by one step; training batch norm does not read them.
    plain = model(args[0])
    assert torch.equal(plain, logits)
    loss(plain, args[1]).backward()
    for a, p in zip(ours, model.parameters(), strict=True):
        assert torch.equal(a, p.grad)


def test_shares_everything_with_the_model() -> None:
    model, args, loss = conv_case()
    fitted = memfit.fit(model, loss, budget="90%")
    assert list(fitted.state_dict()) == list(model.state_dict())
    assert [id(p) for p in fitted.parameters()] == [id(p) for p in model.parameters()]
    fitted.eval()
    assert not model.training
    with torch.no_grad():
        assert torch.equal(fitted(*args), loss(model(args[0]), args[1]))
    fitted.train()
    assert model.norm.training
    assert fitted.plan is None
    fitted(*args).backward()
    assert fitted.plan is not None
    fitted.load_state_dict(ConvNet().state_dict())
    fitted.double()
    assert model.first.weight.dtype is torch.float64


def test_a_loss_module_and_the_models_own_attributes_work() -> None:
    model, args, _ = conv_case()
    fitted = memfit.fit(model, nn.CrossEntropyLoss(), budget="95%")
    fitted(*args).backward()
    assert list(fitted.state_dict()) == list(model.state_dict())
    assert fitted.head is model.head
    model.note = "a plain attribute"
    assert fitted.note == "a plain attribute"
    with pytest.raises(AttributeError, match="missing"):
        _ = fitted.missing


def test_copies_and_pickles_plan_anew() -> None:
    model, args, loss = conv_case()
    fitted = memfit.fit(model, loss, budget="90%")
    fitted(*args).backward()
    twin = copy.deepcopy(fitted)
    assert twin.plan is None
    twin.zero_grad()
    twin(*args).backward()
    assert twin.plan is not None
    assert all(p.grad is not None for p in twin.parameters())
    assert next(twin.parameters()) is not next(model.parameters())
    assert list(pickle.loads(pickle.dumps(fitted)).state_dict()) == list(model.state_dict())


def test_a_new_shape_is_planned_anew() -> None:
    model, args, loss = conv_case()
    fitted = memfit.fit(model, loss, budget="80%")
    fitted(*args).backward()
    first = fitted.plan
    fitted(args[0][:2], args[1][:2]).backward()
    assert first is not None
    assert fitted.plan is not None
    assert fitted.plan.peak_bytes < first.peak_bytes


@pytest.mark.slow
def test_many_modules_and_many_shapes_in_one_process() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(32, 4)
    peaks = set()
    assert torch._dynamo.config.recompile_limit < 10
    for _ in range(10):
        fitted = memfit.fit(model, budget="150%", cost="analytic")
        fitted(x).sum().backward()
    for rows in range(20, 30):
        fitted(x[:rows]).sum().backward()
        assert fitted.plan is not None
        peaks.add(fitted.plan.peak_bytes)
    assert len(peaks) == 10


def test_smallest_feasible_budget_is_exact() -> None:
    model, args, loss = conv_case()
    low = smallest((model, args, loss))
    assert memfit.plan(model, args, loss, budget=low).peak_bytes <= low
    with pytest.raises(InfeasibleBudgetError) as caught:
        memfit.plan(model, args, loss, budget=low - 1)
    assert caught.value.minimum_bytes == low
    assert caught.value.binding_op


def test_plan_runs_nothing_and_can_be_saved_and_used(tmp_path: Path) -> None:
    model, args, loss = conv_case()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    plan = memfit.plan(model, args, loss, budget="85%")
    assert float(torch.rand(())) == pytest.approx(_first_draw(7))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None for p in model.parameters())
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == replace(plan, provenance=loaded.provenance, peak_parts=loaded.peak_parts)
    fitted = memfit.fit(model, loss, plan=loaded)
    fitted(*args).backward()
    assert fitted.plan is loaded
    assert sum(plan.peak_parts.values()) == plan.peak_bytes


def _first_draw(seed: int) -> float:
    torch.manual_seed(seed)
    return float(torch.rand(()))


def test_optimizer_state_counts_into_the_budget() -> None:
    model, args, loss = conv_case()
    trained = sum(p.numel() * 4 for p in model.parameters())
    adam = torch.optim.AdamW(model.parameters())
    sgd = torch.optim.SGD(model.parameters())
    parts = memfit.plan(model, args, loss, budget="90%", optimizer=adam).peak_parts
    assert 2 * trained <= parts["optimizer_state"] <= 2 * trained + 8 * 100
    parts = memfit.plan(model, args, loss, budget="90%", optimizer=sgd).peak_parts
    assert parts["optimizer_state"] == 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize("planner", ["exact", "approximate", "chen", "store-all", "liveness"])
def test_every_planner_trains(planner: str) -> None:
    model, args, loss = noisy_case()
    torch.manual_seed(2)
    loss(model(args[0]), args[1]).backward()
    want = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    fitted = memfit.fit(model, loss, budget=2**40, planner=planner)
    torch.manual_seed(2)
    fitted(*args).backward()
    for a, p in zip(want, model.parameters(), strict=True):
        assert torch.equal(a, p.grad)


def test_analytic_costs_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from memfit.pytorch.cost import cost_step as costing

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(costing, "profile_calls", refuse)
    model, args, loss = conv_case()
    plan = memfit.plan(model, args, loss, budget="80%", cost="analytic")
    assert plan.overhead > 0
    assert plan.provenance["cost"] == "analytic"


def test_prediction_counts_what_the_allocator_hands_out() -> None:
    model, args, loss = conv_case()
    step = capture(model, args, loss)
    fitted = memfit.fit(model, loss, budget=2**50, planner="store-all")

    def run() -> None:
        fitted(*args).backward()

    measured = measure_step(run, reset=model.zero_grad).peak_bytes
    assert fitted.plan is not None
    assert step.graph.fingerprint == fitted.plan.graph_fingerprint
    predicted = fitted.plan.peak_bytes - step.graph.resident_bytes
    assert abs(predicted - measured) <= 0.005 * measured
