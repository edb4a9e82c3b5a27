"""Several blocks of one model, each fitted on its own: for FSDP2 and models with graph breaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Unpack

import torch
from torch import nn

from memfit.budget import Budget
from memfit.errors import InvalidBudgetError, UsageError
from memfit.pytorch.api.entry import fit
from memfit.pytorch.api.fitted import FittedModule
from memfit.pytorch.arguments import check_module, short
from memfit.pytorch.compat.distributed import distributed_ready
from memfit.pytorch.options import StepKeywords, step_options

__all__ = ["block_budgets", "fit_blocks"]


def fit_blocks(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    **options: Unpack[StepKeywords],
) -> list[FittedModule]:
    """Replace blocks of a model by fitted ones, each captured and planned by itself.

    For FSDP2, shard what comes back, then the model; each block then gathers its parameters around
    a forward pass, and a backward pass, that follow its own plan:

        for block in memfit.fit_blocks(model, list(model.layers), budget="60%"):
            fully_shard(block)
        fully_shard(model)

    Args:
        model: holds the blocks; changed in place.
        blocks: submodules of `model`, none inside another.
        options: those below, and further ones of `fit` for each block.

    Keyword Args:
        budget (str | int | Budget | None): a share ("60%") of each block's own plain peak; or
            bytes, divided among the blocks in proportion to the bytes of their parameters. What one
            block keeps is alive while the others run, and each block's peak counts what it keeps,
            so that all blocks together stay within the bytes given.
        same_plan (bool | None): all ranks run rank 0's plans; by default where torch.distributed is
            set up.

    Returns:
        The fitted blocks, in the order given.

    Raises:
        UsageError: an argument is wrong; a block is not a submodule of `model`, or lies inside
            another one.
    """
    check_module(model)
    chosen = _chosen(blocks)
    asked = step_options("memfit.fit_blocks", options, without=("plan",))
    places = _places(model, chosen)
    same_plan = asked.run.same_plan
    given: StepKeywords = {
        **options,
        "same_plan": distributed_ready() if same_plan is None else same_plan,
    }
    assert asked.planning.budget is not None, "step_options asks for it"
    budgets = block_budgets(asked.planning.budget, chosen)
    fitted = []
    for block, share in zip(chosen, budgets, strict=True):
        own: StepKeywords = {**given, "budget": share}
        fitted.append(fit(block, **own))
    for found, block in zip(places, fitted, strict=True):
        for parent, name in found:
            parent._modules[name] = block
    return fitted


def _chosen(blocks: Any) -> list[nn.Module]:
    remedy = "give parts of the model in a list, such as list(model.layers)"
    several = isinstance(blocks, Iterable) and not isinstance(blocks, (str, torch.Tensor))
    chosen = list(blocks) if several else []
    if not chosen:
        raise UsageError(f"blocks is {short(blocks)}, which names no block; {remedy}")
    wrong = [block for block in chosen if not isinstance(block, nn.Module)]
    if wrong:
        raise UsageError(f"a block is {short(wrong[0])}, not a torch.nn.Module; {remedy}")
    return chosen


def block_budgets(budget: Budget, blocks: Sequence[nn.Module]) -> list[Budget]:
    """The budget of each block; bytes are divided by the bytes of the blocks' parameters.

    Raises:
        InvalidBudgetError: `"auto"`, which says nothing of a single block.
    """
    if budget.auto:
        raise InvalidBudgetError(
            'budget "auto" is for a whole step; give blocks bytes or a share such as "60%"'
        )
    if budget.absolute_bytes is None:
        return [budget] * len(blocks)
    sizes = [sum(p.numel() * p.element_size() for p in b.parameters()) for b in blocks]
    total = sum(sizes)
    if total == 0:
        return [Budget(absolute_bytes=budget.absolute_bytes // len(blocks)) for _ in blocks]
    return [Budget(absolute_bytes=budget.absolute_bytes * size // total) for size in sizes]


def _places(model: nn.Module, blocks: Sequence[nn.Module]) -> list[list[tuple[nn.Module, str]]]:
    """For each block, the modules that hold it, and under which name."""
    holders: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                holders.setdefault(child, []).append((parent, name))
    known = set(blocks)
    for i, block in enumerate(blocks):
        if block not in holders:
            raise UsageError(
                f"block {i}, a {type(block).__name__}, is no submodule of the "
                f"{type(model).__name__}; give parts of the model, such as list(model.layers)"
            )
        inner = known.intersection(list(block.modules())[1:])
        if inner:
            raise UsageError(
                f"block {i}, a {type(block).__name__}, holds another of the blocks, a "
                f"{type(next(iter(inner))).__name__}; give only one of the two"
            )
    if len(known) != len(blocks):
        raise UsageError(f"{len(blocks) - len(known)} blocks are given twice; give each once")
    return [holders[block] for block in blocks]
