"""Strides that PyTorch's kernels give to what they make, told from those of what they read.

Strides count elements, as in PyTorch. All functions are pure; an *operand* is a pair (shape,
strides).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = [
    "Operand",
    "contiguous",
    "elementwise",
    "expanded",
    "is_channels_last",
    "is_contiguous",
    "is_dense",
    "like",
    "suggested",
    "suggests_channels_last",
    "viewed",
]

Ints = Sequence[int]
Operand = tuple[Ints, Ints]


def _filled(shape: Ints, order: Ints) -> tuple[int, ...]:
    """Strides without gaps, dimension order[0] the innermost."""
    strides, step = [0] * len(shape), 1
    for dim in order:
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


def contiguous(shape: Ints) -> tuple[int, ...]:
    """Strides of a row-major tensor."""
    return _filled(shape, range(len(shape))[::-1])


def _inner_to_outer(dims: int) -> list[int]:
    return [1, *range(dims - 1, 1, -1), 0]


def channels_last(shape: Ints) -> tuple[int, ...]:
    """Strides of a tensor of 4 or 5 dimensions in the memory format channels last."""
    return _filled(shape, _inner_to_outer(len(shape)))


def _agree(shape: Ints, strides: Ints, wanted: Ints) -> bool:
    pairs = zip(shape, strides, wanted, strict=True)
    return math.prod(shape) == 0 or all(n == 1 or a == b for n, a, b in pairs)


def is_contiguous(operand: Operand) -> bool:
    """Whether a tensor is row-major; dimensions of one element may have any stride."""
    shape, strides = operand
    return _agree(shape, strides, contiguous(shape))


def is_channels_last(operand: Operand) -> bool:
    """Whether an image or volume is channels last; dimensions of one element do not count."""
    shape, strides = operand
    return len(shape) in (4, 5) and _agree(shape, strides, channels_last(shape))


def is_dense(operand: Operand) -> bool:
    """Whether the elements fill one stretch of memory, each once, in some order of dimensions."""
    step = 1
    for stride, size in sorted(
        (stride, size) for size, stride in zip(*operand, strict=True) if size != 1
    ):
        if stride != step:
            return False
        step *= size
    return True


def suggests_channels_last(operand: Operand) -> bool:
    """PyTorch's `suggest_memory_format`: whether strides grow as those of channels last do.

    Here dimensions of one element count: with a batch of one, equal tensors may differ in it.
    """
    shape, strides = operand
    if len(shape) not in (4, 5) or strides[1] == 0:
        return False
    least = 0
    for dim in _inner_to_outer(len(shape)):
        if shape[dim] == 0 or strides[dim] < least:
            return False
        if dim == 0 and least == strides[1]:
            return False
        least = strides[dim] * max(shape[dim], 1)
    return True


def settled(operand: Operand) -> tuple[int, ...]:
    """The strides, with those of dimensions of one element as a new tensor has them.

    Only a tensor in one of PyTorch's memory formats is changed, and where its elements lie is not.
    """
    shape, strides = operand
    if is_contiguous(operand):
        return contiguous(shape)
    return channels_last(shape) if is_channels_last(operand) else tuple(strides)


def suggested(operand: Operand, shape: Ints) -> tuple[int, ...]:
    """Strides for a new tensor of a shape, in the memory format that an operand suggests."""
    return channels_last(shape) if suggests_channels_last(operand) else contiguous(shape)


def like(operand: Operand) -> tuple[int, ...]:
    """Strides of `empty_like` and `clone`."""
    return tuple(operand[1]) if is_dense(operand) else elementwise(operand)


def elementwise(*operands: Operand) -> tuple[int, ...]:
    """Strides of what an elementwise kernel makes of operands that are broadcast (TensorIterator).

    Where all agree in shape and format, the result has that format. Otherwise the order of its
    dimensions is that of the first operand which tells two dimensions apart.
    """
    dims = max(len(shape) for shape, _ in operands)
    shape = [1] * dims
    for own, _ in operands:
        for dim, size in enumerate(own, dims - len(own)):
            if shape[dim] == 1:
                shape[dim] = size
    if all(list(own) == shape for own, _ in operands):
        if all(is_contiguous(operand) for operand in operands):
            return contiguous(shape)
        if dims == 4 and all(is_channels_last(operand) for operand in operands):
            return channels_last(shape)
        first = tuple(operands[0][1])
        if all(is_dense(operand) and tuple(operand[1]) == first for operand in operands):
            return first
    rows = [_broadcast(operand, shape) for operand in operands]
    return _filled(shape, _sorted_dims(rows, shape))


def _broadcast(operand: Operand, shape: Ints) -> list[int]:
    """An operand's strides for a larger shape: 0 where it is repeated."""
    own, strides = operand
    missing = len(shape) - len(own)
    repeated = [n == 1 and shape[missing + i] != 1 for i, n in enumerate(own)]
    return [0] * missing + [
        0 if again else step for again, step in zip(repeated, strides, strict=True)
    ]


def _sorted_dims(rows: Sequence[Ints], shape: Ints) -> list[int]:
    """Dimensions from the innermost to the outermost.

    An insertion sort: not every pair of dimensions can be told apart, so the order in which they
    are compared is part of the result.
    """

    def sign(a: int, b: int) -> int:
        """Above 0 where dimension `b` belongs inside of `a`; 0 where nothing tells."""
        for row in rows:
            if row[a] == 0 or row[b] == 0:
                continue
            if row[a] != row[b]:
                return 1 if row[a] > row[b] else -1
            if shape[a] > shape[b]:
                return 1
        return 0

    order = list(range(len(shape)))[::-1]
    for start in range(1, len(order)):
        place = start
        for before in range(start - 1, -1, -1):
            found = sign(order[before], order[place])
            if found > 0:
                order[before], order[place] = order[place], order[before]
                place = before
            elif found < 0:
                break
    return order


def viewed(operand: Operand, shape: Ints) -> tuple[int, ...] | None:
    """Strides of a view of another shape; None where only a copy has that shape.

    Dimensions that lie behind one another in memory are a run, which the new shape divides anew.
    """
    own, strides = operand
    if math.prod(own) == 0:
        return tuple(strides) if list(own) == list(shape) else contiguous(shape)
    found: list[int] = []
    left = list(shape)
    run, step = 1, strides[-1] if strides else 1
    for dim in range(len(own))[::-1]:
        run *= own[dim]
        if dim > 0 and (own[dim - 1] == 1 or strides[dim - 1] == run * step):
            continue
        taken = 1
        while left and (taken < run or left[-1] == 1):
            found.insert(0, taken * step)
            taken *= left.pop()
        if taken != run:
            return None
        run, step = 1, strides[dim - 1]
    return None if any(size != 1 for size in left) else tuple([1] * len(left) + found)


def expanded(operand: Operand, shape: Ints) -> tuple[int, ...]:
    """Strides of `expand` to a shape."""
    own, strides = operand
    if not own:
        return (0,) * len(shape)
    found: list[int] = []
    for place in range(len(shape))[::-1]:
        dim = place - len(shape) + len(own)
        if dim >= 0:
            size, step = own[dim], strides[dim]
        else:
            size, step = 1, shape[place + 1] * found[0]
        found.insert(0, step if size == shape[place] else 0)
    return tuple(found)
