"""Train a transformer with Hugging Face's Trainer within a memory budget.

    pip install 'memfit[transformers]'
    python examples/huggingface_trainer.py [BUDGET]

BUDGET is the peak of the whole step: a share of the plain step's peak ("60%", the default) or bytes
("30MiB"). Model and data are random; nothing is downloaded.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import memfit
from memfit.integrations.transformers import MemFitCallback
from memfit.units import format_bytes


def make_data(rows: int) -> list[dict[str, torch.Tensor]]:
    """Sequences in which each token is the last one plus a step of its own."""
    starts, steps = torch.randint(256, (rows, 1)), torch.randint(1, 8, (rows, 1))
    tokens = (starts + steps * torch.arange(64)) % 256
    return [{"input_ids": row, "labels": row} for row in tokens]


def main(budget: str = "60%") -> None:
    """Train for a few steps, evaluate, save, and load what was saved."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    fitting = MemFitCallback(budget=budget)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=LlamaForCausalLM(config),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=10,
                per_device_train_batch_size=16,
                learning_rate=1e-3,
                logging_steps=2,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=make_data(160),
            eval_dataset=make_data(16),
            callbacks=[fitting],  # the one line
        )
        trainer.train()
        print(f"evaluation loss: {trainer.evaluate()['eval_loss']:.4f}")
        trainer.save_model(folder)
        LlamaForCausalLM.from_pretrained(folder)

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
