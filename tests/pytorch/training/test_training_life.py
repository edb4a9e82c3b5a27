"""What people do around a model, with a fitted one: the same results as with the plain model.

Every module is fitted at its smallest feasible budget, so that there is recomputation, and is
compared with a plain copy, bit for bit.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.pytorch.api.fitted import FittedModule
from support.small_net import Net, assert_equal, made, mean_square, tight


class Autocast(Net):
    """Part of the forward pass under autocast, the head in full precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The head's output."""
        with torch.autocast("cpu", torch.bfloat16):
            x = self.trunk(x)
        return self.head(x.float())


@dataclasses.dataclass
class Result:
    """Two tensors and something else."""

    logits: torch.Tensor
    hidden: torch.Tensor
    note: str = ""


class Outputs(Net):
    """Takes a scale by keyword, returns what `form` says."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor, shift: float = 0.0) -> Any:
        """Logits and hidden state."""
        hidden = self.trunk(x) * scale + shift
        logits = self.head(hidden)
        if self.form == "dict":
            return {"logits": logits, "parts": [hidden, {"note": "text"}]}
        if self.form == "dataclass":
            return Result(logits, hidden, "text")
        if self.form == "model output":
            return CausalLMOutput(logits=logits, hidden_states=(hidden,))
        return logits, hidden


try:
    from transformers.modeling_outputs import CausalLMOutput
except ImportError:  # its cases are skipped
    CausalLMOutput = None


class LoRALinear(nn.Module):
    """A frozen linear layer with a trained product of two small matrices beside it."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scaling = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output and the correction."""
        return self.base(x) + F.linear(F.linear(F.dropout(x, 0.1), self.down), self.up) * (
            self.scaling
        )


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(64, 32), torch.randn(64, 32)


Run = Callable[[nn.Module, Callable[..., Any]], Any]


def compare(plain: nn.Module, fitted: FittedModule, plain_call: Any, run: Run) -> None:
    """Run the same with both from the same seed: results, gradients, state, generator equal."""
    ends = []
    for module, call in ((plain, plain_call), (fitted, fitted)):
        torch.manual_seed(7)
        result = run(module, call)
        gradients = {n: p.grad for n, p in module.named_parameters()}
        ends.append((result, gradients, dict(module.state_dict()), torch.rand(2)))
    assert fitted.plan is not None
    assert fitted.plan.overhead > 0
    for ours, theirs in zip(ends[1], ends[0], strict=True):
        assert_equal(ours, theirs)


def with_loss(model: nn.Module) -> Callable[..., torch.Tensor]:
    return lambda x, target: mean_square(model(x), target)


def backward(batch: Any) -> Run:
    def run(_: nn.Module, call: Callable[..., Any]) -> torch.Tensor:
        loss = call(*batch)
        loss.backward()
        return loss.detach()

    return run


# Autocast and gradient scaling


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_the_call(batch: Any, dtype: torch.dtype) -> None:
    model = made(Net)
    plain = copy.deepcopy(model)
    with torch.autocast("cpu", dtype):
        fitted = tight(model, batch, mean_square)

    def run(_: nn.Module, call: Callable[..., Any]) -> torch.Tensor:
        with torch.autocast("cpu", dtype):
            loss = call(*batch)
        loss.backward()
        return loss.detach()

    compare(plain, fitted, with_loss(plain), run)


def test_autocast_inside_the_model(batch: Any) -> None:
    model = made(Autocast)
    plain = copy.deepcopy(model)
    compare(plain, tight(model, batch, mean_square), with_loss(plain), backward(batch))


