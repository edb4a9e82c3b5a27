"""Ops that tracing would take apart into other arithmetic give eager's bits."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memfit

Outputs = list[torch.Tensor]
LEFT = ((5,), (7, 5), (4, 7, 5), (3, 1, 7, 5))
RIGHT = ((5,), (5, 6), (4, 5, 6), (2, 4, 5, 6))


def products(scale: torch.Tensor) -> Outputs:
    """Every pair of dimensions, with a gradient on either side or none, transposed or not."""
    made = []
    for left, right in itertools.product(LEFT, RIGHT):
        if len(left) == len(right) == 4:
            continue
        for trained, turned in itertools.product((0, 1, 2), (False, True)):
            a, b = torch.randn(left), torch.randn(right)
            if turned and len(left) > 1:
                a = a.mT.contiguous().mT
            if turned and len(right) > 1:
                b = b.mT.contiguous().mT
            made.append((a * scale if trained == 1 else a) @ (b * scale if trained == 2 else b))
    return made


def spectra(scale: torch.Tensor) -> Outputs:
    """Values of decompositions whose vectors nobody needs, and the same with a gradient."""
    made = []
    for factor in (1.0, scale):
        a = torch.randn(2, 9, 6) * factor
        made += [
            torch.linalg.svdvals(a),
            torch.linalg.eigvalsh(a.mT @ a),
            torch.linalg.matrix_norm(a, 2),
            torch.linalg.matrix_norm(a, "nuc"),
            torch.linalg.cond(a),
        ]
    return made


def margins(scale: torch.Tensor) -> Outputs:
    """Losses with kernels of their own."""
    x, classes = torch.randn(8, 10) * scale, torch.randint(0, 10, (8,))
    many = torch.randint(0, 10, (8, 10))
    return [
        F.multi_margin_loss(x, classes),
        F.multi_margin_loss(x, classes, p=2, weight=torch.rand(10), reduction="none"),
        F.multilabel_margin_loss(x, many),
        F.multilabel_margin_loss(x, many, reduction="none"),
    ]


class Model(nn.Module):
    """A list of results that depend on one parameter, and on what is drawn."""

    def __init__(self, results: Callable[[torch.Tensor], Outputs]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.results = results

    def forward(self) -> Outputs:
        return self.results(self.scale)


def trained(step: Callable[[], Outputs], model: Model) -> Outputs:
    """What comes out, and the gradient."""
    torch.manual_seed(1)
    outputs = step()
    sum(t.double().sin().sum() for t in outputs if t.requires_grad).backward()
    return [*outputs, model.scale.grad]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("results", [products, spectra, margins])
def test_results_are_eagers_bit_for_bit(results: Callable[[torch.Tensor], Outputs]) -> None:
    model = Model(results)
    plain = copy.deepcopy(model)
    wanted = trained(plain, plain)
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    for number, (mine, theirs) in enumerate(zip(trained(fitted, model), wanted, strict=True)):
        assert torch.equal(mine, theirs), (number, tuple(mine.shape))
