"""Indexing, gathering and scattering, embeddings."""

from __future__ import annotations

import torch

from programs.draft import Draft, Skip, op


def _numbers(g: Draft, size: int, count: int) -> str:
    return f"torch.tensor({[g.random.randrange(size) for _ in range(count)]})"


def integers(t: torch.Tensor) -> bool:
    """Whether the tensor is one of 64-bit integers."""
    return t.dtype == torch.int64 and t.numel() > 0


@op(2)
def indexed(g: Draft) -> str:
    """Rows, columns or entries by their numbers."""
    x = g.of(1, 2, 3, 4)
    d = g.dim(x)
    size = g.shape(x)[d]
    index = _numbers(g, size, g.random.randint(1, 5))
    front = ":, " * (d % g.tensor(x).ndim)
    form = g.choose(
        "{x}[{front}{i}]",
        "{x}.index_select({d}, {i})",
        "{x}[{front}{i}, ...]",
        "torch.take({x}, {i})",
        "{x}[{front}{list}]",
        "torch.roll({x}, 1)[{front}{i}]",
    )
    listed = index.removeprefix("torch.tensor(").removesuffix(")")
    return g.apply(form.format(x=x, d=d, i=index, front=front, list=listed))


@op(1.5)
def gathered(g: Draft) -> str:
    """Entries chosen along a dimension by an order that the model computes."""
    x = g.of(1, 2, 3)
    d = g.dim(x)
    form = g.choose(
        "{x}.gather({d}, {x}.argsort({d}))",
        "torch.take_along_dim({x}, {x}.detach().argmax({d}, keepdim=True), {d})",
        "{x}.gather({d}, torch.zeros({x}.shape, dtype=torch.int64))",
        "{x}.index_select({d}, {x}.detach().argmax({d}).flatten() % {n})",
    )
    return g.apply(form.format(x=x, d=d, n=g.shape(x)[d]))


@op(3)
def scattered(g: Draft) -> str:
    """Values added or put where indices say."""
    x = g.of(1, 2, 3)
    d = g.dim(x)
    size = g.shape(x)[d]
    count = g.random.randint(1, size)
    index = _numbers(g, size, count)
    distinct = f"torch.tensor({g.random.sample(range(size), count)})"
    part = f"{x}.narrow({d}, 0, {count})"
    whole = f"({index.replace('tensor(', 'tensor(')}.view({_along(g, x, d)}).expand({part}.shape))"
    form = g.choose(
        "{x}.index_add({d}, {i}, {p})",
        "{x}.index_add({d}, {i}, {p}, alpha=0.5)",
        "{x}.index_copy({d}, {u}, {p} * 2)",
        "{x}.index_fill({d}, {i}, 0.5)",
        "{x}.scatter({d}, {w}, 0.3)",
        "torch.zeros_like({x}).scatter_add({d}, {w}, {p})",
        "{x}.scatter_add({d}, {w}, {p}.sin())",
        '{x}.scatter_reduce({d}, {w}, {p}, reduce="amax")',
        '{x}.scatter_reduce({d}, {w}, {p}, reduce="mean", include_self=False)',
        '{x}.scatter_reduce({d}, {w}, {p}, reduce="sum")',
        '{x}.index_reduce({d}, {i}, {p}, "amax")',
        "torch.select_scatter({x}, {x}.select({d}, 0).sin(), {d}, 0)",
        "torch.slice_scatter({x}, {p} * 0.5, {d}, 0, {n})",
        "torch.select_scatter({x}, {x}.select({d}, 0).mean().expand({x}.select({d}, 0).shape), "
        "{d}, -1)",
        "torch.masked_scatter({x}, {x} > 0, {x}.flip({d}))",
        "torch.where(torch.arange({size}).view({along}) < {n}, {x}, 0.1)",
    )
    return g.apply(
        form.format(
            x=x,
            d=d,
            i=index,
            u=distinct,
            p=part,
            w=whole,
            n=count,
            size=size,
            along=_along(g, x, d),
        )
    )


def _along(g: Draft, x: str, d: int) -> str:
    shape = [1] * g.tensor(x).ndim
    shape[d] = -1
    return ", ".join(map(str, shape))