def test_full_precision_after_autocast_is_planned_by_itself(batch: Any) -> None:
    model = made(Net)
    plain = copy.deepcopy(model)
    fitted = memfit.fit(model, mean_square, budget="100%", cost="analytic")
    losses = []
    for call in (with_loss(plain), fitted):
        for enabled in (True, False, True):
            torch.manual_seed(7)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                losses.append(call(*batch))
            losses[-1].backward()
    assert_equal([x.detach() for x in losses[3:]], [x.detach() for x in losses[:3]])
    assert not torch.equal(losses[0], losses[1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_grad_scaler(batch: Any, dtype: torch.dtype) -> None:
    model = made(Net)
    plain = copy.deepcopy(model)
    with torch.autocast("cpu", dtype):
        fitted = tight(model, batch, mean_square)

    def run(module: nn.Module, call: Callable[..., Any]) -> list[float]:
        # So large a scale that the first steps overflow in half precision and are skipped.
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=2)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        scales = []
        for _ in range(8):
            optimizer.zero_grad()
            for part in (batch[0], batch[0].flip(0)):
                with torch.autocast("cpu", dtype):
                    loss = call(part, batch[1]) / 2
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return scales

    compare(plain, fitted, with_loss(plain), run)


def test_a_model_in_bfloat16(batch: Any) -> None:
    model = made(Net).to(torch.bfloat16)
    plain = copy.deepcopy(model)
    low = (batch[0].bfloat16(), batch[1])
    compare(plain, tight(model, low, mean_square), with_loss(plain), backward(low))


# Frozen parameters


@pytest.mark.sampled(2)
@pytest.mark.parametrize("frozen", ["first", "last", "all but one"])
def test_frozen_parameters(batch: Any, frozen: str) -> None:
    model = made(Net)
    assert isinstance(model, Net)
    names = {"first": "layers.0", "last": "head", "all but one": ""}[frozen]
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(names) or (not names and name == "layers.1.bias"))
    plain = copy.deepcopy(model)
    fitted = tight(model, batch, mean_square)
    compare(plain, fitted, with_loss(plain), backward(batch))
    assert {p.grad is None for p in model.parameters()} == {True, False}


def test_freezing_between_steps(batch: Any) -> None:
    model = made(Net)
    plain = copy.deepcopy(model)

    def run(module: Any, call: Callable[..., Any]) -> None:
        for trained in (True, False, True):
            module.layers[0].requires_grad_(trained)
            call(*batch).backward()

    fitted = tight(model, batch, mean_square)
    compare(plain, fitted, with_loss(plain), run)


def test_lora(batch: Any) -> None:
    model = made(Net)
    assert isinstance(model, Net)
    model.requires_grad_(False)
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, nn.Linear)
        model.layers[i] = LoRALinear(layer)
    plain = copy.deepcopy(model)

    def run(module: nn.Module, call: Callable[..., Any]) -> None:
        trained = [p for p in module.parameters() if p.requires_grad]
        assert len(trained) == 8
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            call(*batch).backward()
            optimizer.step()

    compare(plain, tight(model, batch, mean_square), with_loss(plain), run)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_lora_of_peft() -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=2, n_positions=32, vocab_size=64, use_cache=False
    )
    base = transformers.GPT2LMHeadModel(config)
    lora = peft.LoraConfig(
        r=4, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True, lora_alpha=8
    )
    model = peft.get_peft_model(base, lora)
    plain = copy.deepcopy(model)
    ids = torch.randint(0, 64, (2, 32))
    fitted = tight(model, (), None, {"input_ids": ids, "labels": ids})

    def run(_: nn.Module, call: Callable[..., Any]) -> torch.Tensor:
        for _ in range(2):
            loss = call(input_ids=ids, labels=ids).loss
            loss.backward()
        return loss.detach()

    ends = []
    for module, call in ((plain, plain), (model, fitted)):
        torch.manual_seed(7)
        loss = run(module, call)
        ends.append((loss, {n: p.grad for n, p in module.named_parameters()}))
    assert fitted.plan is not None
    assert fitted.plan.overhead > 0
    assert torch.equal(ends[0][0], ends[1][0])
    for name, theirs in ends[0][1].items():
        ours = ends[1][1][name]
        assert (ours is None) == (theirs is None) == ("lora" not in name)
        if theirs is not None:  # the order in which gradients of the residual stream are summed
            scale = float(theirs.abs().max())
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * scale)


# Inputs and outputs


