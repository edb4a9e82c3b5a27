"""Lightning's `Trainer` with MemFit: the same losses, weights, checkpoints; less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.pytorch.cost.measure import StepMeasurement, measure_step

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

from memfit.integrations.lightning import MemFit  # noqa: E402

# Of Lightning itself, with this PyTorch.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers:UserWarning"
)

WIDTH, CLASSES = 32, 5


def make_network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.GELU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


class Classifier(pl.LightningModule):
    """One child, `model`; logs from `training_step`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.model = make_network()
        self.losses: list[float] = []
        self.validated: list[float] = []
        self.peak: StepMeasurement | None = None

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss of one batch."""
        return F.cross_entropy(self.model(x), y)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.loss(*batch)
        self.log("loss", loss)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.validated.append(self.loss(*batch).item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Measured(Classifier):
    """Measures the peak of one more forward and backward pass before the third step."""

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if index == 2:
            self.zero_grad()
            self.peak = measure_step(lambda: self.loss(*batch).backward(), reset=self.zero_grad)
            self.zero_grad()
        return super().training_step(batch, index)


def loader(rows: int = 4 * 256) -> torch.utils.data.DataLoader[Any]:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(rows, WIDTH, generator=draw)
    y = torch.randint(CLASSES, (rows,), generator=draw)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=256)


def train(
    module: Any,
    callback: MemFit | None,
    folder: Path,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Any:
    trainer = pl.Trainer(
        **{
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "callbacks": [callback] if callback else [],
            "log_every_n_steps": 1,
            **options,
        }
    )
    torch.manual_seed(17)
    trainer.fit(module, loader(), loader(256), ckpt_path=ckpt_path)
    return trainer


def assert_same(first: nn.Module, second: nn.Module) -> None:
    """Same keys, and values equal in every bit."""
    a, b = first.state_dict(), second.state_dict()
    assert list(a) == list(b)
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.sampled(2)
@pytest.mark.parametrize("target", [{}, {"module": "model"}, {"method": "loss"}])
def test_trains_as_without_memfit(tmp_path: Path, target: dict[str, str]) -> None:
    plain = Classifier()
    train(plain, None, tmp_path)
    callback = MemFit(budget="70%", **target)
    ours = Classifier()
    train(ours, callback, tmp_path)
    assert len(ours.losses) == 4
    assert ours.losses == plain.losses
    assert ours.validated == plain.validated
    assert len(ours.validated) == 2  # the sanity check, and the end of the epoch
    assert_same(ours, plain)
    plan = callback.plan
    assert plan is not None
    assert plan.overhead_percent > 0
    assert plan.peak_bytes <= plan.budget_bytes < plan.plain_peak_bytes
    weights = sum(p.numel() * p.element_size() for p in ours.parameters())
    assert plan.peak_parts["optimizer_state"] >= 2 * weights
    assert "forward" not in ours.model.__dict__
    assert "loss" not in ours.__dict__


def test_the_measured_peak_is_within_the_budget(tmp_path: Path) -> None:
    callback = MemFit(budget="60%", method="loss")
    module = Measured()
    train(module, callback, tmp_path)
    assert callback.plan is not None
    assert callback.graph is not None
    assert module.peak is not None
    peak = module.peak.peak_bytes + callback.graph.resident_bytes
    assert peak <= callback.plan.budget_bytes < callback.plan.plain_peak_bytes


class Zeroed(Classifier):
    """Notes before each forward pass whether a gradient is there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.found.append(any(p.grad is not None for p in self.parameters()))
        return super().training_step(batch, index)


class ZeroesItself(Zeroed):
    """Has a say in how gradients are zeroed."""

    def optimizer_zero_grad(self, epoch: int, index: int, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)


class Looks(Zeroed):
    """Looks at gradients before they are zeroed."""

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        self.found.append(any(p.grad is not None for p in self.parameters()))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("kind", "accumulated", "found"),
    [
        (Zeroed, 1, [False] * 4),
        (Zeroed, 2, [False, True] * 2),
        (ZeroesItself, 1, [False, True, True, True]),
        (Looks, 1, [False, False, True, True, True, True, True, True]),
    ],
)
def test_gradients_are_zeroed_before_the_forward_pass(
    tmp_path: Path, kind: type[Zeroed], accumulated: int, found: list[bool]
) -> None:
    plain, ours = kind(), kind()
    options = {"accumulate_grad_batches": accumulated}
    train(plain, None, tmp_path, **options)
    train(ours, MemFit(budget="100%", cost="analytic"), tmp_path, **options)
    assert ours.found == found
    assert plain.found[-3:] == [True] * 3  # Lightning zeroes after it
    assert ours.losses == plain.losses
    assert_same(ours, plain)


