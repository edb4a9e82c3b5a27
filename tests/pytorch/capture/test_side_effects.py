"""Side effects and random draws happen as often as in plain PyTorch, in the same order.

Every case runs at an ample and at its smallest feasible budget for two steps, from the same seeds
as the plain model. Compared are outputs, gradients (of inputs too), inputs, buffers and other state
after each step, the state of the generator, and how often the ops named in `once` ran.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

import memfit
from memfit import allow_recompute
from memfit.errors import CaptureError, UsageError
from memfit.pytorch.api.entry import capture
from memfit.pytorch.capture.effects import may_have_effect
from memfit.pytorch.compat.eager import kineto_op_intervals, memory_profiler
from support.effect_cases import CASES, WIDTH, Case, into, logged, pure_noise, runs
from support.models import Net, Step, each

# What Dynamo does while it traces autograd functions and inputs that are no leaves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
AMPLE = 2**50


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


@pytest.mark.sampled(6)
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


@pytest.mark.slow
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
