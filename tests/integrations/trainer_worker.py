"""One rank of test_trainers_distributed.py, under torchrun: trainer_worker.py FOLDER."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from memfit.pytorch.cost.measure import StepMeasurement, measure_step

TOKENS, VOCABULARY, WIDTH = 32, 96, 32


def outcome(model: nn.Module, losses: list[float], peak: StepMeasurement | None, plan: Any) -> Any:
    """What is compared."""
    found = {"losses": losses, "state": {k: v.clone() for k, v in model.state_dict().items()}}
    if peak is not None:
        found["measured"] = peak.peak_bytes
    if plan is not None and plan.plan is not None:
        found |= {
            "plan": plan.plan.to_json(),
            "budget": plan.plan.budget_bytes,
            "plain_peak": plan.plan.plain_peak_bytes,
            "resident": plan.graph.resident_bytes,
            "buckets": plan.plan.peak_parts["buffers"],
        }
    return found


def huggingface(folder: Path, budget: str | None) -> Any:
    import transformers

    from memfit.integrations.transformers import MemFitCallback

    class Measured(transformers.Trainer):
        """Measures its third step."""

        peak: StepMeasurement | None = None

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            step = super().training_step
            if self.state.global_step != 2:
                return step(*args, **kwargs)
            results: list[torch.Tensor] = []
            self.peak = measure_step(lambda: results.append(step(*args, **kwargs)), warmup=0)
            return results[0]

    torch.manual_seed(7)
    config = transformers.GPT2Config(
        n_layer=3,
        n_embd=WIDTH,
        n_head=2,
        n_positions=TOKENS,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
    )
    draws = torch.randint(VOCABULARY, (64, TOKENS), generator=torch.Generator().manual_seed(3))
    callback = MemFitCallback(budget=budget, cost="analytic") if budget else None
    trainer = Measured(
        model=transformers.GPT2LMHeadModel(config),
        args=transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=4,
            per_device_train_batch_size=8,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            ddp_backend="gloo",
            ddp_find_unused_parameters=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=11,
        ),
        train_dataset=[{"input_ids": row, "labels": row.clone()} for row in draws],
        callbacks=[callback] if callback else None,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return outcome(trainer.model, losses, trainer.peak, callback)


def lightning(folder: Path, budget: str | None) -> Any:
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import DDPStrategy

    from memfit.integrations.lightning import MemFit

    class Classifier(pl.LightningModule):
        """Measures the peak of its third step."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            layers: list[nn.Module] = []
            for _ in range(6):
                layers += [nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Dropout(0.1)]
            self.model = nn.Sequential(*layers, nn.Linear(WIDTH, 5))
            self.losses: list[float] = []

        def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            """The loss of one batch."""
            return F.cross_entropy(self.model(x), y)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = self.loss(*batch)
            self.log("loss", loss)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    draw = torch.Generator().manual_seed(2)
    data = torch.utils.data.TensorDataset(
        torch.randn(2 * 4 * 128, WIDTH, generator=draw),
        torch.randint(5, (2 * 4 * 128,), generator=draw),
    )
    callback = MemFit(budget=budget, cost="analytic", method="loss") if budget else None
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback] if callback else [],
    )
    module = Classifier()
    torch.manual_seed(17)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=128))
    return outcome(module, module.losses, None, callback)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    results = {}
    for name, run in (("huggingface", huggingface), ("lightning", lightning)):
        for kind, budget in (("plain", None), ("planned", "70%")):
            torch._dynamo.reset()
            results[f"{name} {kind}"] = run(folder, budget)
    torch.save(results, folder / f"{os.environ['RANK']}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # Of the trainers themselves, with this PyTorch.
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
