"""More than one device: two processes on the CPU (gloo), and what they need in one.

`distributed_worker.py` runs one rank of every scenario and leaves what it found in a file.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import memfit
from memfit.budget import parse_budget
from memfit.errors import InvalidBudgetError, UsageError
from memfit.graph.plan import Plan
from memfit.pytorch.api.fit_blocks import block_budgets
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.planning.shared import TIMEOUT_VARIABLE, plan_timeout_s
from memfit.pytorch.ranks.pieces import piece_bytes
from support.ranks import Ranks, finish, found_by_ranks, start

WORKER = Path(__file__).with_name("distributed_worker.py")
EXAMPLE = Path(__file__).parents[3] / "examples/ddp.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ranks]:
    """What two ranks found, by scenario."""
    return found_by_ranks(WORKER, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def ddp(found: dict[str, Ranks]) -> Ranks:
    return found["ddp"]


@pytest.fixture(scope="module")
def errors(found: dict[str, Ranks]) -> Ranks:
    return found["errors"]


VIEWS = ("view=False", "view=True")
CASES = ("loose", "tight")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_process(ddp: Ranks, view: str, case: str) -> None:
    for rank in ddp:
        for got, want, whole in zip(
            rank[view][case]["gradients"], rank["summed"], rank["whole"], strict=True
        ):
            assert torch.equal(got, want)
            # One batch instead of the mean of two halves: sums of 512 terms in another order.
            torch.testing.assert_close(got, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES)
def test_most_buckets_are_reduced_before_the_backward_pass_ends(
    ddp: Ranks, view: str, case: str
) -> None:
    for rank in ddp:
        counts = rank[view][case]["counts"][1:]
        assert all(c["buckets"] >= 8 for c in counts)
        assert all(c["launched"] > 0.5 * c["buckets"] for c in counts)
        assert all(c["reduced"] > 0.5 * c["buckets"] for c in counts)
    for rank in ddp:
        assert all(c["launched"] == 0 for c in rank["late"]["counts"])


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES)
def test_each_ranks_peak_is_within_its_budget(ddp: Ranks, view: str, case: str) -> None:
    for rank in ddp:
        found = rank[view][case]
        assert found["peak"] + found["resident"] <= found["budget"]
        assert found["peak"] + found["resident"] == pytest.approx(found["predicted"], rel=0.005)
    if case == "tight":
        assert ddp[0][view][case]["peak"] < 0.5 * ddp[0]["plain"]["peak"]


def test_shapes_are_planned_ahead_by_rank_0_for_all(found: dict[str, Ranks]) -> None:
    ranks = found["shapes"]
    for rank in ranks:
        for ours, plain in zip(rank["fitted"], rank["plain"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert ranks[0]["plans"] == ranks[1]["plans"]
    shapes = [Plan.from_json(text).provenance["shape"] for text in ranks[0]["plans"]]
    assert [s["inputs"] for s in shapes] == ["512x128, 512", "64x128, 64", "256x128, 256"]
    assert [s["ahead"] for s in shapes] == [True, True, False]


def test_buckets_count_into_the_budget(ddp: Ranks) -> None:
    parameters = sum(g.numel() * g.element_size() for g in ddp[0]["whole"])
    for view in VIEWS:
        parts = ddp[0][view]["tight"]["parts"]
        assert parts["buffers"] == parameters
        assert parts["parameters"] == parameters
    # Gradients that move into the buckets leave their own memory free.
    assert ddp[0]["view=True"]["tight"]["least"] < ddp[0]["view=False"]["tight"]["least"]


def test_all_ranks_run_the_plan_of_rank_0(ddp: Ranks) -> None:
    for view in VIEWS:
        for case in CASES:
            first, second = (rank[view][case] for rank in ddp)
            assert first["plan"] == second["plan"]
            assert first["costs"] == second["costs"]
    assert Plan.from_json(ddp[1]["view=False"]["tight"]["plan"]).overhead > 0


def test_ranks_with_different_graphs_raise_on_all_of_them(errors: Ranks) -> None:
    for rank in errors:
        assert rank["differ"]["type"] == "PlanMismatchError"
        assert "rank 1 captured graph" in rank["differ"]["message"]
        assert "inputs (511, 128), (511,)" in rank["differ"]["message"]
        assert "same_plan=False" in rank["differ"]["message"]
        assert rank["again"]["type"] == "none"
        assert rank["own"]["type"] == "none"


def test_a_failure_of_one_rank_reaches_the_others(errors: Ranks) -> None:
    assert [rank["infeasible"]["type"] for rank in errors] == ["InfeasibleBudgetError"] * 2
    assert [rank["capture"]["type"] for rank in errors] == ["ExecutionError", "CaptureError"]
    assert errors[1]["capture"]["message"] in errors[0]["capture"]["message"]


def test_a_rank_that_compiles_alone_raises_after_the_timeout(errors: Ranks) -> None:
    assert [rank["same"]["type"] for rank in errors] == ["none", "none"]
    assert errors[0]["alone"]["type"] == "none"
    assert errors[1]["alone"]["type"] == "ExecutionError"
    message = errors[1]["alone"]["message"]
    assert "rank 1 waited 0.2 s for every rank's graph" in message
    assert "compilation 2 of Sequential, inputs (511, 128), (511,)); missing: rank 0;" in message
    assert "same_plan=False" in message
    assert "MEMFIT_PLAN_TIMEOUT_S" in message


def test_the_timeout_is_shorter_once_ranks_are_together_and_can_be_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(TIMEOUT_VARIABLE, raising=False)
    assert plan_timeout_s(later=True) < plan_timeout_s()
    monkeypatch.setenv(TIMEOUT_VARIABLE, "7.5")
    assert plan_timeout_s(later=True) == plan_timeout_s() == 7.5
    for text in ("0", "-1", "nan", "inf", "soon"):
        monkeypatch.setenv(TIMEOUT_VARIABLE, text)
        with pytest.raises(UsageError, match=f"{TIMEOUT_VARIABLE} is '{text}'; give seconds"):
            plan_timeout_s()


def test_a_module_under_ddp_cannot_be_fitted(errors: Ranks) -> None:
    for rank in errors:
        assert rank["wrapped"]["type"] == "UsageError"
        assert "DistributedDataParallel(memfit.fit(model, ...))" in rank["wrapped"]["message"]


@pytest.mark.parametrize("case", ["default", "kept whole", "bfloat16", "bfloat16, kept whole"])
def test_fsdp2_with_a_plan_for_each_block(found: dict[str, Ranks], case: str) -> None:
    for rank in found["fsdp"]:
        plain, fitted = rank[case]["plain"], rank[case]["fitted"]
        assert plain["names"] == fitted["names"]
        for a, b in zip(plain["gradients"], fitted["gradients"], strict=True):
            assert torch.equal(a, b)
        assert fitted["peak"] < plain["peak"]
        assert fitted["within"]


@pytest.mark.slow
def test_the_example_runs_under_torchrun(tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(EXAMPLE)]
    process = start(command, tmp_path)
    output = finish(process)
    assert process.returncode == 0, output
    losses = [float(x) for x in re.findall(r"loss (\d+\.\d+)", output)]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert "all ranks have the same parameters: True" in output
    early, buckets = map(int, re.search(r"buckets sent early: (\d+) of (\d+)", output).groups())
    assert early > buckets / 2


class Tied(nn.Module):
    """An embedding that is the head too, dropout, and a parameter without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 48)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Dropout(0.2), nn.Linear(96, 48))
            for _ in range(4)
        )
        self.norm = nn.BatchNorm1d(48)
        self.frozen = nn.Parameter(torch.ones(48), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids)
        for layer in self.layers:
            h = h + self.frozen * layer(h)
        return self.norm(h.flatten(0, 1)) @ self.embed.weight.t()


