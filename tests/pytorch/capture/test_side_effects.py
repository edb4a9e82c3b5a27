"""Side effects and random draws happen as often as in plain PyTorch, in the same order.

Every case runs at an ample and at its smallest feasible budget for two steps, from the same seeds
as the plain model. Compared are outputs, gradients (of inputs too), inputs, buffers and other state
after each step, the state of the generator, and how often the ops named in `once` ran.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import memfit
from memfit import allow_recompute
from memfit.errors import CaptureError, UsageError
from memfit.pytorch.api.entry import capture
from memfit.pytorch.capture.effects import may_have_effect
from memfit.pytorch.compat.eager import kineto_op_intervals, memory_profiler
from support.models import Net, Step, each

# What Dynamo does while it traces autograd functions and inputs that are no leaves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
AMPLE = 2**50
WIDTH = 16
runs: Counter[str] = Counter()


@dataclass(frozen=True)
class Case:
    """A step, what its module holds, its inputs, and ops that must run as often as in eager."""

    step: Step
    parts: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    inputs: Callable[[], tuple[torch.Tensor, ...]] = lambda: (torch.randn(64, WIDTH),)
    once: tuple[str, ...] = ()
    state: Callable[[Net], Any] = lambda net: None


def through(net: Net, x: torch.Tensor) -> torch.Tensor:
    """A step that passes the part `norm` after each layer."""
    for layer in net.layers:
        x = torch.tanh(net.norm(layer(x)))
    return x


# Custom ops and functions


@torch.library.custom_op("memfit_effects::logged", mutates_args=())
def logged(x: torch.Tensor, factor: float) -> torch.Tensor:
    runs["logged"] += 1  # an effect that no schema mentions
    return x * factor


@logged.register_fake
def _(x: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.empty_like(x)


def _logged_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.factor = inputs[1]
    ctx.save_for_backward(output)


def _logged_backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    (output,) = ctx.saved_tensors
    return gradient * ctx.factor + 0 * output, None


logged.register_autograd(_logged_backward, setup_context=_logged_context)


@torch.library.custom_op("memfit_effects::into", mutates_args={"log"})
def into(x: torch.Tensor, log: torch.Tensor) -> torch.Tensor:
    runs["into"] += 1
    log.add_(1)
    return x + log


@into.register_fake
def _(x: torch.Tensor, log: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("memfit_effects::pure_noise", mutates_args=())
def pure_noise(x: torch.Tensor) -> torch.Tensor:
    runs["pure_noise"] += 1
    return torch.rand_like(x)


@pure_noise.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Cubed(torch.autograd.Function):
    """Saves its input and an intermediate; its backward is not autograd's formula."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        square = x * x
        ctx.save_for_backward(x, square)
        ctx.scale = scale
        return scale * square * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        _, square = ctx.saved_tensors
        return (3 * ctx.scale * square * gradient).clamp(-0.5, 0.5), None


class StraightThrough(torch.autograd.Function):
    """Draws a bit for each entry; passes the gradient on where the bit is set."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bits = torch.bernoulli(x.sigmoid())
        ctx.mark_non_differentiable(bits)
        ctx.save_for_backward(bits)
        return x * bits, bits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        (bits,) = ctx.saved_tensors
        return gradient * (bits + 0.1)


def straight(h: torch.Tensor) -> torch.Tensor:
    kept, bits = StraightThrough.apply(h)
    return kept + bits


# Steps


def metrics(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = net.trunk(x)
    net.buffer_count += 1
    net.buffer_ema.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
    net.buffer_best.copy_(torch.maximum(net.buffer_best, h.detach().amax(0)))
    return torch.tanh(net.layers[0](h))


def factors(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Products that eager's kernels round once, with what is added to them."""
    for layer in net.layers:
        h = torch.tanh(layer(x))
        wide = h.detach().abs().amax(0) + 1
        net.buffer_sum.add_(h.detach().mean(0), alpha=0.1)
        net.buffer_sum.addcmul_(h.detach().mean(0), wide, value=0.3)
        net.buffer_sum.addcdiv_(h.detach().mean(0), wide, value=0.7)
        x = torch.addcmul(h.clone().addcmul_(h, h * 0.3, value=0.1), h, wide, value=0.2)
        x = x.mul(2).addcdiv_(x, wide, value=0.6).sub_(wide, alpha=0.1)
    return x


