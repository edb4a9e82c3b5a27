"""What `kernel_workspace` says of kernels is what they take; bounds are not below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from memfit.pytorch.cost.analytic import analytic_cost
from memfit.pytorch.cost.kernel_workspace import RULES
from memfit.pytorch.cost.op_calls import OpCall
from memfit.pytorch.cost.profile import profile_calls

aten = torch.ops.aten
Function = Callable[[torch.Tensor], torch.Tensor]
MATRIX, ROWS, IMAGE, LARGE = (24, 40), (3, 24, 40), (2, 16, 12, 10), (64, 1000)


def ones(*shape: int, like: torch.Tensor) -> torch.Tensor:
    return torch.ones(*shape, dtype=like.dtype, requires_grad=True)


def classes(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.long)


def indices(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x, dtype=torch.long)


def positions() -> torch.Tensor:
    return torch.tensor([0, 1, 1])


ANY: dict[str, Function] = {
    "unary": lambda x: x.exp() + x.tanh() + x.sigmoid() + x.sqrt() + x.sin() + x.abs() + x.neg(),
    "numbers": lambda x: (1 - (x + 1.0) * 2.5 - 0.3) / 3,
    "integer": lambda x: x * (torch.arange(x.shape[-1]) * 2 + 1.5),
    "true division": lambda x: x * (torch.ones(x.shape[-1], dtype=torch.long) / 3),
    "remainder": lambda x: x * torch.fmod(x, 2.0) + x * torch.remainder(x, 2.0) + x * (x // 2.0),
    "broadcast": lambda x: x * x[..., :1] + x[..., :1, :],
    "two types": lambda x: x * x.detach().double() + x.detach().bfloat16(),
    "scalar tensor": lambda x: x * torch.tensor(2.0, dtype=torch.float64),
    "masks": lambda x: torch.where(x > 0.5, x, x * 2) * (x == x) * (x != 0) * (x <= 1) * (x >= 0),
    "less": lambda x: x.masked_fill(x < 0.3, 0.0) * (x.detach() < x.detach().double()),
    "extremes": lambda x: torch.maximum(x, x * 0.5) + torch.minimum(x, x * 2) + x.clamp(0.1, 0.9),
    "powers": lambda x: x**2 + x**3 + x**0.5,
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3) + torch.addcmul(x, x, x, value=0.5),
    "relu": lambda x: F.relu(x) + F.leaky_relu(x) + F.relu6(x) + F.elu(x) + F.hardtanh(x),
    "gelu": lambda x: F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.mish(x),
    "hard": lambda x: F.hardswish(x) + F.hardsigmoid(x) + F.hardshrink(x) + F.softshrink(x),
    "soft": lambda x: F.softplus(x) + F.logsigmoid(x),
    "glu": lambda x: F.glu(x, -1),
    "prelu": lambda x: F.prelu(x, ones(1, like=x)),
    "softmax": lambda x: x.softmax(-1) + x.softmax(1) + x.log_softmax(-1) + x.log_softmax(0),
    "sums": lambda x: x.sum() + x.sum(-1, keepdim=True) + x.sum(0) + (x > 0).sum(-1, keepdim=True),
    "means": lambda x: x.mean() + x.mean(-1, keepdim=True) + x.mean((-1, -2), keepdim=True),
    "norms": lambda x: x.var(-1) + x.std(-1) + x.norm(dim=-1) + torch.var_mean(x, -1)[1],
    "amax": lambda x: x.amax(-1) + x.amin(-1) + x.max(-1)[0] + x.min(-1)[0] + x.max() + x.min(),
    "arg": lambda x: x * x.argmax(-1, keepdim=True) + x.argmin(-1, keepdim=True) + (x > 0).any(),
    "all": lambda x: x * (x > 0).all() + x * (x > 0).any(-1, keepdim=True),
    "cumulated": lambda x: x.cumsum(-1) + x.cumprod(-1) + x.prod(-1, keepdim=True),
    "counted": lambda x: x * (x > 0.5).cumsum(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "safe softmax": lambda x: aten._safe_softmax(x, -1),
    "mse": lambda x: F.mse_loss(x, x.detach() * 0.5) + F.mse_loss(x, x, reduction="sum"),
    "unreduced": lambda x: F.mse_loss(x, x.detach() * 0.5, reduction="none"),
    "huber": lambda x: F.smooth_l1_loss(x, x.detach() * 2) + F.huber_loss(x, x.detach() * 2),
    "logits": lambda x: F.binary_cross_entropy_with_logits(x, x.detach()),
    "layer norm": lambda x: F.layer_norm(
        x, x.shape[-1:], ones(x.shape[-1], like=x), ones(x.shape[-1], like=x)
    ),
    "dropout": lambda x: F.dropout(x, 0.3),
    "joined": lambda x: torch.cat([x, x], 1) + torch.stack([x, x]).flatten(1, 2)[:, :1].sum(),
    "moved": lambda x: F.pad(x, (1, 1)).flip(-1).roll(1, -1),
    "repeated": lambda x: x.repeat(*([2] + [1] * (x.dim() - 1))),
    "triangles": lambda x: x.tril() + x.triu(),
    "copied": lambda x: x.clone() + x.double() * x.contiguous() + x.bfloat16(),
    "rows": lambda x: x.index_select(0, positions()) + x[positions()] * 2,
    "gathered": lambda x: x.gather(-1, indices(x)) + torch.zeros_like(x).scatter(-1, indices(x), x),
    "scattered": lambda x: torch.zeros_like(x).scatter_add(-1, indices(x), x),
    "put": lambda x: torch.index_put(x * 2, (positions(),), x[:3] * 1, accumulate=True),
    "views": lambda x: x.transpose(0, 1)[..., 2:9].unsqueeze(0).squeeze(0).select(-1, 0).sum(),
    "split": lambda x: torch.cat([*x.split(8, 1), *x.split([3, x.shape[1] - 3], 1)], 1),
    "new": lambda x: x * x.new_zeros(1) + x.new_ones(1) + x.new_full((1,), 2.0) + x.new_empty(1),
    "like": lambda x: x * torch.ones_like(x) + torch.full_like(x, 2.0) + torch.rand_like(x),
    "made": lambda x: x * torch.eye(1) + torch.zeros(1) + torch.full((1,), 2.0) + torch.rand(1),
    "bernoulli": lambda x: x * torch.bernoulli(x.detach().clamp(0, 1)),
    "cross entropy": lambda x: F.cross_entropy(x.flatten(0, -2), classes(x.flatten(0, -2))),
    "linear": lambda x: F.linear(x, ones(7, x.shape[-1], like=x), ones(7, like=x)),
    "products": lambda x: x @ x.transpose(-1, -2),
    "vectors": lambda x: x @ ones(x.shape[-1], like=x) if x.dim() == 2 else x * 1,
    "dot": lambda x: torch.dot(x.flatten(), ones(x.numel(), like=x)),
    "embedding": lambda x: F.embedding(positions(), x.flatten(0, -2)),
}
OF_IMAGES: dict[str, Function] = {
    "pixel entropy": lambda x: F.cross_entropy(x, classes(x)),
    "batch norm": lambda x: F.batch_norm(
        x, None, None, torch.ones(16, requires_grad=True), torch.ones(16, requires_grad=True), True
    ),
    "eval": lambda x: F.batch_norm(x, torch.zeros(16), torch.ones(16)),
    "group norm": lambda x: F.group_norm(x, 4, ones(16, like=x), ones(16, like=x)),
    "max pool": lambda x: F.max_pool2d(x, 2) + F.max_pool2d(x, 3, 2, 1),
    "average": lambda x: F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, (6, 5)),
    "adaptive": lambda x: F.adaptive_max_pool2d(x, 3),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "shuffle": lambda x: F.pixel_shuffle(x, 2),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "unfold": lambda x: F.unfold(x, 3),
    "fold": lambda x: F.fold(x.flatten(2)[:, :, :4].contiguous() * 1, (4, 4), 2, stride=2),
    "sampled": lambda x: F.grid_sample(
        x, torch.zeros(2, 8, 8, 2, dtype=x.dtype), align_corners=False
    ),
    "convolution": lambda x: F.conv2d(x, ones(8, 16, 3, 3, like=x), padding=1),
}


class Recorder(TorchDispatchMode):
    """The calls of ops that run in it, each once."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, OpCall] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = OpCall.of(func, args, kwargs)
        signature = call.signature()
        if signature is not None and not func._schema.is_mutable:
            self.calls.setdefault(signature, call)
        return func(*args, **(kwargs or {}))


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor | None:
    match layout:
        case "transposed":
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        case "channels last" if x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        case "sliced":
            return torch.cat([x, x], -1)[..., : x.shape[-1]]
        case "expanded":
            return x.flatten()[:1].expand(x.shape)
        case "contiguous":
            return x
    return None