def tied() -> tuple[Tied, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (8, 32))
    return Tied(), ids, ids.roll(1, 1).flatten()


def least(model: nn.Module, *args: torch.Tensor) -> int:
    found = memfit.plan(model, args, nn.functional.cross_entropy, budget="100%", cost="analytic")
    return found.smallest_feasible_budget_bytes


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("tight", [False, True])
def test_handing_gradients_over_early_changes_no_bit_and_no_byte(tight: bool) -> None:
    model, ids, target = tied()
    budget = least(model, ids, target) if tight else "100%"
    runs = []
    for overlap in (False, True):
        twin = copy.deepcopy(model)
        fitted = memfit.fit(
            twin, nn.functional.cross_entropy, budget=budget, cost="analytic", overlap=overlap
        )
        torch.manual_seed(5)
        for _ in range(2):  # the second step adds to the gradients of the first
            fitted(ids, target).backward()
        grads = [None if p.grad is None else p.grad.clone() for p in twin.parameters()]
        peak = measure_step(
            lambda fitted=fitted: fitted(ids, target).backward(), reset=fitted.zero_grad
        ).peak_bytes
        runs.append((grads, peak, twin.state_dict()))
    for a, b in zip(runs[0][0], runs[1][0], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    for key, value in runs[0][2].items():
        assert torch.equal(value, runs[1][2][key])
    assert runs[1][1] <= runs[0][1] + 1024  # the ticket, and a little of what came together


def test_gradients_come_one_after_the_other_and_in_part() -> None:
    model, ids, target = tied()
    fitted = memfit.fit(
        model, nn.functional.cross_entropy, budget="100%", cost="analytic", overlap=True
    )
    ready: list[str] = []
    alive: list[bool] = []
    for name, p in model.named_parameters():
        if p.requires_grad:

            def note(_: torch.Tensor, name: str = name) -> None:
                ready.append(name)
                alive.append(model.layers[0][0].weight.grad is not None)

            p.register_post_accumulate_grad_hook(note)
    fitted(ids, target).backward()
    last, first = ready.index("layers.3.0.weight"), ready.index("layers.0.0.weight")
    assert last < first
    assert not alive[last]
    assert ready[-1] == "embed.weight"  # used at both ends
    want = model.layers[2][0].weight.grad.clone()
    torch.manual_seed(9)
    model.zero_grad()
    fitted(ids, target).backward()
    want = model.layers[2][0].weight.grad.clone()
    torch.manual_seed(9)
    (got,) = torch.autograd.grad(fitted(ids, target), [model.layers[2][0].weight])
    assert torch.equal(got, want)


def test_two_calls_share_one_backward_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
    x, y = torch.randn(8, 16), torch.randn(8, 16)
    fitted = memfit.fit(copy.deepcopy(model), budget="100%", cost="analytic", overlap=True)
    for module in (model, fitted):
        (module(x).sum() + module(module(y)).square().sum()).backward()
    for a, b in zip(model.parameters(), fitted.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)


def test_inputs_that_need_gradients_get_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
    x = torch.randn(8, 16)
    found = []
    for module in (model, memfit.fit(model, budget="100%", cost="analytic", overlap=True)):
        leaf = x.clone().requires_grad_()
        module(leaf.sin()).square().sum().backward()
        found.append(leaf.grad)
    assert torch.equal(*found)


def test_refusals_stay() -> None:
    model = nn.Linear(4, 4)
    fitted = memfit.fit(model, budget="100%", cost="analytic", overlap=True)
    loss = fitted(torch.randn(2, 4)).sum()
    with pytest.raises(memfit.ExecutionError, match="retain_graph"):
        loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(UsageError, match="init_process_group"):
        memfit.fit(model, budget="100%", same_plan=True)(torch.randn(2, 4))


def test_piece_sizes() -> None:
    assert piece_bytes([64] * 64) == 64
    assert piece_bytes([2**30]) == 2**20
    assert piece_bytes([]) == 0


def test_blocks_are_replaced_and_budgets_divided() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 8)))
    blocks = [model[0], model[1]]
    fitted = memfit.fit_blocks(model, blocks, budget="100%", cost="analytic")
    assert list(model) == fitted
    x = torch.randn(4, 8)
    model(x).sum().backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    blocks[1](blocks[0](x)).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(got, model.parameters(), strict=True))

    sizes = [72, 24 * 8 + 24 + 24 * 8 + 8]
    shares = [b.absolute_bytes for b in block_budgets(parse_budget(10_000), blocks)]
    assert shares == [10_000 * s // sum(sizes) for s in sizes]
    assert {b.share for b in block_budgets(parse_budget("50%"), blocks)} == {
        parse_budget("50%").share
    }
    with pytest.raises(InvalidBudgetError, match="whole step"):
        memfit.fit_blocks(model, fitted, budget="auto")
    with pytest.raises(UsageError, match="no submodule"):
        memfit.fit_blocks(model, [nn.Linear(2, 2)], budget="50%")
    with pytest.raises(UsageError, match="holds another"):
        memfit.fit_blocks(model, [model[1], next(model[1].children())], budget="50%")
