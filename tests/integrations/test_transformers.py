"""Hugging Face's `Trainer` with MemFitCallback: same losses, weights, checkpoints; less memory."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memfit.errors import InfeasibleBudgetError, UsageError
from memfit.pytorch.cost.measure import StepMeasurement, measure_step

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which Trainer needs, is not installed")

from memfit.integrations.transformers import MemFitCallback  # noqa: E402

TOKENS, VOCABULARY = 32, 96


def make_model(dropout: float = 0.1) -> Any:
    torch.manual_seed(7)
    config = transformers.GPT2Config(
        n_layer=3,
        n_embd=32,
        n_head=2,
        n_positions=TOKENS,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    return transformers.GPT2LMHeadModel(config)


def make_data(rows: int = 64) -> list[dict[str, torch.Tensor]]:
    draws = torch.randint(VOCABULARY, (rows, TOKENS), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": row, "labels": row.clone()} for row in draws]


class Measured(transformers.Trainer):
    """Measures the peak of the last forward and backward pass of its third step."""

    peak: StepMeasurement | None = None
    passes = 0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.passes += self.state.global_step == 2
        if self.passes != self.args.gradient_accumulation_steps or self.peak is not None:
            return super().training_step(*args, **kwargs)
        results: list[torch.Tensor] = []
        step = super().training_step
        self.peak = measure_step(lambda: results.append(step(*args, **kwargs)), warmup=0)
        return results[0]


def make_trainer(
    folder: Path,
    callback: MemFitCallback | None,
    model: Any = None,
    kind: type = transformers.Trainer,
    trainer_options: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 1e-3,
        "dataloader_pin_memory": False,
        "seed": 11,
    }
    trainer = kind(
        model=model or make_model(),
        args=transformers.TrainingArguments(**{**settings, **arguments}),
        train_dataset=make_data(),
        eval_dataset=make_data(8),
        callbacks=[callback] if callback else None,
        **(trainer_options or {}),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same(first: nn.Module, second: nn.Module) -> None:
    """Same keys, and values equal in every bit."""
    a, b = first.state_dict(), second.state_dict()
    assert list(a) == list(b)
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.sampled(2)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_trains_as_without_memfit_within_the_budget(tmp_path: Path, accumulated: int) -> None:
    plain = make_trainer(tmp_path, None, gradient_accumulation_steps=accumulated)
    plain.train()
    callback = MemFitCallback(budget="60%")
    trainer = make_trainer(
        tmp_path, callback, kind=Measured, gradient_accumulation_steps=accumulated
    )
    trainer.train()

    assert losses(trainer) == losses(plain)
    assert len(losses(trainer)) == 4
    assert_same(trainer.model, plain.model)
    plan, graph = callback.plan, callback.graph
    assert plan is not None
    assert graph is not None
    assert plan.overhead_percent > 0
    assert plan.peak_bytes <= plan.budget_bytes < plan.plain_peak_bytes
    # The optimizer's two moments count; so do all parameters.
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    assert plan.peak_parts["optimizer_state"] >= 2 * weights
    assert plan.peak_parts["parameters"] >= weights
    assert trainer.peak.peak_bytes + graph.resident_bytes <= plan.budget_bytes


@pytest.mark.slow
def test_evaluation_saving_and_resuming(tmp_path: Path) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps"}
    arguments["eval_steps"] = 2
    plain = make_trainer(tmp_path / "plain", None, **arguments)
    plain.train()
    whole = make_trainer(tmp_path / "whole", MemFitCallback(budget="60%"), **arguments)
    whole.train()
    evaluated = [
        [entry["eval_loss"] for entry in t.state.log_history if "eval_loss" in entry]
        for t in (plain, whole)
    ]
    assert len(evaluated[0]) == 2
    assert evaluated[0] == evaluated[1]

    # A checkpoint is the plain model's: its keys, and transformers itself can load it.
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    kind = transformers.GPT2LMHeadModel
    assert_same(
        kind.from_pretrained(checkpoint),
        kind.from_pretrained(tmp_path / "plain" / "checkpoint-2"),
    )

    resumed = make_trainer(tmp_path / "whole", MemFitCallback(budget="60%"), **arguments)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed)[-2:] == losses(whole)[-2:]
    assert_same(resumed.model, whole.model)
    # Without memfit, training goes on from memfit's checkpoint too.
    without = make_trainer(tmp_path / "whole", None, **arguments)
    without.train(resume_from_checkpoint=str(checkpoint))
    assert_same(without.model, whole.model)


@pytest.mark.slow
def test_the_model_is_itself_again_afterwards(tmp_path: Path) -> None:
    copies: list[Any] = []

    class Copy(transformers.TrainerCallback):
        """Copies and pickles the model while it is planned."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            stored = io.BytesIO()
            torch.save(kwargs["model"], stored)
            stored.seek(0)
            copies[:] = [copy.deepcopy(kwargs["model"]), torch.load(stored, weights_only=False)]

    callback = MemFitCallback(budget="60%")
    trainer = make_trainer(tmp_path, callback, max_steps=2)
    trainer.add_callback(Copy())
    trainer.train()
    assert "forward" not in trainer.model.__dict__
    assert callback.plan is not None
    for twin in copies:
        assert_same(twin, trainer.model)
        ids = make_data(2)[0]["input_ids"][None]
        output = twin.train()(input_ids=ids, labels=ids)
        assert output.logits is not None
        output.loss.backward()
        assert all(p.grad is not None for p in twin.parameters())
    assert all(p.grad is None for p in trainer.model.parameters())
    # A second run plans anew and goes on from where the first one ended.
    trainer.train()
    assert "forward" not in trainer.model.__dict__


