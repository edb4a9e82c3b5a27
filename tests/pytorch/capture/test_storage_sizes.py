"""Sizes of what ops return are those that the allocator hands out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from memfit.pytorch.capture.storage_sizes import allocated_bytes, enlarge_fake_storages

aten = torch.ops.aten
X = torch.rand(4, 8, 6, 6)


def _made(dtype: torch.dtype, weights: torch.dtype) -> dict[str, tuple[Callable, tuple]]:
    x, w, last = X.to(dtype), torch.ones(8, dtype=weights), torch.ones(6, dtype=weights)
    stats = torch.zeros(8, dtype=weights), torch.ones(8, dtype=weights)
    return {
        "batch norm": (
            aten._native_batch_norm_legit_functional.default,
            (x, w, w, *stats, True, 0.1, 1e-5),
        ),
        "no statistics": (
            aten._native_batch_norm_legit.no_stats,
            (x, w, w, True, 0.1, 1e-5),
        ),
        "layer norm": (aten.native_layer_norm.default, (x, [6], last, last, 1e-5)),
        "plain layer norm": (aten.native_layer_norm.default, (x, [6], None, None, 1e-5)),
        "group norm": (aten.native_group_norm.default, (x, w, w, 4, 8, 36, 2, 1e-5)),
        "mse": (aten.mse_loss.default, (x, x, 1)),
        "smooth l1": (aten.smooth_l1_loss.default, (x, x[:1], 2)),
        "soft margin": (aten.soft_margin_loss.default, (x, x, 1)),
        "binary cross entropy": (aten.binary_cross_entropy.default, (x, x, None, 1)),
        "huber": (aten.huber_loss.default, (x, x, 1)),
    }


@pytest.mark.parametrize("name", _made(torch.float32, torch.float32))
@pytest.mark.parametrize(
    ("dtype", "weights"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_sizes_are_those_of_real_storages(
    name: str, dtype: torch.dtype, weights: torch.dtype
) -> None:
    target, args = _made(dtype, weights)[name]
    real = target(*args)
    mode = FakeTensorMode()
    graph = fx.Graph()

    def placed(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        node = graph.placeholder(f"x{len(graph.nodes)}")
        node.meta["val"] = mode.from_tensor(value)
        return node

    nodes = tuple(placed(a) for a in args)
    node = graph.call_function(target, nodes)
    with mode:
        fake = target(*(n.meta["val"] if isinstance(n, fx.Node) else n for n in nodes))
    many = isinstance(fake, (tuple, list))
    pairs = zip(fake, real, strict=True) if many else [(fake, real)]
    for position, (assumed, true) in enumerate(pairs):
        size = true.untyped_storage().nbytes()
        if position < 3:
            assert allocated_bytes(node, position, assumed) == size
        else:  # fake running statistics are float32 whatever the real ones are: a little too many
            assert allocated_bytes(node, position, assumed) >= size


BASE = torch.rand(10, 6, 8)
PARTS = {
    "whole": lambda x: x,
    "rows": lambda x: x[2:4],
    "columns": lambda x: x[:, 1:4].transpose(0, 1),
    "expanded": lambda x: x[:1, :3].expand(4, 3, 8),
    "windows": lambda x: x.view(-1).unfold(0, 8, 4)[:6, None],
    "nothing": lambda x: x[:0],
    "of a fold": lambda x: x[2:, :, 1:],
}


def _clones(part: torch.Tensor) -> list[tuple[Callable, tuple]]:
    row = part[:1]
    return [
        (aten.copy.default, (part, torch.ones(part.shape, dtype=torch.float64))),
        (aten.slice_scatter.default, (part, torch.ones(row.shape), 0, 0, 1)),
        (aten.select_scatter.default, (part, torch.ones(part.shape[:-1]), -1, 1)),
        (aten.diagonal_scatter.default, (part, torch.ones(part.diagonal().shape))),
        (
            aten.as_strided_scatter.default,
            (part, torch.ones(2), [2], [1], part.storage_offset()),
        ),
    ]


@pytest.mark.parametrize("name", PARTS)
def test_clones_of_parts_take_what_the_whole_takes(name: str) -> None:
    """Of parts, and of parts of what is itself larger than it looks."""
    mode, graph = FakeTensorMode(), fx.Graph()
    base = graph.placeholder("base")
    real = {base: BASE}
    base.meta["val"] = mode.from_tensor(BASE)

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor)

    def call(target: Callable, *args: object) -> fx.Node:
        node = graph.call_function(target, args)
        real[node] = target(*fx.node.map_arg(args, real.__getitem__))
        given = fx.node.map_arg(args, lambda n: n.meta["val"])
        given = tree_map_only(torch.Tensor, fake, given)
        with mode:
            node.meta["val"] = target(*given)
        return node

    whole = base
    if name == "of a fold":
        whole = call(aten.col2im.default, base, [6, 3], [3, 2], [1, 1], [0, 0], [1, 1])
    part = call(PARTS[name], whole)
    for target, (_, *args) in _clones(real[part]):
        if real[part].numel() or target is not aten.as_strided_scatter.default:
            call(target, part, *args)
    enlarge_fake_storages(fx.GraphModule({}, graph))
    for node, tensor in real.items():
        assert node.meta["val"].untyped_storage().nbytes() == tensor.untyped_storage().nbytes()


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sizes_of_bags_are_at_most_an_entry_above_the_real_ones(
    mode: int, ends: bool, dtype: torch.dtype
) -> None:
    weight, indices = torch.rand(7, 8, dtype=dtype), torch.arange(12) % 7
    offsets = torch.tensor([0, 4, 9, 12][: 4 if ends else 3])
    args = (weight, indices, offsets, False, mode, False, None, ends, -1)
    target = aten._embedding_bag.default
    fake_mode, graph = FakeTensorMode(), fx.Graph()
    node = graph.call_function(target, tuple(graph.placeholder(f"a{i}") for i in range(3)))
    with fake_mode:
        fakes = target(*tree_map_only(torch.Tensor, fake_mode.from_tensor, args))
    node.meta["val"] = fakes
    for position, (fake, real) in enumerate(zip(fakes, target(*args), strict=True)):
        really = real.untyped_storage().nbytes()
        if fake.shape == real.shape:
            assert 0 <= allocated_bytes(node, position, fake) - really <= 8
        assert allocated_bytes(node, position, fake) >= really
