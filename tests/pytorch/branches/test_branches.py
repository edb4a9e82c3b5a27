"""Branches on data are traced as they went, checked in every step, and taken anew where they go
another way: always as in plain PyTorch."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.errors import CaptureError
from memfit.pytorch.branches.outcomes import MOST_WAYS
from memfit.pytorch.branches.seen import Reader, recorded
from memfit.pytorch.cost.measure import measure_step
from support.rows import WIDTH, layers, row_batch

Body = Callable[["Net", torch.Tensor, torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """Some layers, with batch norm and dropout, and a way to use them."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.first, self.last = layers(), layers()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("stride", torch.tensor(2))
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.body = body

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return self.body(self, x, y)

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape of its input; draws, and writes to buffers."""
        return self.drop(self.norm(self.first(x)))


def _labels(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if y.max() >= WIDTH:
        raise ValueError("labels")
    return F.cross_entropy(net.mixed(x), y)


def _finite(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = net.mixed(x)
    if not torch.isfinite(x).all():
        x = x.clamp(-1e4, 1e4)
    return F.cross_entropy(net.last(x), y)


def _setting(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = net.mixed(x)
    return F.cross_entropy(x if net.stride > 1 else -x, y)


def _item(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    found = (y > 1000).any().item()
    return F.cross_entropy(net.mixed(x) if found else x + net.first(x), y)


def _float(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = net.mixed(x)
    largest = x.abs().max().item()
    return F.cross_entropy(net.last(x * 2 if largest > 100 else x), y)


def _count(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    count = (y != 0).sum().item()
    if count == 0:
        return net.mixed(x).sum() * 0
    return F.cross_entropy(net.mixed(x), y, reduction="sum") / count


def _compared(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = net.mixed(x)
    if torch.equal(x, x + 1) or x.allclose(x * 2) or torch.allclose(x, x + 1):
        x = x * 2
    return F.cross_entropy(x, y)


def _several(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = net.mixed(x)
    if x.max() > 1e6 or x.min() < -1e6:
        x = x * 5
    small = not (x > 1e9).any()
    assert (y >= 0).all(), "negative"
    scale = 1 if bool((y < WIDTH).all()) else 2
    if small and not any([(x > 1e8).any(), (x < -1e8).any()]):
        x = x * scale
    return F.cross_entropy(net.last(x), y)


def _inside_pytorch(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.gaussian_nll_loss(net.mixed(x), x, torch.ones_like(x) + y[:, None])


def _until(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    steps = 0
    while x.abs().max() > 0.01 and steps < 3:
        x = torch.tanh(net.first(x))
        steps += 1
    return F.cross_entropy(x, y)


def _numbers(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    parts = torch.full((4,), len(x) // 4).tolist()
    x = torch.cat([p * (i + 1) for i, p in enumerate(net.mixed(x).split(parts))])
    return F.cross_entropy(x.view(int(net.stride), -1, WIDTH).flatten(0, 1), y)


def _indexed(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    for i in (F.one_hot(y % 4, 4).sum(0) > 0).nonzero():
        x = x + net.experts[i](x)
    return F.cross_entropy(x, y)


def _never(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if torch.rand([]) < 0.0 or torch.rand(1).item() >= 1:
        return x.sum()
    return F.cross_entropy(net.mixed(x), y)


BODIES: dict[str, Body] = {
    "a check of labels": _labels,
    "a check of values": _finite,
    "a buffer read as a setting": _setting,
    "item of a truth value": _item,
    "item of a float": _float,
    "a count": _count,
    "equal and allclose": _compared,
    "several": _several,
    "inside a function of PyTorch": _inside_pytorch,
    "a loop until something holds": _until,
    "numbers that sizes are made of": _numbers,
    "modules chosen by an index": _indexed,
    "layers that are left out with probability 0": _never,
}


def assert_trains_alike(
    fitted: Any, model: nn.Module, plain: nn.Module, batches: list[tuple[torch.Tensor, ...]]
) -> None:
    """Losses, gradients, buffers and random states are plain's, bit for bit, step by step."""
    for i, (x, y) in enumerate(batches):
        seen = []
        for call, owner in ((plain, plain), (fitted, model)):
            owner.zero_grad(set_to_none=True)
            torch.manual_seed(i)
            loss = call(x, y)
            loss.backward()
            gradients = [None if p.grad is None else p.grad.clone() for p in owner.parameters()]
            state = [t.clone() for t in owner.buffers()]
            seen.append((loss.detach(), gradients, state, torch.get_rng_state()))
        torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=0, equal_nan=True)