def step(function: Function, x: torch.Tensor, gradient_layout: str) -> None:
    made = function(x)
    if not made.requires_grad:
        return
    gradient: torch.Tensor | None = torch.rand(made.shape, dtype=made.dtype)
    if made.dim() > 1:
        gradient = laid_out(torch.rand(made.shape, dtype=made.dtype), gradient_layout)
    if gradient is not None:
        torch.autograd.grad(made, x, gradient)


def recorded(
    shapes: tuple[tuple[int, ...], ...],
    layouts: tuple[str, ...],
    dtypes: tuple[torch.dtype, ...],
    gradients: tuple[str, ...] = ("contiguous",),
) -> dict[str, OpCall]:
    """The calls of steps of all functions."""
    with Recorder() as recorder:
        for dtype in dtypes:
            for shape in shapes:
                functions = {**ANY, **(OF_IMAGES if len(shape) == 4 else {})}
                for layout in layouts:
                    made = laid_out(torch.rand(shape, dtype=dtype) + 0.01, layout)
                    if made is None:
                        continue
                    x = made.detach().requires_grad_()
                    for function in functions.values():
                        for gradient in gradients:
                            try:
                                step(function, x, gradient)
                            except RuntimeError:  # not every kernel has every type
                                continue
    return recorder.calls


