"""Private or experimental names of symbolic numbers (see `compat`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx.experimental import _config
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from memfit.errors import CaptureError
from memfit.pytorch.compat.remedies import WITH_BREAKS
from memfit.pytorch.compat.versions import config_values

__all__ = [
    "SYMBOLIC",
    "DependsOnData",
    "constant_value",
    "numbers_inside_ops",
    "size_hint",
    "sized_by_data",
    "sizes_depend_on_data",
    "stand_in",
]

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
"""Types of numbers that tracing knows by an expression."""


def constant_value(number: Any) -> bool | int | float | None:
    """The value that a symbolic number has in every step, None where it has several.

    What a step asserts of a number read from a tensor (`torch._check`) may leave it one value.
    """
    node = number.node
    if isinstance(number, torch.SymBool):
        return node.maybe_as_bool()
    if isinstance(number, torch.SymInt):
        return node.maybe_as_int()
    return node.maybe_as_float()


class DependsOnData(CaptureError):
    """A size that depends on data was met."""


def sizes_depend_on_data(op: Any, args: Sequence[Any]) -> bool:
    """Whether the sizes of what an op makes depend on the content of what it is given."""
    if torch.Tag.dynamic_output_shape in op.tags:
        return True
    if op is not torch.ops.aten.index.Tensor:
        return False
    masks = (torch.bool, torch.uint8)
    return any(isinstance(x, torch.Tensor) and x.dtype in masks for x in args[1])


@contextmanager
def numbers_inside_ops() -> Iterator[None]:
    """Let Dynamo take ops that read a number out of a tensor that they are given for it.

    `x.new_full(size, t)` does, with a tensor of one element. Dynamo would refuse that number for
    not being among the op's results; what traces the op finds it.
    """
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Pending unbacked symbols")

    logger.addFilter(is_other)
    try:
        with config_values(_config, soft_pending_unbacked_not_found_error=True):
            yield
    finally:
        logger.removeFilter(is_other)


def size_hint(value: Any) -> Any:
    """A number as it is, a symbolic number as its hint; asking for the hint adds no guard.

    A number that depends on data has no hint: what it is at most stands for it.

    Raises:
        DependsOnData: it has no bound either.
    """
    if not isinstance(value, SYMBOLIC):
        return value
    hint = None if free_unbacked_symbols(value) else value.node.hint
    if hint is None:
        hint = constant_value(value)
    if hint is None:
        hint = _at_most(value)
    if hint is None:
        raise DependsOnData(
            f"size {value} depends on the data and has no known bound; say what it is at most "
            "where the model computes it, n = memfit.bound_size(n, most), or make the model's "
            "shapes independent of its data, by torch.where or a product instead of x[mask], "
            f"nonzero or unique, {WITH_BREAKS}"
        )
    return hint


def sized_by_data(value: Any) -> bool:
    """Whether a value is a tensor with a size that depends on data."""
    if not isinstance(value, torch.Tensor):
        return False
    return any(isinstance(n, SYMBOLIC) and free_unbacked_symbols(n) for n in value.shape)


def _at_most(value: Any) -> int | None:
    """The largest value of a whole number that depends on data; None where that is not known."""
    if not isinstance(value, torch.SymInt):
        return None
    upper = value.node.shape_env.bound_sympy(value.node.expr).upper
    return int(upper) if upper.is_number and upper < _ENDLESS else None


_ENDLESS = 2**48
"""Sizes from which on a bound is none."""


def stand_in(value: Any, unknown: int = 1) -> Any:
    """Like `size_hint`, but a number that depends on data becomes `unknown`, in its own type.

    For what is no size: where the tensors of an op all have known sizes, what it costs does not
    depend on other numbers.
    """
    if not isinstance(value, SYMBOLIC):
        return value
    try:
        return size_hint(value)
    except DependsOnData:
        kind = {torch.SymBool: bool, torch.SymInt: int, torch.SymFloat: float}[type(value)]
        return kind(unknown)