def attributes(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = net.trunk(x)
    net.plain_mean += h.detach().mean()  # a tensor that is no buffer
    net.plain_last = h.detach().mean(0)
    net.seen.append(h.detach().amax())
    return torch.tanh(net.layers[0](h)) * h


def in_place(net: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        y = layer(x)
        x = F.relu_(y * 1) * 1
        x += y
        x[:, 2:4].mul_(2)
        x.masked_fill_(x > 1.5, 0.5)
        x = F.dropout(x, 0.2, True, True)
    return x


def view_of_input(net: Net, x: torch.Tensor) -> torch.Tensor:
    x[:, :4].add_(1)
    x.view(-1)[::3].mul_(0.5)
    return net.trunk(x) * x


def input_with_gradient(net: Net, x: torch.Tensor) -> torch.Tensor:
    x.mul_(2)
    return net.trunk(x) + x.sin()


def aliased_inputs(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x.mul_(2)
    return net.trunk(y) + x


def input_as_output(net: Net, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    h = net.trunk(x)
    return h, x, x[:3], x.t(), h[1:]


def reduced(net: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        h = torch.tanh(layer(x))
        x = h + funcol.all_reduce(h.detach(), "sum", dist.group.WORLD)
    return x


# By the name that it has before 2.13, and by the one it has from then on.
all_gather = getattr(funcol, "all_gather_single_autograd", funcol.all_gather_tensor_autograd)


def gathered(net: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        h = all_gather(torch.tanh(layer(x)), 0, dist.group.WORLD)
        x = h * h
    return x


def checkpointed(net: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        x = checkpoint(
            lambda t, layer=layer: F.dropout(torch.tanh(net.norm(layer(t))), 0.3),
            x,
            use_reentrant=False,
        )
    return x


def attend(net: Net, x: torch.Tensor) -> torch.Tensor:
    q = x.view(2, 2, 16, WIDTH)
    for causal in (True, False):
        q = q + F.scaled_dot_product_attention(
            net.trunk(q), q, q * 2, dropout_p=0.1, is_causal=causal
        )
    return q


def sampled(net: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        noise = torch.distributions.Normal(0.0, 1.0, validate_args=False).rsample(x.shape)
        x = torch.tanh(layer(x)) + 0.1 * noise * torch.rand(WIDTH) + torch.randint(0, 3, (WIDTH,))
    return x


def image() -> tuple[torch.Tensor, ...]:
    return (torch.randn(4, 8, 6, WIDTH),)


def leaf() -> tuple[torch.Tensor, ...]:
    return (torch.randn(64, WIDTH, requires_grad=True),)


def zeros() -> torch.Tensor:
    return torch.zeros(WIDTH)


CASES: dict[str, Case] = {
    "dropout": Case(each(lambda h: F.dropout(h, 0.2))),
    "dropout2d": Case(each(nn.Dropout2d(0.3)), inputs=image),
    "alpha dropout": Case(each(nn.AlphaDropout(0.2))),
    "feature alpha dropout": Case(each(nn.FeatureAlphaDropout(0.2)), inputs=image),
    "attention dropout": Case(attend),
    "rand": Case(each(lambda h: h * torch.rand(h.shape) + torch.randn_like(h))),
    "bernoulli": Case(
        each(lambda h: h * torch.bernoulli(h.sigmoid()) + torch.empty(WIDTH).bernoulli_(0.4))
    ),
    "multinomial": Case(each(lambda h: h * h[torch.multinomial(torch.ones(64), 64)])),
    "distributions": Case(sampled),
    "rrelu": Case(each(nn.RReLU())),
    "batch norm": Case(through, {"norm": lambda: nn.BatchNorm1d(WIDTH)}),
    "batch norm, cumulative": Case(through, {"norm": lambda: nn.BatchNorm1d(WIDTH, momentum=None)}),
    "batch norm, no statistics": Case(
        through, {"norm": lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False)}
    ),
    "instance norm": Case(
        through,
        {"norm": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True)},
        image,
    ),
    "instance norm, no statistics": Case(through, {"norm": lambda: nn.InstanceNorm2d(8)}, image),
    "spectral norm": Case(
        through, {"norm": lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))}
    ),
    "spectral norm by hook": Case(
        through, {"norm": lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH))}
    ),
    "weight norm": Case(
        through, {"norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))}
    ),
    "running metrics": Case(
        metrics,
        {
            "buffer_count": lambda: torch.zeros((), dtype=torch.int64),
            "buffer_ema": zeros,
            "buffer_best": zeros,
        },
    ),
    "factors": Case(factors, {"buffer_sum": zeros}),
    "attributes": Case(
        attributes,
        {"plain_mean": lambda: torch.zeros(()), "plain_last": zeros, "seen": list},
        state=lambda net: [net.plain_mean, net.plain_last, *net.seen],
    ),
    "autograd function": Case(each(lambda h: Cubed.apply(h, 0.7))),
    "autograd function with draws": Case(each(straight)),
    "custom op": Case(each(lambda h: logged(h, 0.5) + h), once=("memfit_effects::logged",)),
    "custom op that writes": Case(
        lambda net, x: net.trunk(into(net.trunk(x).detach(), net.buffer_log) + net.trunk(x)),
        {"buffer_log": zeros},
        once=("memfit_effects::into",),
    ),
    "checkpoint": Case(checkpointed, {"norm": lambda: nn.LayerNorm(WIDTH)}),
    "in-place": Case(in_place),
    "view of input": Case(view_of_input),
    "input with gradient": Case(lambda net, x: input_with_gradient(net, x), inputs=leaf),
    "aliased inputs": Case(aliased_inputs),
    "input as output": Case(input_as_output, inputs=leaf),
    "all reduce": Case(reduced, once=("_c10d_functional::all_reduce",)),
    "all gather": Case(
        gathered,
        once=(
            "_c10d_functional::all_gather_into_tensor",
            "_c10d_functional::reduce_scatter_tensor",
        ),
    ),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of this process alone."""
    file = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def build(case: Case) -> tuple[Net, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    return Net(case.step, **case.parts), case.inputs()


def arguments(name: str, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """What the step is called with: never a leaf, so that it may be written in place."""
    given = [x.clone() for x in inputs]
    if name == "aliased inputs":
        given.append(given[0].view(WIDTH, -1).view(64, WIDTH))
    return given


def tensors(result: Any) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]


def loss_of(outputs: list[torch.Tensor]) -> torch.Tensor:
    """A sum in which each entry has its own weight."""
    return torch.stack(
        [
            (t * torch.linspace(0.5, 1.5, t.numel()).view(t.shape)).sum()
            for t in outputs
            if t.requires_grad
        ]
    ).sum()


def observe(
    name: str, net: Net, call: Step, inputs: tuple[torch.Tensor, ...]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Everything that two steps leave behind, and how often ops ran in the second."""
    case = CASES[name]
    seen: dict[str, Any] = {}

    def step(seed: int) -> None:
        torch.manual_seed(seed)
        given = arguments(name, inputs)
        outputs = tensors(call(*given))
        loss_of(outputs).backward()
        seen.update({f"output {i} {seed}": t.detach().clone() for i, t in enumerate(outputs)})
        seen.update({f"input {i} {seed}": t.detach() for i, t in enumerate(given)})
        seen.update({f"buffer {n} {seed}": b.clone() for n, b in net.named_buffers()})
        seen.update(
            {f"state {i} {seed}": t.clone() for i, t in enumerate(tensors(case.state(net)))}
        )
        seen[f"generator {seed}"] = torch.get_rng_state()

    step(5)
    if case.once:
        with memory_profiler() as profiler:
            step(6)
        ran = Counter(o.name for o in kineto_op_intervals(profiler))
    else:
        step(6)
        ran = Counter()
    seen |= {f"gradient {n}": p.grad for n, p in net.named_parameters()}
    seen |= {f"gradient of input {i}": x.grad for i, x in enumerate(inputs)}
    return seen, {op: ran[op] for op in case.once}


# Much like cases of test_models.py, which run by default.
ALSO_THERE = {
    "alpha dropout",
    "attention dropout",
    "batch norm",
    "checkpoint",
    "distributions",
    "dropout",
    "feature alpha dropout",
    "instance norm, no statistics",
    "multinomial",
    "rrelu",
    "spectral norm",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in ALSO_THERE else []) for n in CASES],
)
def test_happens_as_in_plain_pytorch(name: str) -> None:
    case = CASES[name]
    net, inputs = build(case)
    want, want_runs = observe(name, net, net, inputs)
    assert all(want_runs.values())
    budget = AMPLE
    for _ in range(2):
        net, inputs = build(case)
        fitted = memfit.fit(net, budget=budget, cost="analytic")
        got, got_runs = observe(name, net, fitted, inputs)
        assert got.keys() == want.keys()
        for key, value in want.items():
            same = got[key] is None if value is None else torch.equal(got[key], value)
            assert same, key
        assert got_runs == want_runs
        assert fitted.plan is not None
        assert fitted.plan.peak_bytes <= budget
        budget = fitted.plan.smallest_feasible_budget_bytes


def _counted(change: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Net, torch.Tensor]:
    torch.manual_seed(0)
    return Net(each(change)), torch.randn(256, WIDTH)


def test_measuring_and_planning_do_not_run_custom_ops() -> None:
    net, x = _counted(lambda h: logged(h, 0.5) + into(h.detach(), torch.zeros(WIDTH)))
    runs.clear()
    low = memfit.plan(net, (x,), budget=AMPLE).smallest_feasible_budget_bytes
    assert not runs
    fitted = memfit.fit(net, budget=low)
    fitted(x).sum().backward()
    assert runs == {"logged": 3, "into": 3}


def test_a_custom_op_runs_again_only_where_that_was_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from memfit.pytorch.capture import effects

    monkeypatch.setattr(effects, "_allowed", set())
    net, x = _counted(lambda h: h * pure_noise(h.detach()).square())
    before = memfit.plan(net, (x,), budget=AMPLE, cost="analytic").smallest_feasible_budget_bytes
    allow_recompute(pure_noise)
    low = memfit.plan(net, (x,), budget=AMPLE, cost="analytic").smallest_feasible_budget_bytes
    assert low < before
    seen = []
    for call in (net, memfit.fit(copy.deepcopy(net), budget=low, cost="analytic")):
        runs.clear()
        torch.manual_seed(4)
        call(x).sum().backward()
        seen.append([p.grad for p in call.parameters()])
        seen[-1].append(torch.get_rng_state())
    assert runs["pure_noise"] > 3
    for a, b in zip(*seen, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "op", [pure_noise, "memfit_effects::pure_noise", torch.ops.memfit_effects.pure_noise]
)
def test_an_op_can_be_allowed_by_object_or_name(op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from memfit.pytorch.capture import effects

    monkeypatch.setattr(effects, "_allowed", set())
    target = torch.ops.memfit_effects.pure_noise.default
    assert may_have_effect(target)
    allow_recompute(op)
    assert not may_have_effect(target)
    allow_recompute(into)
    assert may_have_effect(torch.ops.memfit_effects.into.default)


def test_what_is_no_op_cannot_be_allowed() -> None:
    with pytest.raises(UsageError, match="allow_recompute takes a custom op"):
        allow_recompute(torch.sin)


def test_a_generator_of_ones_own_is_refused_with_a_remedy() -> None:
    generator = torch.Generator().manual_seed(3)
    net, x = _counted(lambda h: h * torch.rand(WIDTH, generator=generator))
    with pytest.raises(CaptureError, match=r"generator of its own.*default generator"):
        memfit.fit(net, budget=AMPLE, cost="analytic")(x)


def test_a_leaf_written_in_place_is_refused_as_in_plain_pytorch() -> None:
    net, _ = build(CASES["input with gradient"])
    x = torch.randn(64, WIDTH, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        net(x)
    with pytest.raises((RuntimeError, CaptureError), match="leaf"):
        memfit.fit(net, budget=AMPLE, cost="analytic")(x)


def test_collectives_are_planned_once_and_waited_for_before_they_are_read() -> None:
    case = CASES["all reduce"]
    net, inputs = build(case)
    graph = capture(net, inputs, cost="analytic").graph
    low = memfit.plan(net, inputs, budget=AMPLE, cost="analytic").smallest_feasible_budget_bytes
    schedule = memfit.plan(net, inputs, budget=low, cost="analytic").schedule
    computed = Counter(graph.ops[c.op].name for c in schedule.steps)
    names = [op.name for op in graph.ops if op.target.startswith("_c10d_functional")]
    assert len(names) == 6
    assert all(computed[name] == 1 for name in names)
