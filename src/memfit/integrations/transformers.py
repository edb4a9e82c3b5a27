"""Hugging Face `Trainer` within a memory budget.

    trainer = Trainer(model=model, args=args, …, callbacks=[MemFitCallback(budget="8GiB")])
    trainer.train()

While `train` runs, the model's forward pass, its loss and their backward pass follow a plan; the
model itself, evaluation, checkpoints and saved models are what they are without memfit.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from memfit.budget import Budget
from memfit.errors import UsageError
from memfit.integrations import import_library
from memfit.pytorch.api.planned_method import PlanHolder, PlannedMethod

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

import_library("accelerate", extra="transformers")  # Trainer fails late without it
TrainerCallback: Any = import_library("transformers", extra="transformers").TrainerCallback

__all__ = ["MemFitCallback"]

OUTPUTS = ("loss", "all")


class LossOnly(dict[str, Any]):
    """What a planned training step returns: the loss; reading anything else is explained."""

    def _explain(self, name: object) -> str:
        return (
            f"output {name!r} is not returned by a planned training step, which keeps the loss "
            "alone; a Trainer that reads other outputs in training needs "
            'MemFitCallback(..., outputs="all")'
        )

    def __missing__(self, key: object) -> Any:
        if key == 0:  # Trainer reads outputs[0] of models that return tuples
            return self["loss"]
        raise KeyError(self._explain(key))

    def __getattr__(self, name: str) -> Any:
        if name == "loss":
            return self["loss"]
        raise AttributeError(self._explain(name))


def _loss_of(outputs: Any) -> Any:
    """The loss alone, where a model returns one under that name."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else None
    return outputs if loss is None else {"loss": loss}


def _explained(result: Any) -> Any:
    return LossOnly(result) if type(result) is dict and set(result) == {"loss"} else result


class MemFitCallback(PlanHolder, TrainerCallback):
    """Makes a `Trainer` train within a memory budget, with the same gradients.

    The step is planned at the first batch, and again for each new shape of a batch. Where the model
    returns its loss (it is given labels), model and loss are planned together and nothing but the
    loss is returned in training. Where the Trainer computes the loss from the model's outputs
    (`compute_loss_func`, `label_smoothing_factor`), the outputs are returned and that loss
    stays outside of the plan and of the budget.
    """

    def __init__(
        self, budget: str | int | Budget | None = None, *, outputs: str = "loss", **options: Any
    ) -> None:
        """
        Args:
            budget: peak of the whole step: bytes (`"8GiB"`, an int), a share of the plain step's
                peak (`"60%"`), or `"auto"`. Parameters and the optimizer's state count.
            outputs: `"loss"`, or `"all"` for a Trainer whose own `compute_loss` reads more than the
                loss. All outputs then have to be kept, and each gets a gradient.
            options: further arguments of `memfit.fit`, such as `planner`, `cost`, `plan`.

        Raises:
            UsageError: unknown `outputs`. A wrong budget is reported when training begins.
        """
        if outputs not in OUTPUTS:
            raise UsageError(f"unknown outputs {outputs!r}; known: {', '.join(OUTPUTS)}")
        self._outputs = outputs
        self._options = {"budget": budget, **options}

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **_: Any,
    ) -> None:
        """Plan the model's forward pass from here on.

        Raises:
            UsageError: a setting that does not go together with a plan.
        """
        assert model is not None
        self._remove()
        _refuse(args, model)
        if args.label_smoothing_factor:
            warnings.warn(
                f"label_smoothing_factor={args.label_smoothing_factor} makes the Trainer compute "
                "the loss from the model's outputs, so the memory of that loss is not in memfit's "
                "budget; leave room for it",
                UserWarning,
                stacklevel=2,
            )
        only = self._outputs == "loss"
        self._planned = PlannedMethod(
            model,
            reduce=_loss_of if only else None,
            wrap=_explained if only else None,
            **{
                "optimizer": getattr(optimizer, "optimizer", optimizer),
                "accumulate": args.gradient_accumulation_steps > 1,
                **self._options,
            },
        )
        self._planned.install()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check that training goes through the plan.

        Raises:
            UsageError: it does not.
        """
        if self._planned is not None and self._planned.plan is None:
            raise UsageError(
                "the Trainer has trained a step without calling its model with gradients enabled, "
                "so there is nothing planned; call model(**inputs) in compute_loss, or fit "
                "what it calls with memfit.fit"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the model its plain forward pass back; the plan can still be read."""
        self._remove()


def _refuse(args: Any, model: nn.Module) -> None:
    """Settings under which a plan of the whole model would be wrong or of no use.

    Raises:
        UsageError: names the setting and what to do.
    """
    name = type(model).__name__
    if any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        raise UsageError(
            f"activation checkpointing is on in {name}, and memfit chooses itself what to "
            "recompute: with both, activations would be computed a third time; leave "
            "activation_checkpointing=True (gradient_checkpointing) out of TrainingArguments, or "
            "call model.activation_checkpointing_disable()"
        )
    if getattr(args, "torch_compile", False):
        raise UsageError(
            "torch_compile=True compiles the model around memfit's plan, which is itself a "
            "compiled graph; leave torch_compile out of TrainingArguments"
        )
    if getattr(args, "n_gpu", 1) > 1:
        raise UsageError(
            f"nn.DataParallel over {args.n_gpu} GPUs copies the model for each step, and a plan "
            "belongs to one model; start one process for each GPU with torchrun"
        )
    for setting in ("fsdp", "deepspeed"):
        if getattr(args, setting, None):
            raise UsageError(
                f"{setting} takes the parameters apart, and MemFitCallback plans the whole model; "
                f"leave {setting} out, or fit the blocks of the model one by one with memfit.fit"
            )
