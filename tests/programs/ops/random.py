"""Ops that draw from the random generator."""

from __future__ import annotations

from programs.draft import Draft, op

DRAWS = (
    "F.dropout({x}, 0.2)",
    "F.dropout({x}, 0.5)",
    "F.dropout({x}, 0.0)",
    "F.dropout({x}, 0.3, training=self.training)",
    "F.alpha_dropout({x}, 0.3, training=True)",
    "F.feature_alpha_dropout({x}, 0.3, training=True)",
    "torch.dropout({x}, 0.4, True)",
    "torch.native_dropout({x}, 0.4, True)[0]",
    "{x} * torch.rand_like({x})",
    "{x} + 0.1 * torch.randn_like({x})",
    "{x} * torch.bernoulli(torch.full_like({x}, 0.7))",
    "{x} * torch.bernoulli({x}.detach().sigmoid())",
    "{x} + torch.rand({x}.shape[-1:], dtype={x}.dtype)",
    "{x} * torch.randint(0, 3, {x}.shape)",
    "{x} * torch.randint_like({x}, 1, 4)",
    "{x} + torch.normal(0.0, 0.1, {x}.shape, dtype={x}.dtype)",
    "{x} + torch.normal({x}.detach(), 0.1)",
    "{x}[torch.randperm({x}.shape[0])]",
    "{x} * {x}.new_empty({x}.shape).uniform_(0.5, 1.5)",
    "{x} * torch.empty_like({x}).exponential_()",
    "{x} * torch.empty_like({x}).bernoulli_(0.6)",
    "{x} + torch.zeros_like({x}).normal_(0, 0.1)",
    "F.gumbel_softmax({x}, dim=-1)",
    "F.gumbel_softmax({x}, tau=0.7, hard=True, dim=-1)",
    "torch.rrelu({x}, 0.1, 0.4, True)",
    "{x} * (torch.rand(()) + 0.5).to({x}.dtype)",
    "torch.poisson({x}.detach().abs()) * {x}",
    "F.dropout(F.dropout({x}, 0.2), 0.2)",
    "F.dropout({x}, 0.3) + F.dropout({x}, 0.3)",
    "torch.empty_like({x}).geometric_(0.5) * 0.1 * {x}",
    "torch.empty_like({x}).log_normal_(0.0, 0.3) * {x}",
    "torch.empty_like({x}).random_(0, 4) * {x}",
    "torch.empty_like({x}).cauchy_().clamp(-1, 1) * {x}",
)


@op(5)
def draw(g: Draft) -> str:
    """Noise of many kinds."""
    return g.apply(g.choose(*DRAWS).format(x=g.of(1, 2, 3, 4)))


@op(1.5)
def dropout_layer(g: Draft) -> str:
    """A dropout layer."""
    x = g.of(2, 3, 4)
    kind = {2: ["Dropout"], 3: ["Dropout", "Dropout1d"], 4: ["Dropout", "Dropout2d"]}
    name = g.choose(*kind[g.tensor(x).ndim], "AlphaDropout")
    made = f"nn.{name}({g.choose(0.1, 0.3, 0.5)}{g.choose('', ', inplace=True')})"
    return g.apply(f"{g.module(made)}({x}{g.choose('', ' * 1')})")


@op(0.7)
def draw_nobody_reads(g: Draft) -> str:
    """A draw whose value is dropped."""
    return g.choose("torch.rand(5)", "F.dropout(torch.ones(7), 0.5)", "torch.randn(3).sum()")


@op(0.7)
def sampled_rows(g: Draft) -> str:
    """Rows chosen at random by weights that the model computes."""
    x = g.of(2)
    return g.apply(f"{x}.gather(1, torch.multinomial({x}.detach().softmax(1), 2))")
