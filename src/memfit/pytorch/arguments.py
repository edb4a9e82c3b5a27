"""What callers hand in, checked: each error names the argument, its value and what to write."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from memfit.errors import UsageError
from memfit.graph.plan import Plan

__all__ = [
    "Fitted",
    "check_callable",
    "check_choice",
    "check_count",
    "check_flag",
    "check_initialised",
    "check_inputs",
    "check_module",
    "check_optimizer",
    "check_time_limit",
    "prepared_plan",
    "short",
]


class Fitted:
    """Marks a module whose steps are planned already."""


def short(value: Any, most: int = 60) -> str:
    """A value as text of one line, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[:most]}…"


def check_module(value: Any) -> None:
    """Refuse what is no module."""
    if not isinstance(value, nn.Module):
        raise UsageError(
            f"model is a {type(value).__name__}, not a torch.nn.Module; give the module itself"
        )


def check_count(name: str, value: Any) -> None:
    """Refuse what is no whole number of 1 or more."""
    if type(value) is not int or value < 1:
        raise UsageError(f"{name} is {short(value)}; give a whole number, 1 or more")


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Refuse what is none of the names that are known."""
    choices = tuple(known)
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"unknown {name} {short(value)}; known {name}s: {', '.join(choices)}")


def check_flag(name: str, value: Any, *, optional: bool = False) -> None:
    """Refuse what is neither True nor False, nor None where it may be."""
    if not isinstance(value, bool) and not (optional and value is None):
        remedy = "True, False or None" if optional else "True or False"
        raise UsageError(f"{name} is {short(value)}; give {remedy}")


def check_callable(name: str, value: Any, example: str) -> None:
    """Refuse what is neither None nor can be called."""
    if value is not None and not callable(value):
        raise UsageError(f"{name} is {short(value)}, which cannot be called; {example}")


def check_optimizer(value: Any) -> None:
    """Refuse what is neither None nor an optimizer."""
    if value is not None and not isinstance(value, torch.optim.Optimizer):
        raise UsageError(
            f"optimizer is {short(value)}, no torch.optim.Optimizer; give the optimizer itself, "
            "such as torch.optim.AdamW(model.parameters())"
        )


def check_time_limit(value: Any) -> None:
    """Refuse what is neither None nor a number of seconds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and value >= 0):
        raise UsageError(f"time_limit_s is {short(value)}; give seconds, 0 or more, or None")


def prepared_plan(value: Any) -> Plan | None:
    """A plan, or the one in the file that is named.

    Raises:
        UsageError: it is neither a plan nor a path.
        PlanMismatchError: the file cannot be read or is no plan.
    """
    if value is None or isinstance(value, Plan):
        return value
    if isinstance(value, (str, os.PathLike)):
        return Plan.load(Path(value))
    raise UsageError(
        f"plan is {short(value)}; give a plan (memfit.plan, Plan.load) or the path of its file"
    )


def check_inputs(example_inputs: Any, example_kwargs: Any) -> None:
    """Refuse what are not the arguments of one call."""
    if isinstance(example_inputs, (torch.Tensor, str, bytes, Mapping)) or not isinstance(
        example_inputs, Sequence
    ):
        raise UsageError(
            f"example_inputs is a {type(example_inputs).__name__}; give the positional arguments "
            "of one call as a tuple, such as (x,) or (x, target), and others as example_kwargs"
        )
    given = {} if example_kwargs is None else example_kwargs
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UsageError(
            f"example_kwargs is {short(example_kwargs)}; give a dictionary of keyword arguments, "
            "by name"
        )


def check_initialised(model: nn.Module) -> None:
    """Refuse a model whose lazy layers do not know their shapes yet."""
    for module_name, module in model.named_modules():
        held = {**module._parameters, **module._buffers}
        for name, tensor in held.items():
            if is_lazy(tensor):
                place = f"{module_name}.{name}" if module_name else name
                raise UsageError(
                    f"{place} of the {type(model).__name__} has no shape yet, as its layer is "
                    "lazy; call the plain model once on an input before it is fitted"
                )
