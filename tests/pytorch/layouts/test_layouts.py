"""Steps whose tensors are laid out otherwise than row by row: gradients, buffers and budgets.

Each model is one whose kernels return other strides than PyTorch's fake tensors say.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.pytorch.cost.measure import measure_step

Layer = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def fresh_compiler(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    torch._dynamo.reset()
    monkeypatch.setenv("MEMFIT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "costs"))
    yield
    torch._dynamo.reset()


def same_step(
    model: nn.Module,
    *inputs: torch.Tensor,
    loss: Callable[..., torch.Tensor] | None = None,
    **settings: str,
) -> None:
    """One step, plain and fitted: loss, gradients and buffers bit for bit."""
    plain = copy.deepcopy(model)
    options = {"budget": "100%", "cost": "analytic", **settings}
    fitted = memfit.fit(model, loss, **options)

    def step(call: Callable[..., torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(1)
        value = call(*[x.clone() for x in inputs])
        value.backward()
        return value.detach()

    def eager(*args: torch.Tensor) -> torch.Tensor:
        return plain(*args) if loss is None else loss(plain(*args[:-1]), args[-1])

    assert torch.equal(step(fitted), step(eager))
    for name, parameter in plain.named_parameters():
        assert torch.equal(model.get_parameter(name).grad, parameter.grad), name
    for name, buffer in plain.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name


class Between(nn.Module):
    """A layer on a transposed tensor, between two linear ones, which take views of theirs."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(6, 6), layer, nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.first(x).transpose(1, 2)).transpose(1, 2)
        return self.last(x).pow(2).mean()


LAYERS: dict[str, Callable[[], Layer]] = {
    "batch norm": lambda: nn.BatchNorm1d(6),
    "batch norm by its statistics": lambda: nn.BatchNorm1d(6).eval(),
    "batch norm without statistics": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "instance norm": lambda: nn.InstanceNorm1d(6),
    "softplus": nn.Softplus,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "relu6": nn.ReLU6,
    "logsigmoid": nn.LogSigmoid,
    "log softmax": lambda: nn.LogSoftmax(1),
    "rrelu": nn.RReLU,
    "glu": lambda: lambda x: F.glu(torch.cat([x, x], 1), 1),
    "dropout": lambda: lambda x: torch.native_dropout(x, 0.5, True)[0],
    "powers": lambda: lambda x: 2.0**x,
    "power of two": lambda: lambda x: torch.ldexp(x, x.detach()),
    "logaddexp": lambda: lambda x: torch.logaddexp(x.contiguous(), x),
    "xlogy": lambda: lambda x: torch.xlogy(x, x.detach().abs().contiguous() + 1),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_transposed_tensors(name: str) -> None:
    model = Between(LAYERS[name]())
    same_step(model, torch.randn(3, 5, 6))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).transpose(1, 2)


LOSSES = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.soft_margin_loss,
    F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss,
    F.multilabel_soft_margin_loss,
)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_losses_of_transposed_outputs(loss: Callable[..., torch.Tensor]) -> None:
    row_by_row = torch.ones(3, 6, 5)
    for target in (row_by_row, torch.ones(3, 5, 6).transpose(1, 2)):
        torch._dynamo.reset()
        same_step(Transposed(), torch.randn(3, 5, 6), target, loss=loss)


def test_cross_entropy_of_transposed_outputs() -> None:
    target = torch.randint(0, 6, (3, 5))
    same_step(Transposed(), torch.randn(3, 5, 6), target, loss=F.cross_entropy)


class Attended(nn.Module):
    """Attention over an image, whose result is a view that may pass for channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm, self.out = nn.Linear(8, 8), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.mix(x.flatten(2).transpose(1, 2))
        image = tokens.transpose(1, 2).reshape(x.shape)
        return self.out(self.norm(image + x)).pow(2).mean()


@pytest.mark.parametrize("batch", [1, 2])
def test_group_norm_after_attention(batch: int) -> None:
    same_step(Attended(), torch.randn(batch, 8, 4, 4))


@pytest.mark.slow
def test_inductor() -> None:
    model = Between(nn.BatchNorm1d(6))
    plain = copy.deepcopy(model)
    x = torch.randn(3, 5, 6)
    fitted = memfit.fit(model, budget="100%", cost="analytic", executor="inductor")
    torch.testing.assert_close(fitted(x), plain(x))


IN_PLACE: dict[str, Layer] = {
    "tril_": lambda x: x.tril_(),
    "triu_": lambda x: x.triu_(),
    "cumsum_": lambda x: x.cumsum_(1),
    "masked_fill_": lambda x: x.masked_fill_(x > 1, 0.0),
    "logical": lambda x: x.mul_(x > 0),
}


class Written(nn.Module):
    """Batch norm, whose sums depend on the strides of what it reads, of what was written."""

    def __init__(self, write: Layer, through_view: bool) -> None:
        super().__init__()
        self.norm, self.write, self.through_view = nn.BatchNorm1d(6), write, through_view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 1.5
        if self.through_view:
            self.write(x.transpose(1, 2))
        else:
            self.write(x)
        return self.norm(x).sin().mean()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("through_view", [False, True])
@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_written_in_place_keeps_its_strides(name: str, through_view: bool) -> None:
    model = Written(IN_PLACE[name], through_view)
    for x in (torch.randn(4, 6, 32), torch.randn(4, 32, 6).transpose(1, 2)):
        torch._dynamo.reset()
        same_step(copy.deepcopy(model), x)


class Convolutions(nn.Module):
    def __init__(self, activation: Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=g) for g in (1, 8, 1))
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.activation(layer(x))
        return x


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("activation", "loss"),
    [
        (F.relu, F.mse_loss),
        (F.logsigmoid, F.mse_loss),
        (F.relu, F.smooth_l1_loss),
        (F.hardswish, F.l1_loss),
        (F.softplus, F.huber_loss),
    ],
    ids=lambda function: function.__name__,
)
def test_channels_last_within_the_smallest_budget(
    activation: Layer, loss: Callable[..., torch.Tensor]
) -> None:
    model = Convolutions(activation).to(memory_format=torch.channels_last)
    x, target = (torch.randn(4, 8, 24, 24).to(memory_format=torch.channels_last) for _ in range(2))
    smallest = memfit.plan(model, (x, target), loss, budget="1TiB").smallest_feasible_budget_bytes
    torch._dynamo.reset()
    fitted = memfit.fit(model, loss, budget=smallest)
    model.train()

    def step() -> torch.Tensor:
        value = fitted(x, target)
        value.backward()
        return value

    step()
    assert fitted.graph is not None
    measured = measure_step(step, reset=model.zero_grad)
    assert fitted.graph.resident_bytes + measured.peak_bytes <= smallest
