"""Train a convolutional network with Lightning within a memory budget.

    pip install 'memfit[lightning]'
    python examples/lightning_trainer.py [BUDGET]

BUDGET is the peak of the whole step: a share of the plain step's peak ("60%", the default) or bytes
("40MiB"). The data are random; nothing is downloaded.
"""

from __future__ import annotations

import logging
import sys
import tempfile

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import memfit
from memfit.integrations.lightning import MemFit
from memfit.units import format_bytes


class Classifier(pl.LightningModule):
    """Eight convolutions with batch normalisation, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for _ in range(8):
            layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
            channels = 32
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(channels, 2)]
        self.model = nn.Sequential(*layers, *head)

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Model and loss, without logging: what MemFit plans."""
        return nn.functional.cross_entropy(self.model(images), labels)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.loss(*batch)
        print(f"step {self.global_step}: loss {loss.item():.4f}")
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        print(f"validation loss: {self.loss(*batch).item():.4f}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def make_data(rows: int) -> DataLoader:
    """Bright and dark random images."""
    labels = torch.randint(2, (rows,))
    images = torch.randn(rows, 3, 48, 48) + labels[:, None, None, None]
    return DataLoader(TensorDataset(images, labels), batch_size=8)


def main(budget: str = "60%") -> None:
    """Train for a few steps and validate."""
    torch.manual_seed(0)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    fitting = MemFit(budget=budget, method="loss")
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            num_sanity_val_steps=0,
            callbacks=[fitting],  # the one line
        )
        trainer.fit(Classifier(), make_data(80), make_data(8))

    plan = fitting.plan
    assert plan is not None
    print(f"plain step:   {format_bytes(plan.plain_peak_bytes)}")
    print(f"budget:       {format_bytes(plan.budget_bytes)}")
    print(f"planned step: {format_bytes(plan.peak_bytes)}")
    print(f"recomputation: {plan.overhead_percent:.1f}% of a step")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except memfit.MemfitError as error:
        sys.exit(f"error: {error}")
