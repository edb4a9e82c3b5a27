"""Rules for what CPU kernels allocate beside their inputs and outputs (PyTorch 2.13).

A few habits explain most of it: operands that do not lie in memory as a kernel wants them are
copied, those of another type are converted, and sums are held for each channel. `kernel_workspace`
says which op does which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch

from memfit.pytorch.cost.op_calls import OpCall, TensorSpec
from memfit.pytorch.layouts import strides as S

__all__ = [
    "Rule",
    "batch_norm",
    "batch_norm_backward",
    "both_in_format",
    "by_integers",
    "converted",
    "copies",
    "copy_rule",
    "cubic",
    "cumulated",
    "deviation",
    "extreme",
    "filled",
    "gelu_backward",
    "group_norm",
    "group_norm_backward",
    "in_format",
    "index_added",
    "indexed",
    "is_matrix",
    "layer_norm_backward",
    "logits_loss",
    "logsumexp",
    "loss",
    "mean",
    "nothing",
    "of_one_type",
    "overwritten",
    "pointwise",
    "product",
    "reduced",
    "repeated",
    "safe_softmax",
    "sum_rule",
    "triangle",
    "upsampled",
    "vector_product",
]

Specs = Sequence[TensorSpec]
Rule = Callable[[OpCall, Specs], int | None]
"""Bytes from a call and the tensors that it makes; None where the rule cannot tell."""
_WIDEST = 8  # bytes of a Python number as a tensor
_PARALLEL = 32_768  # elements from which a sum over everything is divided among threads
_BLOCK_ELEMENTS = 60 * 60  # of a block in which a matrix is transposed
_FEW_STEPS = 400  # multiplications of a product for which no library is asked
_REPEATED = 32  # bytes of a dimension that is repeated
_TAPS = 4  # of a cubic filter


def nothing(call: OpCall, made: Specs) -> int:
    return 0


def _bytes(specs: Iterable[TensorSpec], itemsize: int | None = None) -> int:
    return sum(s.elements * (itemsize or s.dtype.itemsize) for s in specs)


def _operand(spec: TensorSpec) -> S.Operand:
    return spec.shape, spec.stride


def _is_contiguous(spec: TensorSpec) -> bool:
    return S.is_contiguous(_operand(spec))


def _at(call: OpCall, place: int) -> TensorSpec | None:
    """The tensor at a place, if there is one."""
    value = call.args[place] if place < len(call.args) else None
    return value if isinstance(value, TensorSpec) else None


def _present(call: OpCall, places: Sequence[int]) -> list[TensorSpec]:
    return [spec for spec in (_at(call, place) for place in places) if spec is not None]


def _value(call: OpCall, place: int, default: Any = None) -> Any:
    return call.args[place] if place < len(call.args) else default


def _is_transposed(spec: TensorSpec) -> bool:
    """Whether a copy into rows goes block by block, through a buffer."""
    if len(spec.shape) != 2 or _is_contiguous(spec):
        return False
    return spec.stride == (1, spec.shape[0]) and spec.elements >= _BLOCK_ELEMENTS


def _copied_bytes(specs: Iterable[TensorSpec]) -> int | None:
    """Of the copies of those operands that are not contiguous."""
    copied = [s for s in specs if not _is_contiguous(s)]
    return None if any(map(_is_transposed, copied)) else _bytes(copied)


def copies(*places: int) -> Rule:
    """Operands that are not contiguous are copied."""
    return lambda call, _: _copied_bytes(_present(call, places))


def copy_rule(call: OpCall, made: Specs) -> int | None:
    """A matrix is transposed block by block; all else is copied in place."""
    if not made or not isinstance(call.args[0], TensorSpec):
        return None
    x, result = call.args[0], made[0]
    if x.dtype is result.dtype and _is_transposed(x) and _is_contiguous(result):
        return _BLOCK_ELEMENTS * x.dtype.itemsize
    return 0


def in_format(of: int, *places: int) -> Rule:
    """Operands that do not have the memory format that one of them suggests are copied."""

    def rule(call: OpCall, made: Specs) -> int | None:
        x = _at(call, of)
        if x is None:
            return None
        if not S.suggests_channels_last(_operand(x)):
            return _copied_bytes(_present(call, places))
        return _bytes(s for s in _present(call, places) if not S.is_channels_last(_operand(s)))

    return rule


def _same_layout(rule: Rule, *places: int) -> Rule:
    """As said by a rule where operands agree in strides and leave no gaps; else not known."""

    def checked(call: OpCall, made: Specs) -> int | None:
        found = _present(call, places)
        alike = len({s.stride for s in found}) <= 1 and all(S.is_dense(_operand(s)) for s in found)
        return rule(call, made) if alike else None

    return checked


def both_in_format(of: int, *places: int) -> Rule:
    """As `in_format`; not known where channels last meet another format."""

    def rule(call: OpCall, made: Specs) -> int | None:
        found = [_operand(s) for s in _present(call, (of, *places))]
        last = any(map(S.suggests_channels_last, found))
        if last and not all(map(S.is_channels_last, found)):
            return None
        return in_format(of, *places)(call, made)

    return rule


# Elementwise ops.


def _kind(dtype: torch.dtype) -> int:
    return 2 if dtype.is_floating_point else 0 if dtype is torch.bool else 1


def _promoted(specs: Specs) -> torch.dtype | None:
    """The type that tensors are computed in together; 0-dimensional ones count by kind only."""
    found: torch.dtype | None = None
    for group in (
        [s.dtype for s in specs if s.shape],
        [s.dtype for s in specs if not s.shape],
    ):
        if not group:
            continue
        dtype = reduce(torch.promote_types, group)
        if found is None or _kind(dtype) > _kind(found):
            found = dtype if found is None else torch.promote_types(found, dtype)
    return found


def of_one_type(call: OpCall, made: Specs) -> int | None:
    """Nothing, where all operands and the result have one type."""
    types = {s.dtype for s in (*call.tensors, *made)}
    return 0 if len(types) == 1 else None


def pointwise(call: OpCall, made: Specs) -> int | None:
    """An elementwise op of which no more is known: nothing, unless numbers are made tensors."""
    op = call.target
    assert isinstance(op, torch._ops.OpOverload)
    numbers = any(
        not isinstance(value, TensorSpec) and isinstance(argument.type, torch.TensorType)
        for argument, value in zip(op._schema.arguments, call.args, strict=False)
    )
    if numbers or op._overloadname == "Scalar" or op._schema.is_mutable:
        return None
    return of_one_type(call, made)


def converted(first: int = 0) -> Rule:
    """Operands of another type than the common one are converted, Python numbers made tensors.

    `first` is the place of the first operand that has a say in the type.
    """

    def rule(call: OpCall, made: Specs) -> int | None:
        operands = [a for a in call.args[first : first + 2] if a is not None]
        tensors = [a for a in operands if isinstance(a, TensorSpec)]
        common = _promoted(tensors)
        if common is None or not made:
            return None
        numbers = [a for a in operands if isinstance(a, (bool, int, float))]
        if any(isinstance(n, float) for n in numbers) and not common.is_floating_point:
            common = torch.get_default_dtype()
        result = made[0].dtype
        if result.is_floating_point and not common.is_floating_point:
            common = result
        size = _bytes((s for s in tensors if s.dtype is not common), common.itemsize)
        if result not in (common, torch.bool):
            return None
        for number in numbers:
            if isinstance(number, bool):
                return None
            own = torch.float64 if isinstance(number, float) else torch.int64
            size += _WIDEST + (common.itemsize if common is not own else 0)
        return size

    return rule


def gelu_backward(call: OpCall, made: Specs) -> int | None:
    """oneDNN's kernel copies where layouts differ, PyTorch's own (of tanh) does not."""
    if call.kwargs.get("approximate", "none") == "tanh":
        return of_one_type(call, made)
    return _same_layout(of_one_type, 0, 1)(call, made)


# Reductions.


def sum_rule(call: OpCall, made: Specs) -> int | None:
    """Booleans are converted; sums of 16-bit floats are known of contiguous tensors."""
    x = call.tensors[0]
    result = made[0] if made else None
    if result is None or (result.elements == 1 and x.elements >= _PARALLEL and _threads() > 1):
        return None
    if x.dtype is not result.dtype:
        return x.elements * result.dtype.itemsize if not x.dtype.is_floating_point else None
    if x.dtype.itemsize > 2:
        return 0
    dims = _value(call, 1, ())
    return 0 if _is_contiguous(x) and len(dims or ()) <= 1 else None


def mean(call: OpCall, made: Specs) -> int | None:
    """A sum, which is divided by a number; 16-bit floats are summed in 32 bits."""
    x = call.tensors[0]
    if not made or x.dtype is not made[0].dtype:
        return None
    if made[0].elements == 1 and x.elements >= _PARALLEL and _threads() > 1:
        return None
    if x.dtype.itemsize == 2:
        return torch.float32.itemsize * (x.elements + made[0].elements)
    return _WIDEST + x.dtype.itemsize


def reduced(call: OpCall, made: Specs) -> int | None:
    """Nothing in one thread, or where there is more than one result."""
    x = call.tensors[0]
    if not made or (made[0].elements == 1 and x.elements >= _PARALLEL and _threads() > 1):
        return None
    return 0


def deviation(call: OpCall, made: Specs) -> int | None:
    """As `reduced`; of all elements together the kernel is another."""
    return reduced(call, made) if made and made[0].elements > 1 else None


def extreme(call: OpCall, made: Specs) -> int | None:
    """`max` and `min`: of two tensors, along a dimension, of all elements."""
    form = call.target._overloadname  # type: ignore[attr-defined]
    if form == "dim":
        return 0
    if form == "other":
        return of_one_type(call, made)
    return None if reduced(call, made) is None else _copied_bytes(call.tensors)


def logsumexp(call: OpCall, made: Specs) -> int | None:
    """The exponentials, and the largest element of each sum."""
    if not made or made[0].dtype is not call.tensors[0].dtype or made[0].dtype.itemsize < 4:
        return None
    return _bytes((call.tensors[0], made[0])) if call.tensors[0].shape != made[0].shape else None


def _threads() -> int:
    return torch.get_num_threads()


def cumulated(call: OpCall, made: Specs) -> int | None:
    """A tensor of another type is converted."""
    if not made:
        return None
    x, itemsize = call.tensors[0], made[0].dtype.itemsize
    return 0 if x.dtype is made[0].dtype else x.elements * itemsize


# Losses.


def loss(call: OpCall, made: Specs) -> int | None:
    """Means are taken of the unreduced loss, within its own storage or beside it."""
    x, target = call.tensors[:2]
    if x.dtype is not target.dtype or x.shape != target.shape or x.dtype.itemsize < 4:
        return None
    reduction = _value(call, 2, 1)
    if reduction == 0:
        return 0
    size = x.elements * x.dtype.itemsize
    if reduction == 1:
        return size + _WIDEST + x.dtype.itemsize
    return size if x.elements < _PARALLEL or _threads() == 1 else None


def safe_softmax(call: OpCall, made: Specs) -> int | None:
    """A mask of what is -inf, which rows are all of it, and a zero."""
    x, dim = call.args[:2]
    if not _is_contiguous(x) or x.dtype.itemsize < 4 or dim not in (-1, len(x.shape) - 1):
        return None
    return x.elements + x.elements // max(1, x.shape[-1]) + x.dtype.itemsize


def logits_loss(call: OpCall, made: Specs) -> int | None:
    """`binary_cross_entropy_with_logits` of contiguous tensors: two of them, and a mean."""
    x, target = call.tensors[:2]
    plain = len(call.tensors) == 2 and _value(call, 4, 1) == 1 and _is_contiguous(x)
    if not plain or not _is_contiguous(target) or x.dtype is not target.dtype:
        return None
    if x.dtype.itemsize < 4 or x.shape != target.shape:
        return None
    return 2 * _bytes([x]) + _WIDEST + x.dtype.itemsize


# Matrix products.


def is_matrix(spec: TensorSpec) -> bool:
    """Whether BLAS takes a matrix, or each of a stack, as it lies in memory."""
    rows, columns = spec.shape[-2:]
    down, across = spec.stride[-2:]
    return (across == 1 and down >= max(1, columns)) or (down == 1 and across >= max(1, rows))


def product(call: OpCall, made: Specs) -> int | None:
    """Factors that BLAS does not take are copied, of stacks one matrix at a time."""
    factors = call.tensors[-2:]
    types = {spec.dtype for spec in call.tensors}
    if types == {torch.float32}:
        exact = torch.get_float32_matmul_precision() == "highest"
    else:
        exact = types == {torch.float64}
    if not exact:
        return None
    (*stack, rows, inner), columns = factors[0].shape, factors[1].shape[-1]
    copied = sum(_bytes([s]) // max(1, math.prod(stack)) for s in factors if not is_matrix(s))
    return None if copied and rows * inner * columns < _FEW_STEPS else copied


def vector_product(call: OpCall, made: Specs) -> int | None:
    floats = {spec.dtype for spec in call.tensors} in ({torch.float32}, {torch.float64})
    return 0 if floats and all(_is_contiguous(spec) for spec in call.tensors) else None


# Normalisations.


def layer_norm_backward(call: OpCall, made: Specs) -> int | None:
    """Copies, and sums for each column and thread where weight or bias have gradients."""
    copied = _copied_bytes(_present(call, (0, 1)))
    x = call.args[1]
    mask = call.args[7]
    if copied is None or not (mask[1] or mask[2]):
        return copied
    columns = math.prod(call.args[2])
    return copied + 2 * _threads() * columns * x.dtype.itemsize


def group_norm(call: OpCall, made: Specs) -> int | None:
    x = call.args[0]
    if _is_contiguous(x):
        return 0
    if S.is_channels_last(_operand(x)):
        return 2 * call.args[3] * call.args[4] * max(4, x.dtype.itemsize)
    return None


def group_norm_backward(call: OpCall, made: Specs) -> int | None:
    gradient, x = map(_operand, call.args[:2])
    alike = any(f(gradient) and f(x) for f in (S.is_contiguous, S.is_channels_last))
    if not alike:
        return None
    return 2 * call.args[5] * call.args[6] * max(4, call.args[1].dtype.itemsize)


def batch_norm(training: int) -> Rule:
    """A factor and an offset for each channel; channels last, sums of each thread, too.

    `training` is the place of the flag.
    """

    def rule(call: OpCall, made: Specs) -> int | None:
        x = call.args[0]
        size = x.shape[1] * max(4, x.dtype.itemsize)
        if len(x.shape) > 2 and _is_contiguous(x):
            return 2 * size
        if any(s.dtype.itemsize == 2 for s in call.tensors[1:]):
            return None
        if _is_contiguous(x) or S.is_channels_last(_operand(x)):
            return (2 + _threads() * call.args[training]) * size
        return None

    return rule


def batch_norm_backward(call: OpCall, made: Specs) -> int | None:
    """One activation where gradient and input agree in a format."""
    gradient, x = call.args[:2]
    if not call.args[9][0]:
        return None
    for form in (S.is_contiguous, S.is_channels_last):
        if form(_operand(gradient)) and form(_operand(x)):
            return x.elements * x.dtype.itemsize
    return None


# Indexing.


def overwritten(call: OpCall, made: Specs) -> int | None:
    """Nothing beside the copy that is written to and returned."""
    return None if _is_transposed(call.tensors[0]) else 0


def filled(call: OpCall, made: Specs) -> int | None:
    """Nothing, where no matrix is transposed."""
    return None if any(map(_is_transposed, call.tensors)) else 0


def indexed(call: OpCall, made: Specs) -> int | None:
    """As `overwritten`; kernels for 16-bit floats differ."""
    return overwritten(call, made) if call.tensors[0].dtype.itemsize != 2 else None


def by_integers(call: OpCall, made: Specs) -> int | None:
    """Nothing where indices are int64; masks are made indices, others are converted."""
    indices = [spec for spec in call.args[1] if spec is not None]
    exact = all(spec.dtype is torch.int64 for spec in indices)
    return overwritten(call, made) if exact else None


def index_added(call: OpCall, made: Specs) -> int | None:
    x = call.tensors[0]
    return 0 if x.dtype.itemsize != 2 and len(x.shape) > 1 and _is_contiguous(x) else None


def triangle(call: OpCall, made: Specs) -> int | None:
    return 0 if _is_contiguous(call.tensors[0]) else None


def repeated(call: OpCall, made: Specs) -> int | None:
    return _REPEATED * len(call.args[1])


# Images.


def cubic(call: OpCall, made: Specs) -> int | None:
    """Indices and weights for each row and column of the result."""
    x = call.args[0]
    if not made or len(x.shape) != 4:
        return None
    return sum(made[0].shape[2:]) * _TAPS * (torch.int64.itemsize + x.dtype.itemsize)


def upsampled(call: OpCall, made: Specs) -> int | None:
    """Images that are not channels last are converted, and the result back."""
    x = call.args[0]
    if S.suggests_channels_last(_operand(x)):
        return 0 if S.is_channels_last(_operand(x)) else None
    return None if not made else _bytes((x, made[0]))
