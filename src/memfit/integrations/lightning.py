"""Lightning within a memory budget.

    trainer = Trainer(callbacks=[MemFit(budget="8GiB")])
    trainer.fit(module)

While `fit` trains, one method of the LightningModule or of a part of it follows a plan; the module
itself, validation and checkpoints are what they are without memfit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.budget import Budget
from memfit.errors import UsageError
from memfit.integrations import import_library
from memfit.pytorch.api.planned_method import PlanHolder, PlannedMethod

if TYPE_CHECKING:
    from torch import nn

_library = import_library("lightning.pytorch", "pytorch_lightning", extra="lightning")
Callback: Any = _library.Callback
LightningModule: Any = _library.LightningModule

__all__ = ["MemFit"]

_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


class MemFit(PlanHolder, Callback):
    """Makes a Lightning `Trainer` train within a memory budget, with the same gradients.

    What is planned is one call inside `training_step` (as a whole, with its logging, that cannot be
    captured):

    - by default the one child that has parameters to train, such as `self.model`; where there
      are several, the LightningModule's own `forward`, if it has one;
    - `module="encoder.body"`: this part (`""` is the LightningModule itself);
    - `method="loss"`: a method of the LightningModule, or of `module`, that `training_step` calls.

    Only what is planned is in the budget, so a method that returns the loss fits more than a
    `forward` that returns logits. Parameters and buffers of the whole LightningModule and the
    optimizer's state count in any case. The plan is made at the first batch, and again for each
    new shape of a batch.
    """

    def __init__(
        self,
        budget: str | int | Budget | None = None,
        *,
        module: str | None = None,
        method: str = "forward",
        **options: Any,
    ) -> None:
        """
        Args:
            budget: peak of the whole step: bytes (`"8GiB"`, an int), a share of the plain step's
                peak (`"60%"`), or `"auto"`.
            module: path of the part to plan, as in `get_submodule`.
            method: the method to plan.
            options: further arguments of `memfit.fit`, such as `planner`, `cost`, `plan`.
        """
        self._target = (module, method)
        self._options = {"budget": budget, **options}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Plan the chosen method from here on.

        Raises:
            UsageError: what to plan cannot be decided, or a setting does not go together with a
                plan.
        """
        self._remove()
        _refuse(trainer, pl_module)
        module, method = self._target
        optimizers = trainer.optimizers
        self._planned = PlannedMethod(
            _choose(pl_module, module, method),
            method,
            owner=pl_module,
            **{
                "optimizer": optimizers[0] if optimizers else None,
                "accumulate": trainer.accumulate_grad_batches > 1,
                **self._options,
            },
        )
        self._planned.install()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Zero gradients before the forward pass where Lightning would right after it.

        They would be alive beside the activations, which no plan has room for.
        """
        first = batch_idx % trainer.accumulate_grad_batches == 0
        if self._planned is not None and first and _zeroes_plainly(trainer, pl_module):
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        """Check that training goes through the plan.

        Raises:
            UsageError: it does not.
        """
        if self._planned is not None and self._planned.plan is None:
            raise UsageError(
                f"training_step of {type(pl_module).__name__} did not call what MemFit plans; name "
                'what it calls: MemFit(..., module="model") for a part (it has '
                f'{_listed(pl_module)}), or method="loss" for a method'
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Give the module its plain method back; the plan can still be read."""
        self._remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the module its plain method back."""
        self._remove()


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _listed(pl_module: nn.Module) -> str:
    names = [f'"{name}"' for name, child in pl_module.named_children() if _trains(child)]
    return ", ".join(names) or "no part with parameters to train"


def _choose(pl_module: nn.Module, name: str | None, method: str) -> nn.Module:
    """The module whose method is planned.

    Raises:
        UsageError: there is no module of that name, or none is given and several would do.
    """
    kind = type(pl_module).__name__
    if name is not None:
        try:
            return pl_module.get_submodule(name)
        except AttributeError:
            raise UsageError(
                f'{kind} has no submodule "{name}"; it has {_listed(pl_module)}, and "" is '
                "the LightningModule itself"
            ) from None
    if method != "forward":
        return pl_module
    children = [child for child in pl_module.children() if _trains(child)]
    direct = any(p.requires_grad for p in pl_module.parameters(recurse=False))
    if len(children) == 1 and not direct:
        return children[0]
    if type(pl_module).forward is not LightningModule.forward:
        return pl_module
    raise UsageError(
        f"MemFit cannot tell what training_step of {kind} calls: it has {_listed(pl_module)} and "
        'no forward of its own; name one: MemFit(..., module="model"), or give the module a method '
        'that computes the loss and name it: MemFit(..., method="loss")'
    )


def _zeroes_plainly(trainer: Any, pl_module: Any) -> bool:
    """Whether nobody sees when Lightning zeroes gradients, between forward and backward pass."""
    kind, hook = type(pl_module), "on_before_zero_grad"
    return (
        pl_module.automatic_optimization
        and kind.optimizer_zero_grad is LightningModule.optimizer_zero_grad
        and getattr(kind, hook) is getattr(LightningModule, hook)
        and all(getattr(type(c), hook) is getattr(Callback, hook) for c in trainer.callbacks)
    )


def _refuse(trainer: Any, pl_module: Any) -> None:
    """Settings under which a plan would be wrong or of no use.

    Raises:
        UsageError: names the setting and what to do.
    """
    strategy = type(trainer.strategy).__name__
    if strategy in _SHARDED:
        raise UsageError(
            f"{strategy} takes the parameters apart, and MemFit plans a whole module; use "
            'strategy="auto" or "ddp", or fit the blocks of the model one by one with memfit.fit'
        )
    if len(trainer.optimizers) > 1:
        raise UsageError(
            f"{type(pl_module).__name__} has {len(trainer.optimizers)} optimizers, so a batch "
            "takes several steps, and MemFit plans one; fit each part with memfit.fit and call the "
            "results in training_step"
        )
    if getattr(pl_module, "_compiler_ctx", None) is not None:
        raise UsageError(
            "the LightningModule was given to torch.compile, and memfit's plan is itself a "
            "compiled graph; give the plain LightningModule to the Trainer"
        )
