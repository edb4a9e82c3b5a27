"""Sparse gradients and sparse tensors: the rest of the model is planned, `.grad` is eager's."""

from __future__ import annotations

import copy
import gc
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit
from memfit.errors import CaptureError
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.opaque import record

ROWS, WIDTH = 500, 32


class Tail(nn.Module):
    """What is planned: layers that are traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(4))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return self.layers(x).square().mean()


class Looked(Tail):
    """An embedding, or a bag of such, before it."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return super().forward(self.table(x))


class Functional(Tail):
    """Looks up in a parameter by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ROWS, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return super().forward(lookup(x, self.weight))


def lookup(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows of a table, whose gradient is sparse."""
    return F.embedding(x, weight, sparse=True)


class Twice(Tail):
    """One table, looked up in twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH, sparse=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return super().forward(self.table(x) * self.table(x.flip(0)))


class Tied(Tail):
    """The table is read as a matrix, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH, sparse=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        scores = F.linear(self.layers(self.table(x)), self.table.weight)
        return F.cross_entropy(scores.flatten(0, -2), x.flatten())


class Scaled(Tail):
    """Looks up in what is computed from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ROWS, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return super().forward(lookup(x, 2 * self.weight))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "an embedding": lambda: Looked(nn.Embedding(ROWS, WIDTH, sparse=True)),
    "padding": lambda: Looked(nn.Embedding(ROWS, WIDTH, sparse=True, padding_idx=3)),
    "a bag": lambda: Looked(nn.EmbeddingBag(ROWS, WIDTH, sparse=True, mode="mean")),
    "a function": Functional,
    "twice": Twice,
    "tied": Tied,
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randint(0, ROWS, (64, 8))


def gradients(model: nn.Module) -> dict[str, Any]:
    """Of all parameters: layout, and the parts of sparse ones, in their order."""
    found: dict[str, Any] = {}
    for name, p in model.named_parameters():
        g = p.grad
        assert g is not None, name
        sparse = g.layout is torch.sparse_coo
        found[name] = (g._indices(), g._values(), g.is_coalesced()) if sparse else g
    return found


def assert_same(ours: nn.Module, plain: nn.Module) -> None:
    """Bit for bit."""
    torch.testing.assert_close(gradients(ours), gradients(plain), rtol=0, atol=0)


def assert_trains(model: nn.Module, *args: Any, budget: str = "100%", **options: Any) -> Any:
    """Two steps, gradients added up, are plain PyTorch's."""
    plain = copy.deepcopy(model)
    fitted = memfit.fit(model, budget=budget, cost="analytic", **options)
    for _ in range(2):
        ours, theirs = fitted(*args), plain(*args)
        assert torch.equal(ours, theirs)
        ours.backward()
        theirs.backward()
        assert_same(model, plain)
    return fitted


@pytest.mark.sampled(4)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_sparse_as_in_plain_pytorch(
    name: str, accumulate: bool, x: torch.Tensor
) -> None:
    fitted = assert_trains(MODELS[name](), x, accumulate=accumulate)
    assert any("runs as one op" in note for note in fitted.plan.notes)


