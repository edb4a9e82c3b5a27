"""At loose budgets no worse than PyTorch's min-cut partitioner, under the same costs and peaks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from functorch.compile import min_cut_rematerialization_partition
from torch import nn

from memfit.graph.schedule import Schedule, make_schedule
from memfit.graph.simulator import simulate
from memfit.graph.training_graph import TrainingGraph, ValueKind
from memfit.planners import PlannerOptions, get_planner
from memfit.pytorch.api.entry import capture
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep


def min_cut_values(step: CapturedStep) -> set[int]:
    """The activations that min-cut saves for the backward pass."""
    joint = copy.deepcopy(step.joint)
    inputs = [n.meta["val"] for n in joint.graph.nodes if n.op == "placeholder"]
    forward, _ = min_cut_rematerialization_partition(
        joint, inputs, num_fwd_outputs=step.forward_outputs
    )
    node_of = {node.name: node for node in step.joint.graph.nodes}
    output = next(node for node in forward.graph.nodes if node.op == "output")
    saved: set[int] = set()
    for node in output.args[0][step.forward_outputs :]:
        for storage in J.storages(node_of[node.name]):
            value = step.value_of.get(storage)
            if value is not None and step.graph.values[value].kind is ValueKind.ACTIVATION:
                saved.add(value)
    return saved


def keeping(graph: TrainingGraph, saved: set[int]) -> Schedule:
    """The step that keeps these values and computes the others again just in time."""
    keep = set(saved)
    for v, value in enumerate(graph.values):
        producer = graph.producer[v]
        if value.kind is not ValueKind.ACTIVATION or producer is None:
            continue
        if value.is_output or not graph.ops[producer].recomputable:
            keep.add(v)
    available = set(keep)
    order: list[int] = []

    def provide(values: Iterable[int]) -> None:
        wanted: set[int] = set()
        stack = list(values)
        while stack:
            v = stack.pop()
            producer = graph.producer[v]
            if v in available or producer is None or producer >= graph.forward_count:
                continue
            if producer not in wanted:
                wanted.add(producer)
                stack.extend(graph.ops[producer].inputs)
        for op in sorted(wanted):
            order.append(op)
            available.update(graph.ops[op].outputs)

    for b in range(graph.forward_count, len(graph.ops)):
        provide(graph.ops[b].inputs)
        order.append(b)
    return make_schedule(graph, range(graph.forward_count), order, keep)


def gpt2() -> tuple[nn.Module, tuple[Any, ...], Callable[..., Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=500, n_positions=64, n_embd=128, n_layer=3, n_head=2, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    ids = torch.randint(0, 500, (4, 64))

    def loss(output: Any, target: torch.Tensor) -> torch.Tensor:
        logits = output.logits[:, :-1]
        return nn.functional.cross_entropy(logits.reshape(-1, 500), target[:, 1:].reshape(-1))

    return GPT2LMHeadModel(config), (ids, ids), loss


class Gated(nn.Module):
    """A linear layer and a row of pointwise ops, each of which has something saved."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.linear(x)
        return h * torch.sigmoid(h) * torch.tanh(h + 1) + torch.exp(-h * h)


def gated_chain() -> tuple[nn.Module, tuple[Any, ...], Callable[..., Any]]:
    x = torch.randn(512, 256)
    return nn.Sequential(*(Gated() for _ in range(4))), (x, x), nn.MSELoss()


@pytest.mark.slow
# PyTorch's partitioner warns of its own code.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("make", [gpt2, gated_chain])
def test_never_behind_min_cut_at_its_own_peak(
    make: Callable[[], tuple[nn.Module, tuple[Any, ...], Callable[..., Any]]],
) -> None:
    torch.manual_seed(0)
    model, inputs, loss_fn = make()
    step = capture(model, inputs, loss_fn, cost="analytic")
    theirs = keeping(step.graph, min_cut_values(step))
    theirs.validate(step.graph)
    assert theirs.overhead(step.graph) > 0
    peak = simulate(step.graph, theirs).peak_bytes
    ours = get_planner("liveness")(step.graph, peak, PlannerOptions())
    assert ours.peak_bytes <= peak
    assert ours.overhead <= theirs.overhead(step.graph)