@pytest.mark.slow
def test_mixed_precision(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path, None, bf16=True)
    plain.train()
    callback = MemFitCallback(budget="70%")
    trainer = make_trainer(tmp_path, callback, bf16=True, kind=Measured)
    trainer.train()
    assert callback.plan is not None
    assert callback.graph is not None
    assert trainer.peak.peak_bytes + callback.graph.resident_bytes <= callback.plan.budget_bytes
    # Eager autocast adds up gradients of a weight that is used twice in low precision, a captured
    # graph does not: the tied embedding differs by what bfloat16 rounds (2^-8).
    assert losses(trainer)[0] == losses(plain)[0]
    for ours, theirs in zip(losses(trainer), losses(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=2**-8)


@pytest.mark.slow
def test_a_loss_that_the_trainer_computes(tmp_path: Path) -> None:
    def sharp(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        logits = outputs["logits"][:, :-1].flatten(0, 1)
        total = nn.functional.cross_entropy(2 * logits, labels[:, 1:].flatten(), reduction="sum")
        return total / num_items_in_batch

    options = {"compute_loss_func": sharp}
    plain = make_trainer(tmp_path, None, trainer_options=options)
    plain.train()
    callback = MemFitCallback(budget="70%")
    trainer = make_trainer(tmp_path, callback, trainer_options=options)
    trainer.train()
    assert callback.plan is not None
    assert losses(trainer) == losses(plain)
    assert_same(trainer.model, plain.model)


@pytest.mark.slow
def test_label_smoothing_warns_that_its_loss_is_not_planned(tmp_path: Path) -> None:
    callback = MemFitCallback(budget="70%")
    trainer = make_trainer(tmp_path, callback, max_steps=1, label_smoothing_factor=0.1)
    with pytest.warns(UserWarning, match=r"label_smoothing_factor=0\.1 .* leave room for it"):
        trainer.train()
    assert callback.plan is not None


class ReadsLogits(transformers.Trainer):
    """Its loss is the model's, with a penalty on large logits."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        loss = outputs.loss + 1e-3 * outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss


@pytest.mark.slow
def test_a_trainer_that_reads_other_outputs(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path, None, kind=ReadsLogits)
    plain.train()
    told = make_trainer(tmp_path, MemFitCallback(budget="80%", outputs="all"), kind=ReadsLogits)
    told.train()
    assert losses(told) == losses(plain)
    assert_same(told.model, plain.model)
    untold = make_trainer(tmp_path, MemFitCallback(budget="80%"), kind=ReadsLogits)
    with pytest.raises(AttributeError, match=r"output 'logits' .* outputs=\"all\""):
        untold.train()


def test_refusals_name_the_remedy(tmp_path: Path) -> None:
    callback = MemFitCallback(budget="60%")
    both = make_trainer(tmp_path, callback, activation_checkpointing=True)
    with pytest.raises(UsageError, match=r"computed a third time; leave activation_checkpointing"):
        both.train()
    model = make_model()
    model.activation_checkpointing_enable()
    with pytest.raises(UsageError, match=r"model\.activation_checkpointing_disable\(\)"):
        make_trainer(tmp_path, callback, model).train()
    compiled = make_trainer(tmp_path, callback)
    compiled.args.torch_compile = True
    with pytest.raises(UsageError, match="leave torch_compile out"):
        compiled.train()
    with pytest.raises(UsageError, match="unknown outputs 'some'; known: loss, all"):
        MemFitCallback(budget="60%", outputs="some")
    with pytest.raises(UsageError, match="no budget"):
        make_trainer(tmp_path, MemFitCallback()).train()


def test_an_impossible_budget_names_the_smallest(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, MemFitCallback(budget="200KiB"))
    with pytest.raises(InfeasibleBudgetError) as caught:
        trainer.train()
    assert caught.value.minimum_bytes > 200 * 1024


def test_training_that_bypasses_the_plan_is_an_error(tmp_path: Path) -> None:
    class Bypass(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
            hidden = model.transformer(input_ids=inputs["input_ids"]).last_hidden_state
            return hidden.square().mean()

    with pytest.raises(UsageError, match="without calling its model"):
        make_trainer(tmp_path, MemFitCallback(budget="60%"), kind=Bypass).train()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    lora = {"r": 4, "lora_dropout": 0.1, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    callback = MemFitCallback(budget="80%", cost="analytic")
    trainers = []
    for used, kind in ((None, transformers.Trainer), (callback, Measured)):
        torch.manual_seed(1)
        model = peft.get_peft_model(make_model(), peft.LoraConfig(**lora))
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        trainers.append(make_trainer(tmp_path, used, model, kind=kind))
        trainers[-1].train()
        for name, p in model.named_parameters():
            assert p.requires_grad == ("lora_" in name)
            assert p.requires_grad or (p.grad is None and torch.equal(p, before[name]))
    plain, ours = trainers
    assert losses(ours) == losses(plain)
    assert callback.plan is not None
    assert callback.graph is not None
    assert callback.plan.overhead > 0
    assert ours.peak.peak_bytes + callback.graph.resident_bytes <= callback.plan.budget_bytes
    # Gradients of the frozen residual stream may be added in another order.
    weights = dict(plain.model.named_parameters())
    for name, p in ours.model.named_parameters():
        torch.testing.assert_close(p, weights[name], rtol=0, atol=1e-6)
    trained = sum(p.numel() for p in ours.model.parameters() if p.requires_grad)
    assert callback.plan.peak_parts["optimizer_state"] < 3 * 4 * trained