def test_inputs_that_need_gradients(batch: Any) -> None:
    model = made(Net)
    plain = copy.deepcopy(model)
    leaf = batch[0].clone().requires_grad_()
    fitted = tight(model, (leaf, batch[1]), mean_square)

    def run(_: nn.Module, call: Callable[..., Any]) -> Any:
        x = batch[0].clone().requires_grad_()
        scale = torch.tensor(2.0, requires_grad=True)
        call(x, batch[1]).backward()
        call(scale * x, batch[1]).backward()
        return x.grad, scale.grad

    compare(plain, fitted, with_loss(plain), run)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("form", ["tuple", "dict", "dataclass", "model output"])
def test_keywords_and_forms_of_outputs(batch: Any, form: str) -> None:
    if form == "model output" and CausalLMOutput is None:
        pytest.skip("transformers is not installed")
    model = made(Outputs, form)
    plain = copy.deepcopy(model)
    scale = torch.tensor(1.5, requires_grad=True)
    fitted = tight(model, batch[:1], None, {"scale": scale, "shift": 0.5})

    def run(_: nn.Module, call: Callable[..., Any]) -> Any:
        scale = torch.tensor(1.5, requires_grad=True)
        result = call(batch[0], shift=0.5, scale=scale)
        if form == "dict":
            assert result["parts"][1] == {"note": "text"}
            logits, hidden = result["logits"], result["parts"][0]
        elif form == "dataclass":
            assert type(result) is Result
            assert result.note == "text"
            logits, hidden = result.logits, result.hidden
        elif form == "model output":
            assert type(result) is CausalLMOutput
            assert result.loss is None
            logits, (hidden,) = result["logits"], result.hidden_states
        else:
            logits, hidden = result
        # Two losses, one of each output, summed outside.
        first, second = mean_square(logits, batch[1]), hidden.abs().mean()
        (first + 0.1 * second).backward()
        return logits.detach(), hidden.detach(), scale.grad

    compare(plain, fitted, plain, run)


# Without training


@pytest.mark.parametrize("how", ["eval", "no_grad", "inference_mode"])
def test_passes_through_untouched(batch: Any, how: str) -> None:
    model = made(Net)
    plain = copy.deepcopy(model)
    fitted = memfit.fit(model, budget="90%", cost="analytic")
    contexts: dict[str, Callable[[], Any]] = {
        "eval": torch.enable_grad,
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
    }
    results = []
    for module in (plain, fitted):
        torch.manual_seed(7)
        module.train(how != "eval")
        with contexts[how]():
            results.append(module(batch[0]))
    assert torch.equal(results[0], results[1])
    assert results[0].requires_grad == results[1].requires_grad == (how == "eval")
    assert fitted.plan is None
    assert_equal(dict(fitted.state_dict()), dict(plain.state_dict()))


def test_evaluation_between_steps(batch: Any) -> None:
    model = made(Net)
    plain = copy.deepcopy(model)

    def run(module: nn.Module, call: Callable[..., Any]) -> list[torch.Tensor]:
        seen = []
        for _ in range(2):
            module.train()
            call(*batch).backward()
            module.eval()
            with torch.no_grad():
                seen.append(call(*batch))
        module.train()
        return seen

    fitted = tight(model, batch, mean_square)
    compare(plain, fitted, with_loss(plain), run)


class Turned(nn.Module):
    """Dropout on tensors whose memory is not in the order of their dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 16, 3, padding=1)
        self.second = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mixed along both dimensions."""
        h = F.dropout(self.first(x).transpose(1, 2), 0.3)
        for _ in range(4):
            h = F.dropout(F.gelu(self.second(h)).transpose(1, 2), 0.1).transpose(1, 2)
        h = F.dropout(torch.tanh(self.second(h)).permute(2, 0, 1)[:, :, ::2], 0.3)
        return F.alpha_dropout(h.transpose(0, 2), 0.2, training=True).sum(0)


@pytest.mark.slow
def test_dropout_draws_in_the_order_of_memory_as_eager_does() -> None:
    model = made(Turned)
    plain = copy.deepcopy(model)
    args = (torch.randn(4, 8, 24), torch.randn(4, 16))
    compare(plain, tight(model, args, mean_square), with_loss(plain), backward(args))