def test_only_the_embedding_is_opaque(x: torch.Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model = Looked(nn.Sequential(nn.Embedding(ROWS, WIDTH, sparse=True), nn.Tanh()))
    with caplog.at_level(logging.WARNING, "memfit"):
        assert_trains(model, x)
    (told,) = [r.getMessage() for r in caplog.records if "cannot be traced" in r.getMessage()]
    assert "table.0 (Embedding)" in told


def test_the_rest_is_planned_and_the_peak_holds() -> None:
    model = MODELS["an embedding"]()
    x = torch.randint(0, ROWS, (512, 8))
    least = memfit.plan(model, (x,), budget="1GiB").smallest_feasible_budget_bytes
    fitted = memfit.fit(model, budget=least)
    measured = measure_step(
        lambda: fitted(x).backward(), reset=lambda: model.zero_grad(set_to_none=True)
    )
    assert fitted.plan.overhead > 0
    assert fitted.graph.resident_bytes + measured.peak_bytes <= fitted.plan.budget_bytes
    gc.collect()
    assert not record._owners


def test_a_sparse_gradient_counts_as_what_it_takes() -> None:
    rows = 100_000  # of which few are read
    model = Looked(nn.Embedding(rows, WIDTH, sparse=True))
    plan = memfit.plan(model, (torch.randint(0, rows, (64, 8)),), budget="100%", cost="analytic")
    table = 4 * rows * WIDTH
    assert table < plan.peak_bytes < 1.1 * table


@pytest.mark.sampled(2)
@pytest.mark.parametrize("optimizer", [torch.optim.SparseAdam, torch.optim.SGD])
def test_optimizers_take_them(optimizer: Any, x: torch.Tensor) -> None:
    model = MODELS["an embedding"]()
    plain = copy.deepcopy(model)
    fitted = memfit.fit(model, budget="90%", cost="analytic")
    optimizers = [optimizer([m.table.weight], lr=0.1) for m in (model, plain)]
    for _ in range(3):
        for call, one in zip((fitted, plain), optimizers, strict=True):
            one.zero_grad()
            call(x).backward()
            one.step()
    assert torch.equal(model.table.weight, plain.table.weight)


def test_where_it_goes_on_what_is_around_it_is_taken(x: torch.Tensor) -> None:
    assert_trains(Scaled(), x)


def test_fullgraph_refuses_it_by_the_line(x: torch.Tensor) -> None:
    model = MODELS["an embedding"]()
    with pytest.raises(CaptureError, match=r"table.*sparse=False"):
        memfit.fit(model, budget="100%", cost="analytic", fullgraph=True)(x)


# Sparse tensors.


class Convolved(nn.Module):
    """Layers around a sum over neighbours."""

    def __init__(self, neighbours: torch.Tensor | None = None) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.register_buffer("neighbours", neighbours)

    def forward(self, x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        """The features of neighbours, added up."""
        y = self.down(torch.tanh(self.up(x)))
        return total(self.neighbours if given is None else given, y)


def total(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """By a sparse matrix."""
    return torch.sparse.mm(matrix, x)


class Graph(nn.Module):
    """Sums over neighbours, one after the other."""

    def __init__(self, neighbours: torch.Tensor | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Convolved(neighbours) for _ in range(3))

    def forward(self, x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        """The loss."""
        for part in self.parts:
            x = torch.tanh(part(x, given))
        return x.square().mean()


class Asking(nn.Module):
    """Takes another way for what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, given: Any) -> torch.Tensor:
        """The loss."""
        y = self.layer(x)
        if isinstance(given, torch.Tensor) and given.is_sparse:
            y = total(given, y)
        return y.square().mean()


def adjacency(number: int, layout: torch.layout = torch.sparse_coo) -> torch.Tensor:
    """A sparse matrix with as many elements for each number."""
    torch.manual_seed(number)
    at = torch.randperm(100 * 100)[:400]
    matrix = torch.sparse_coo_tensor(
        torch.stack([at // 100, at % 100]), torch.randn(400), (100, 100), check_invariants=False
    ).coalesce()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that support is in beta
        return matrix if layout is torch.sparse_coo else matrix.to_sparse(layout=layout)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_matrix_may_be_given(layout: torch.layout) -> None:
    model = Graph()
    fitted = assert_trains(model, torch.randn(100, WIDTH), adjacency(1, layout), budget="90%")
    notes = [note for note in fitted.plan.notes if "total()" in note]
    assert len(fitted.plans) == 1
    assert notes


def test_each_step_has_its_own_matrix() -> None:
    model = Graph()
    plain = copy.deepcopy(model)
    x = torch.randn(100, WIDTH)
    least = memfit.plan(model, (x, adjacency(1)), budget="1GiB").smallest_feasible_budget_bytes
    fitted = memfit.fit(model, budget=least)
    for call in (fitted, plain):  # the first one's backward pass comes after the second's forward
        losses = [call(x, adjacency(i)) for i in range(3)]
        for loss in losses:
            loss.backward()
    assert len(fitted.plans) == 1
    assert_same(model, plain)


def test_a_sparse_buffer_may_be_held() -> None:
    assert_trains(Graph(adjacency(1)), torch.randn(100, WIDTH), budget="90%")


def test_code_that_asks_what_it_is_given_sees_the_tensor() -> None:
    assert_trains(Asking(), torch.randn(100, WIDTH), adjacency(1))


def test_a_sparse_tensor_that_is_trained_is_refused() -> None:
    matrix = adjacency(1).requires_grad_()
    with pytest.raises(CaptureError, match="sparse") as caught:
        memfit.fit(Graph(), budget="100%", cost="analytic")(torch.randn(100, WIDTH), matrix)
    assert "\n" not in str(caught.value)