@op(1.5)
def put(g: Draft) -> str:
    """A write through indices into a fresh copy."""
    x = g.of(1, 2, 3)
    size, out = g.shape(x)[0], g.new()
    index = _numbers(g, size, 2)
    write = g.choose(
        "{o}[{i}] = 0.5",
        "{o}[{i}] = {x}[:1] * 0.5",
        "{o}[{i}] += 1.0",
        "{o}.index_put_(({i},), {x}[:1].sin(), accumulate=True)",
        "{o}.index_add_(0, {i}, {x}[:1].expand(2, *{x}.shape[1:]))",
        "{o}.index_copy_(0, torch.tensor([0]), {x}[-1:])",
        "{o}.scatter_(0, torch.zeros({x}.shape, dtype=torch.int64)[:1], {x}[-1:])",
        "{o}.scatter_add_(0, torch.zeros({x}.shape, dtype=torch.int64), {x}.cos())",
        "{o}.masked_scatter_({x} > 0, {x}.cos())",
    )
    copy = g.choose(f"{x}.clone()", f"torch.zeros_like({x})", f"{x} * 0.5")
    return f"{out} = {copy}\n{write.format(o=out, x=x, i=index)}"


@op(2)
def embedding(g: Draft) -> str:
    """Rows of a table; the same table more than once."""
    rows, width = g.choose(5, 8), g.choose(4, 8)
    ids = _ids(g, rows)
    options = g.choose("", "", ", padding_idx=0", ", scale_grad_by_freq=True", ", max_norm=0.8")
    table = g.module(f"nn.Embedding({rows}, {width}{options})")
    form = g.choose("{t}({i})", "{t}({i}) + {t}({i}.flip(0))", "F.embedding({i}, {t}.weight)")
    return g.apply(form.format(t=table, i=ids))


@op(0.7)
def embedding_bag(g: Draft) -> str:
    """Sums of rows of a table."""
    rows, width = g.choose(5, 8), g.choose(4, 8)
    mode = g.choose("sum", "mean", "max")
    ids = g.input(f"torch.randint(0, {rows}, ({g.choose(2, 3)}, 4))")
    return g.apply(f"{g.module(f'nn.EmbeddingBag({rows}, {width}, mode={mode!r})')}({ids})")


def _ids(g: Draft, rows: int) -> str:
    if g.chance(0.5):
        try:
            name = g.pick(lambda t: integers(t) and t.ndim <= 2)
            return f"({name} % {rows})"
        except Skip:
            pass
    shape = g.choose("4,", "2, 3", "3, 4", "1, 5")
    return g.input(f"torch.randint(0, {rows}, ({shape}))")


@op(1)
def counted(g: Draft) -> str:
    """Integers that are computed, and used as indices or numbers."""
    x = g.of(1, 2)
    form = g.choose(
        "{x} * torch.bucketize({x}.detach(), torch.tensor([-0.5, 0.0, 0.5]))",
        "{x} + F.one_hot({x}.detach().argmax(-1), {n}).to({x}.dtype)",
        "{x}.mul(torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), {x}.detach().float()))",
        "{x} * (torch.arange({n}) // 2)",
        "{x} * torch.isfinite({x})",
        "{x}.masked_fill(torch.arange({n}) % 2 == 0, 0.0)",
        "{x} * torch.triu(torch.ones({n}, {n}, dtype={x}.dtype))[0]",
        "{x}[..., torch.tril_indices({n}, {n})[0]]",
        "{x}.argsort(-1).argsort(-1) * {x}",
        "torch.histc({x}.detach().float(), 4).sum() * {x}",
        "torch.bincount(torch.arange({n}), minlength={n}) * {x}",
    )
    return g.apply(form.format(x=x, n=g.shape(x)[-1]))


@op(0.25)
def of_data_dependent_size(g: Draft) -> str:
    """What may be refused: sizes and branches that depend on data."""
    x = g.of(1, 2)
    form = g.choose(
        "{x}[{x} > 0].sum() + {x}",
        "{x} * {x}.detach().max().item()",
        "({x} if bool({x}.sum() > 0) else {x} * 2)",
        "{x}.nonzero().sum() + {x}",
        "{x}.sin() if {x}.isfinite().all() else {x}",
        "{x} + torch.unique(({x}.detach() > 0).int()).sum()",
        "{x} * len({x}.tolist())",
        "{x} * torch.arange(2, {x}.ndim + 2).tolist()[0]",
    )
    return g.apply(form.format(x=x))