def calls_of_each_rule() -> Iterator[OpCall]:
    """Calls that eager mode does not make, or does not make by themselves."""
    x, counts = torch.rand(MATRIX), torch.zeros(3, dtype=torch.long)
    channels = [torch.ones(16) for _ in range(4)]
    for image in (torch.rand(IMAGE), laid_out(torch.rand(IMAGE), "channels last")):
        args = (image, *channels, True, 0.1, 1e-5)
        yield OpCall.of(aten._native_batch_norm_legit_functional.default, args)
    stack = torch.rand(3, 5, 7)
    yield OpCall.of(aten.baddbmm.default, (torch.rand(3, 5, 5), stack, stack.transpose(1, 2)))
    yield OpCall.of(aten.bmm.default, (stack[:, :, ::2], torch.rand(3, 4, 6)))
    yield OpCall.of(aten.index_add.default, (x, 0, counts, torch.rand(3, 40)))
    yield OpCall.of(aten.select_backward.default, (x[0], [24, 40], 0, 1))
    yield OpCall.of(aten.lift_fresh_copy.default, (x,))
    yield OpCall.of(aten.copy.default, (x, torch.rand(40)))
    yield OpCall.of(aten.copy_.default, (x, torch.rand(40)))
    yield OpCall.of(aten.eye.default, (7,), {"device": torch.device("cpu")})
    yield OpCall.of(aten.scalar_tensor.default, (2.0,), {"device": torch.device("cpu")})
    yield OpCall.of(aten.empty.memory_format, ([3],), {"device": torch.device("cpu")})
    yield OpCall.of(aten.empty_strided.default, ([3], [1]), {"device": torch.device("cpu")})
    yield OpCall.of(aten.empty_like.default, (x,))
    yield OpCall.of(aten.new_empty_strided.default, (x, [3], [1]))
    yield OpCall.of(aten.alias.default, (x,))
    yield OpCall.of(aten.mv.default, (x, torch.rand(40)))
    yield OpCall.of(aten.permute.default, (x, [1, 0]))
    yield OpCall.of(aten.as_strided.default, (x, [3, 4], [4, 1]))


def compared(calls: dict[str, OpCall]) -> tuple[set[Any], list[str], list[str]]:
    """Which ops were measured, which known workspaces are wrong and which bounds too low."""
    seen: set[Any] = set()
    wrong, low = [], []
    for call, cost in zip(
        calls.values(), profile_calls(list(calls.values()), time_budget_s=0).costs, strict=True
    ):
        if cost.source != "measured":
            continue
        told = analytic_cost(call)
        text = f"{call.signature()}: {told.workspace_bytes}, measured {cost.workspace_bytes}"
        if not told.workspace_known:
            low += [text] if told.workspace_bytes < cost.workspace_bytes else []
            continue
        seen.add(call.target.overloadpacket)  # type: ignore[attr-defined]
        wrong += [text] if told.workspace_bytes != cost.workspace_bytes else []
    return seen, wrong, low


def with_the_rest(calls: dict[str, OpCall]) -> dict[str, OpCall]:
    return calls | {str(call.signature()): call for call in calls_of_each_rule()}


def test_every_rule_tells_what_its_kernel_takes() -> None:
    calls = recorded((IMAGE,), ("contiguous",), (torch.float32,))
    calls |= recorded((MATRIX,), ("transposed",), (torch.float32,))
    seen, wrong, low = compared(with_the_rest(calls))
    assert not wrong
    assert not low
    assert {str(packet) for packet in RULES.keys() - seen} == set()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rules_hold_for_layouts_types_and_threads(dtype: torch.dtype, threads: int) -> None:
    """What depends on threads is told for the number that PyTorch uses, or not known."""
    layouts = ("contiguous", "transposed", "channels last", "sliced", "expanded")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        calls = recorded((MATRIX, ROWS, IMAGE), layouts, (dtype,), layouts)
        calls |= recorded((LARGE,), layouts[:2], (dtype,), layouts[:2])
        _, wrong, low = compared(with_the_rest(calls))
    finally:
        torch.set_num_threads(before)
    assert not wrong
    assert not low