@pytest.mark.slow
def test_checkpoints_are_plain_and_can_be_resumed(tmp_path: Path) -> None:
    plain, whole = Classifier(), Classifier()
    train(plain, None, tmp_path, max_epochs=2)
    train(whole, MemFit(budget="70%"), tmp_path, max_epochs=2)
    half = Classifier()
    train(half, MemFit(budget="70%"), tmp_path).save_checkpoint(tmp_path / "half.ckpt")
    stored = torch.load(tmp_path / "half.ckpt", weights_only=False)
    assert list(stored["state_dict"]) == list(Classifier().state_dict())
    # Dropout draws other masks after a restart, with memfit or without.
    runs = []
    for callback in (None, MemFit(budget="70%")):
        resumed = Classifier()
        train(resumed, callback, tmp_path, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
        assert len(resumed.losses) == 4
        runs.append(resumed)
    assert runs[0].losses == runs[1].losses
    assert_same(runs[0], runs[1])
    assert_same(plain, whole)


def test_accumulation_clipping_and_mixed_precision(tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "precision": "bf16-mixed"}
    plain, ours = Classifier(), Classifier()
    train(plain, None, tmp_path, **options)
    callback = MemFit(budget="80%", method="loss")
    train(ours, callback, tmp_path, **options)
    assert callback.plan is not None
    assert ours.losses == plain.losses
    assert_same(ours, plain)


class TwoParts(Classifier):
    """Two children with parameters; `training_step` calls them one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(CLASSES, CLASSES)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.head(self.model(x)), y)


class WithForward(TwoParts):
    """Two children, and a forward that calls both."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.model(x))

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self(x), y)


@pytest.mark.slow
def test_what_is_planned_where_there_are_several_parts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'it has "model", "head" and no forward of its own; name'):
        train(TwoParts(), MemFit(budget="90%"), tmp_path)
    part = MemFit(budget="90%", module="model")
    train(TwoParts(), part, tmp_path)
    assert part.graph is not None
    whole = MemFit(budget="90%")
    train(WithForward(), whole, tmp_path)
    assert whole.graph is not None
    assert len(whole.graph.forward_ops) > len(part.graph.forward_ops)
    # The parameters that are not planned count all the same.
    assert whole.plan is not None
    assert part.plan is not None
    assert whole.plan.peak_parts["parameters"] == part.plan.peak_parts["parameters"]


def test_refusals_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'no submodule "body"; it has "model", and ""'):
        train(Classifier(), MemFit(budget="60%", module="body"), tmp_path)
    with pytest.raises(UsageError, match="Classifier has no method 'step'"):
        train(Classifier(), MemFit(budget="60%", method="step"), tmp_path)
    with pytest.raises(UsageError, match=r'did not call what MemFit plans; .*it has "model"'):
        train(Classifier(), MemFit(budget="60%", module=""), tmp_path)
    with pytest.raises(UsageError, match="no budget"):
        train(Classifier(), MemFit(), tmp_path)

    class Two(Classifier):
        def configure_optimizers(self) -> Any:
            self.automatic_optimization = False
            return [torch.optim.SGD(self.model[:8].parameters(), 0.1) for _ in range(2)]

    with pytest.raises(UsageError, match="Two has 2 optimizers"):
        train(Two(), MemFit(budget="60%"), tmp_path)


def test_an_error_leaves_the_plain_module(tmp_path: Path) -> None:
    class Fails(Classifier):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if index == 1:
                raise RuntimeError("out of luck")
            return super().training_step(batch, index)

    module = Fails()
    with pytest.raises(RuntimeError, match="out of luck"):
        train(module, MemFit(budget="70%"), tmp_path)
    assert "forward" not in module.model.__dict__


def test_an_impossible_budget_names_the_layer(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"reached at \S+") as caught:
        train(Classifier(), MemFit(budget="10%", cost="analytic"), tmp_path)
    assert "__self__" not in str(caught.value)
    assert "planned_method" not in str(caught.value)
