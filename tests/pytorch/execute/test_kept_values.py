"""Kept values that a recomputation does not read are not in memory until the backward pass ends."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import memfit
from memfit.graph.schedule import Schedule, make_schedule
from memfit.pytorch import eager_graph
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.execute.lower import lower

aten = torch.ops.aten


class MadeStatistics(nn.Module):
    """Running statistics that an op makes: batch norm's recomputation does not read them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(x * self.scale)
        return torch.tanh(F.batch_norm(x, self.mean.cos(), self.var.exp(), training=True))


def recomputing_all(step: CapturedStep) -> Schedule:
    """All forward ops run again before the backward pass, from kept statistics."""
    graph = step.graph
    forward = range(graph.forward_count)
    again = [
        i for i in forward if step.node_of[i].target not in (aten.cos.default, aten.exp.default)
    ]
    made = [v for i in forward if i not in again for v in graph.ops[i].outputs]
    backward = range(graph.forward_count, len(graph.ops))
    return make_schedule(graph, forward, [*again, *backward], frozenset(made))


def test_only_what_is_read_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered: list[tuple[fx.GraphModule, fx.GraphModule]] = []

    def lower_all(step: CapturedStep, _: Schedule) -> tuple[fx.GraphModule, fx.GraphModule]:
        schedule = recomputing_all(step)
        schedule.validate(step.graph)
        assert schedule.kept(step.graph)
        lowered.append(made := lower(step, schedule))
        return made

    monkeypatch.setattr(eager_graph, "lower", lower_all)
    torch.manual_seed(0)
    model, x = MadeStatistics(), torch.randn(4, 8)
    plain = copy.deepcopy(model)
    plain(x).square().sum().backward()
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    fitted(x).square().sum().backward()
    assert torch.equal(model.scale.grad, plain.scale.grad)
    ((_, backward),) = lowered
    unread = [n.name for n in backward.graph.find_nodes(op="placeholder") if not n.users]
    assert unread == []
