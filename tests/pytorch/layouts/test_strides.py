"""Strides by rule are those that PyTorch's own kernels give."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
import torch

from memfit.pytorch.layouts import strides as S

SHAPES = [(4, 6, 8), (3, 4, 2, 5), (1, 4, 2, 5), (3, 1, 2, 5), (3, 4, 1, 1), (2, 3), (1, 3), (5,)]
SHAPES += [(1, 3, 2, 1, 2), (2, 3, 4, 4), (1,), ()]


def operand(tensor: torch.Tensor) -> S.Operand:
    return tuple(tensor.shape), tensor.stride()


def laid_out(shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """A shape in several orders of its dimensions, with and without gaps, and expanded."""
    dims = len(shape)
    orders = list(itertools.permutations(range(dims)))
    if dims > 3:
        orders = [tuple(range(dims)), (0, *range(2, dims), 1), tuple(range(dims))[::-1]]
        orders += [(1, 0, *range(2, dims)), (*range(dims - 2), dims - 1, dims - 2)]
    for order, gap in itertools.product(orders, ((), (2,))):
        memory = torch.zeros([shape[dim] for dim in order] + list(gap))
        filled = memory[..., 0] if gap else memory
        yield filled.permute([order.index(dim) for dim in range(dims)])
    for dim, size in enumerate(shape):
        if size > 1:
            yield torch.zeros([1 if d == dim else n for d, n in enumerate(shape)]).expand(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_elementwise_kernels(shape: tuple[int, ...]) -> None:
    tensors = list(laid_out(shape))
    for a, b in itertools.product(tensors, tensors):
        assert S.elementwise(operand(a), operand(b)) == (a + b).stride()
    for a in tensors:
        assert S.elementwise(operand(a)) == a.neg().stride()
        assert S.elementwise(operand(a), ((), ())) == (a / 2.0).stride()
        assert S.like(operand(a)) == a.clone().stride()
        assert S.is_contiguous(operand(a)) == a.is_contiguous()


def test_elementwise_kernels_broadcast() -> None:
    pairs = itertools.product(laid_out((6, 1, 8)), laid_out((4, 1, 5, 8)))
    for a, b in pairs:
        assert S.elementwise(operand(a), operand(b)) == (a + b).stride()
        assert S.elementwise(operand(b), operand(a)) == (b + a).stride()


def drawn(source: random.Random) -> torch.Tensor:
    """A tensor without data, of random shape and strides."""
    shape = [source.choice([1, 1, 2, 3, 4, 6]) for _ in range(source.randint(0, 5))]
    order = list(range(len(shape)))
    if source.random() < 0.5:
        source.shuffle(order)
    memory = torch.empty([shape[d] + (source.random() < 0.1) for d in order], device="meta")
    tensor = memory.permute([order.index(d) for d in range(len(shape))])
    for dim, size in enumerate(shape):
        tensor = tensor.narrow(dim, 0, size)
    if 1 in shape and source.random() < 0.3:
        shape[shape.index(1)] = 3
        tensor = tensor.expand(shape)
    return tensor


def tried(view: Callable[[], torch.Tensor]) -> tuple[int, ...] | None:
    try:
        return view().stride()
    except RuntimeError:
        return None


def test_views() -> None:
    source = random.Random(0)
    refused = 0
    for _ in range(3000):
        tensor = drawn(source)
        shape, left = [], tensor.numel()
        while left > 1:
            shape.append(source.choice([n for n in range(2, left + 1) if left % n == 0]))
            left //= shape[-1]
        for _ in range(source.randint(0, 2)):
            shape.insert(source.randint(0, len(shape)), 1)
        wanted = tried(lambda: tensor.view(shape))  # noqa: B023
        refused += wanted is None
        assert S.viewed(operand(tensor), shape) == wanted
        larger = [source.choice([1, 2]) for _ in range(source.randint(0, 2))]
        larger += [source.choice([n, 3]) if n == 1 else n for n in tensor.shape]
        assert S.expanded(operand(tensor), larger) == tensor.expand(larger).stride()
    assert refused > 100


def test_memory_formats() -> None:
    image = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    volume = torch.zeros(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    for tensor in (image, volume):
        assert S.is_channels_last(operand(tensor))
        assert S.suggested(operand(tensor), tensor.shape) == tensor.stride()
        plain = tensor.contiguous()
        assert not S.is_channels_last(operand(plain))
        assert S.suggested(operand(plain), plain.shape) == plain.stride()