def fitted_pair(body: Body, **options: Any) -> tuple[Any, Net, Net]:
    torch.manual_seed(0)
    plain = Net(body)
    model = copy.deepcopy(plain)
    return memfit.fit(model, fullgraph=True, **options), model, plain


OFTEN = {
    "a check of values",
    "item of a float",
    "several",
    "inside a function of PyTorch",
    "numbers that sizes are made of",
    "modules chosen by an index",
    "layers that are left out with probability 0",
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.slow) for n in BODIES]
)
def test_one_graph_with_plain_gradients(name: str) -> None:
    fitted, model, plain = fitted_pair(BODIES[name], budget="95%")
    assert_trains_alike(fitted, model, plain, [row_batch(i) for i in range(3)])
    assert len(fitted.plans) == 1


def test_plans_say_that_branches_are_checked() -> None:
    fitted, _, _ = fitted_pair(_finite, budget="95%")
    fitted(*row_batch(0)).backward()
    assert any(note.startswith("a branch on data is planned") for note in fitted.plan.notes)


def test_budget_is_held() -> None:
    fitted, model, _ = fitted_pair(_several, budget="80%")
    x, y = row_batch(0)

    def step() -> None:
        fitted(x, y).backward()
        model.zero_grad(set_to_none=True)

    step()
    tensors = [*model.parameters(), *model.buffers(), x, y]
    resident = sum(t.untyped_storage().nbytes() for t in tensors)
    peak = measure_step(step, device=torch.device("cpu"), warmup=1).peak_bytes
    assert peak <= fitted.plan.peak_bytes - resident + 64  # the loss's own bytes


