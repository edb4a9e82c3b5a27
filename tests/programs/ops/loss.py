"""Losses: what a program ends in, and some that appear inside of it."""

from __future__ import annotations

import torch

from programs.draft import Draft, Skip, floating, op

__all__ = ["DISTANCES", "class_losses"]

DISTANCES = (
    "F.mse_loss({a}, {b})",
    "F.l1_loss({a}, {b})",
    "F.smooth_l1_loss({a}, {b}, beta=0.5)",
    "F.huber_loss({a}, {b})",
    'F.mse_loss({a}, {b}, reduction="sum")',
    'F.l1_loss({a}, {b}, reduction="none").mean()',
    "F.binary_cross_entropy_with_logits({a}, {b}.sigmoid())",
    "F.binary_cross_entropy({a}.sigmoid(), {b}.sigmoid())",
    'F.kl_div(F.log_softmax({a}, -1), F.softmax({b}, -1), reduction="batchmean")',
    "F.kl_div(F.log_softmax({a}, -1), F.log_softmax({b}, -1), log_target=True)",
    "F.poisson_nll_loss({a}.clamp(max=2), {b}.abs())",
    "F.gaussian_nll_loss({a}, {b}, {a}.detach().abs() + 0.5)",
    "F.soft_margin_loss({a}, {b}.sign())",
    "F.hinge_embedding_loss({a}, {b}.sign())",
    "F.margin_ranking_loss({a}, {b}, {b}.sign())",
    "F.cosine_embedding_loss({a}.reshape(-1, {n}), {b}.reshape(-1, {n}) + 0.5, torch.ones({r}))",
    "F.triplet_margin_loss({a}, {b}, {a} * 0.5 + 1.0)",
    "((({a} - {b}) ** 2) * 0.5).mean()",
    "({a} * {b}).sum()",
    "F.cross_entropy({a}.reshape(-1, {n}), F.softmax({b}.reshape(-1, {n}), -1))",
    "F.multilabel_soft_margin_loss({a}.reshape(-1, {n}), ({b}.reshape(-1, {n}) > 0).to({a}.dtype))",
)


def class_losses(g: Draft, x: str) -> str:
    """A loss of classes, whose target is a new input."""
    shape = g.shape(x)
    if len(shape) < 2 or shape[1] < 2:
        raise Skip
    classes = shape[1]
    dims = ", ".join(map(str, (shape[0], *shape[2:])))
    y = g.input(f"torch.randint(0, {classes}, ({dims},))")
    weight = f"torch.linspace(0.5, 1.5, {classes}, dtype={g.tensor(x).dtype})"
    forms = [
        "F.cross_entropy({x}, {y})",
        "F.cross_entropy({x}, {y}, label_smoothing=0.1)",
        "F.cross_entropy({x}, {y}, ignore_index=0)",
        f"F.cross_entropy({{x}}, {{y}}, weight={weight})",
        'F.cross_entropy({x}, {y}, reduction="none").sum()',
        "F.nll_loss(F.log_softmax({x}, 1), {y})",
        "nn.CrossEntropyLoss()({x}, {y})",
    ]
    if len(shape) == 2:
        forms += ["F.multi_margin_loss({x}, {y})", "F.multilabel_margin_loss({x}, {y}[:, None] * "
                  "torch.ones({x}.shape, dtype=torch.int64))"]  # fmt: skip
    return str(g.choose(*forms)).format(x=x, y=y)


@op(1.5)
def distance(g: Draft) -> str:
    """A loss between two values, as a value of its own."""
    x = g.of(1, 2, 3)
    shape, dtype = g.tensor(x).shape, g.tensor(x).dtype
    y = g.pick(lambda t: t.shape == shape and t.dtype == dtype)
    n = shape[-1]
    text = g.choose(*DISTANCES).format(a=x, b=y, n=n, r=g.tensor(x).numel() // n)
    return g.apply(text)


@op(1)
def unreduced(g: Draft) -> str:
    """A loss of each entry, which goes on as a value."""
    x = g.of(1, 2, 3, 4)
    shape, dtype = g.tensor(x).shape, g.tensor(x).dtype
    y = g.pick(lambda t: t.shape == shape and t.dtype == dtype)
    name = g.choose("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
    return g.apply(f'F.{name}({x}, {y}, reduction="none")')


@op(0.8)
def of_classes(g: Draft) -> str:
    """A loss of classes, as a value of its own."""
    x = g.pick(lambda t: floating(t) and t.dtype in (torch.float32, torch.float64) and t.ndim >= 2)
    return g.apply(class_losses(g, x))