def test_another_way_runs_plainly_once_and_then_has_its_own_graph(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fitted, model, plain = fitted_pair(_finite, budget="95%")
    batches = [row_batch(i) for i in range(7)]
    for i in (2, 3, 5):
        batches[i][0][0, 0] = float("inf")
    with caplog.at_level(logging.WARNING, logger="memfit"):
        assert_trains_alike(fitted, model, plain, batches)
    assert len(fitted.plans) == 2
    told = [r.getMessage() for r in caplog.records if "another way" in r.getMessage()]
    assert len(told) == 1
    assert "test_branches.py" in told[0]


def test_an_error_that_a_check_raises_is_the_models_own() -> None:
    fitted, model, plain = fitted_pair(_labels, budget="95%")
    assert_trains_alike(fitted, model, plain, [row_batch(0)])
    x, y = row_batch(1)
    with pytest.raises(ValueError, match="labels"):
        fitted(x, y + WIDTH)
    assert_trains_alike(fitted, model, plain, [row_batch(2)])


def _late(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = F.cross_entropy(net.last(net.mixed(x)), y)
    return loss * 2 if loss > 1e3 else loss


@pytest.mark.sampled(2)
@pytest.mark.parametrize("budget", ["100%", "85%"])
def test_a_check_that_fails_has_changed_nothing(budget: str) -> None:
    fitted, model, plain = fitted_pair(_late, budget=budget)
    assert_trains_alike(fitted, model, plain, [row_batch(0), row_batch(1)])
    assert int(model.norm.num_batches_tracked) == 2  # not more, though a run has looked ahead
    x, y = row_batch(2)
    with torch.no_grad():
        for net in (model, plain):
            net.norm.weight.fill_(1e8)  # the last op of the step is the first to see it
    assert_trains_alike(fitted, model, plain, [(x, y)])
    assert int(model.norm.num_batches_tracked) == 3


def test_writes_come_after_checks() -> None:
    fitted, _, _ = fitted_pair(_late, budget="100%")
    fitted(*row_batch(0)).backward()
    graph = fitted.graph
    assert graph is not None
    (check,) = [op for op in graph.ops if op.target.startswith("memfit.outcome")]
    writes = [op for op in graph.ops if op.target.startswith("aten.copy_")]
    assert writes
    for op in writes:
        assert set(check.outputs) & set(op.inputs)


@pytest.mark.slow
def test_each_shape_has_its_own_ways() -> None:
    fitted, model, plain = fitted_pair(_until, budget="95%")
    small = [tuple(t[:256] for t in row_batch(i)) for i in range(2)]
    assert_trains_alike(fitted, model, plain, [row_batch(0), small[0], row_batch(1), small[1]])
    assert len(fitted.plans) == 2


def _of_many_ways(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    for i in range(8):
        if y[i] > WIDTH // 2:
            x = x + net.first(x)
    return F.cross_entropy(x, y)


@pytest.mark.slow
def test_too_many_ways_run_plainly_where_nothing_may_be_opaque(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fitted, model, plain = fitted_pair(_of_many_ways, budget="100%")
    with caplog.at_level(logging.WARNING, logger="memfit"):
        assert_trains_alike(fitted, model, plain, [row_batch(i) for i in range(10)])
    assert len(fitted.plans) <= MOST_WAYS
    assert f"another way than the {MOST_WAYS} that are planned" in caplog.text


@pytest.mark.slow
def test_too_many_ways_become_an_opaque_module() -> None:
    torch.manual_seed(0)
    plain = Net(_of_many_ways)
    model = copy.deepcopy(plain)
    fitted = memfit.fit(model, budget="100%")
    assert_trains_alike(fitted, model, plain, [row_batch(i) for i in range(10)])
    assert any("runs as one op" in note for note in fitted.plan.notes)


def _coin(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(net.mixed(x) if torch.rand([]) < 0.5 else x + net.first(x), y)


def _coin_read(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(net.mixed(x) if torch.rand(1).item() < 0.5 else x + net.first(x), y)


@pytest.mark.parametrize("body", [_coin, _coin_read])
def test_what_chance_alone_decides_is_no_branch_to_trace(body: Body) -> None:
    fitted, _, _ = fitted_pair(body, budget="100%")
    with pytest.raises(CaptureError):
        fitted(*row_batch(0))


def test_numbers_are_handed_out_as_they_were_read() -> None:
    def read(x: torch.Tensor) -> float:
        return x.sum().item() + x.tolist()[1] if bool(x.any()) and not torch.equal(x, -x) else 0.0

    with recorded() as seen:
        read(torch.tensor([1, 2]))
        F.one_hot(torch.tensor([1, 2]))  # looks at numbers, but for itself
    reader = Reader(seen)
    here = [(__file__, "read"), (__file__, "another")]
    scalars = "aten::_local_scalar_dense"
    for trace in (frozenset({1}), frozenset({2})):
        assert [reader.take(trace, here, scalars) for _ in range(5)] == [True, 3, 1, 2, None]
        assert reader.take(trace, here, "aten::equal") is False


def test_a_model_that_is_let_go_takes_its_graphs_with_it() -> None:
    def graphs() -> int:
        gc.collect()
        return sum(type(x).__name__ == "OutputGraph" for x in gc.get_objects())

    before = graphs()
    for body in (_finite, _setting):
        fitted = memfit.fit(Net(body), budget="100%", cost="analytic")
        fitted(*row_batch(0)).backward()
        del fitted
        torch._dynamo.reset()
    assert graphs() == before
