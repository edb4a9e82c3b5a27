"""Linear layers, products, attention, recurrent layers, linear algebra."""

from __future__ import annotations

import torch

from programs.draft import Draft, Skip, floating, op


def _plain(g: Draft, *ndims: int) -> str:
    """A value of the program's own type."""
    return g.pick(lambda t: floating(t) and t.dtype == g.default and t.ndim in ndims)


@op(7)
def linear(g: Draft) -> str:
    """A linear layer."""
    x = _plain(g, 1, 2, 3, 4)
    bias = g.choose("", "", ", bias=False")
    layer = g.module(f"nn.Linear({g.shape(x)[-1]}, {g.choose(3, 4, 8, 12)}{bias})")
    return g.apply(
        g.choose("{m}({x})", "torch.relu({m}({x}))", "{m}({x}).tanh()").format(m=layer, x=x)
    )


@op(1.5)
def reused(g: Draft) -> str:
    """A square layer that is used twice, or whose weight is used elsewhere too."""
    x = _plain(g, 2, 3)
    width = g.shape(x)[-1]
    layer = g.module(f"nn.Linear({width}, {width})")
    form = g.choose(
        "{m}({m}({x}).tanh())",
        "F.linear({m}({x}), {m}.weight.t())",
        "{m}({x}) @ {m}.weight",
        "{m}({x}) * {m}.weight.norm()",
        "{m}({x}) + {m}.bias",
        "F.linear({x}, {m}.weight + 0.1, {m}.bias)",
        "torch.addmm({m}.bias, {x}.reshape(-1, {w}), {m}.weight)",
    )
    return g.apply(form.format(m=layer, x=x, w=width))


@op(2.5)
def product(g: Draft) -> str:
    """A matrix product with a parameter or with itself."""
    x = g.of(2, 3)
    shape, dtype = g.shape(x), g.tensor(x).dtype
    n = g.choose(3, 4, 8)
    p = g.parameter((shape[-1], n), dtype)
    form = g.choose(
        "{x} @ {p}",
        "torch.matmul({p}.t(), {x}.mT)",
        "{x} @ {x}.mT",
        "{x}.mT @ {x}",
        'torch.einsum("...i,ij->...j", {x}, {p})',
        'torch.einsum("...i,ij->j...", {x}, {p})',
        'torch.einsum("ni,nj->ij", {x}, {x} * 2)',
        'torch.einsum("bni,bmi->bnm", {x}, {x})',
        "torch.tensordot({x}, {p}, 1)",
        "F.linear({x}, {p}.t())",
        "torch.bmm({x}, {p}.expand({x}.shape[0], -1, -1))",
        "torch.baddbmm(torch.zeros(1, dtype={x}.dtype), {x}, "
        "{p}.expand({x}.shape[0], -1, -1), beta=0.5)",
        "torch.addmm({p}[0], {x}, {p}, alpha=0.5)",
        "torch.chain_matmul({x}, {p})",
        "{x}.matmul({p}[:, 0])",
        "torch.mv({x}, {p}[:, 0])",
        "torch.outer({x}[..., 0].flatten(), {p}[0])",
        "torch.kron({x}, {p}[:1])",
        "torch.cdist({x}, {p}.t().expand(*{x}.shape[:-2], -1, -1) + 3.0)",
        "torch.inner({x}, {p}.t())",
        "F.bilinear({x}, {x}, torch.ones(2, {x}.shape[-1], {x}.shape[-1], dtype={x}.dtype) * 0.1)",
        "F.cosine_similarity({x}, {x}.flip(0) + 0.5, dim=-1)",
        "F.pairwise_distance({x}, {x}.flip(-1) + 1.0)",
    )
    return g.apply(form.format(x=x, p=p))


@op(2)
def attention(g: Draft) -> str:
    """Scaled dot products, by PyTorch's function or by hand."""
    x = g.of(3, 4)
    form = g.choose(
        "F.scaled_dot_product_attention({x}, {x}, {x})",
        "F.scaled_dot_product_attention({x}, {x} * 2, {x}.sin(), is_causal=True)",
        "F.scaled_dot_product_attention({x}, {x}, {x}, dropout_p=0.2)",
        "F.scaled_dot_product_attention({x}, {x}, {x}, "
        "attn_mask=torch.ones({n}, {n}, dtype=torch.bool).tril())",
        "F.scaled_dot_product_attention({x}, {x}, {x}, "
        "attn_mask=torch.zeros({n}, {n}, dtype={x}.dtype).fill_diagonal_(-1.0))",
        "torch.softmax({x} @ {x}.mT / 2.0, -1) @ {x}",
        "F.dropout(torch.softmax(({x} @ {x}.mT)"
        ".masked_fill(torch.ones({n}, {n}).triu(1) > 0, -1e9), -1), 0.1) @ {x}",
        "F.scaled_dot_product_attention({x}[:, :1], {x}, {x}, scale=0.3)",
        "F.scaled_dot_product_attention("
        "{x}.transpose(0, 1), {x}.transpose(0, 1), {x}.transpose(0, 1))",
    )
    return g.apply(form.format(x=x, n=g.shape(x)[-2]))


@op(1.2)
def attention_layer(g: Draft) -> str:
    """A layer of several heads, or a whole transformer block."""
    x = _plain(g, 3)
    width = g.shape(x)[-1]
    if width % 2:
        raise Skip
    drop = g.choose("0.0", "0.1")
    form = g.random.randrange(4)
    if form < 2:
        made = f"nn.MultiheadAttention({width}, 2, dropout={drop}, batch_first={g.chance(0.7)})"
        layer = g.module(made)
        ask = g.choose("", ", need_weights=False", ", average_attn_weights=False")
        return g.apply(f"{layer}({x}, {x}, {x}{ask})[0]")
    if form == 2:
        made = f"nn.TransformerEncoderLayer({width}, 2, 8, dropout={drop}, batch_first=True"
        made += f", norm_first={g.chance(0.5)}, activation={g.choose('relu', 'gelu')!r})"
        return g.apply(f"{g.module(made)}({x})")
    made = f"nn.TransformerDecoderLayer({width}, 2, 8, dropout={drop}, batch_first=True)"
    return g.apply(f"{g.module(made)}({x}, {x} * 0.5)")


@op(1)
def heads(g: Draft) -> str:
    """One projection to queries, keys and values, cut into heads."""
    x = _plain(g, 3)
    width = g.shape(x)[-1]
    if width % 2:
        raise Skip
    layer = g.module(f"nn.Linear({width}, {3 * width})")
    q, k, v, out = (g.new() for _ in range(4))
    call = f"F.scaled_dot_product_attention({q}, {k}, {v}{g.choose('', ', is_causal=True')})"
    return (
        f"{q}, {k}, {v} = {layer}({x}).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)\n"
        f"{out} = {call}.transpose(1, 2).flatten(2)"
    )


@op(1)
def recurrent(g: Draft) -> str:
    """A recurrent layer."""
    x = _plain(g, 3)
    kind = g.choose("LSTM", "GRU", "RNN")
    options = g.choose(
        "", ", batch_first=True", ", bidirectional=True", ", num_layers=2, dropout=0.2",
        ", bias=False",
    )  # fmt: skip
    layer = g.module(f"nn.{kind}({g.shape(x)[-1]}, {g.choose(3, 4)}{options})")
    if g.chance(0.3):
        form = f"{layer}({x})[1][0]" if kind == "LSTM" else f"{layer}({x})[1]"
        return g.apply(form)
    return g.apply(f"{layer}({x})[0]")


@op(1)
def cells(g: Draft) -> str:
    """A cell over time, its states collected."""
    x = _plain(g, 3)
    width = g.shape(x)[-1]
    kind = g.choose("GRUCell", "RNNCell", "LSTMCell")
    cell = g.module(f"nn.{kind}({width}, {width})")
    h, out, seen = g.new(), g.new(), f"seen{g.count}"
    state = f"{x}[0] * 0"
    if kind == "LSTMCell":
        c = g.new()
        step = f"{h}, {c} = {cell}(row, ({h}, {c}))"
        state = f"{x}[0] * 0\n{c} = {x}[0] * 0"
    else:
        step = f"{h} = {cell}(row, {h})"
    return (
        f"{h} = {state}\n{seen} = []\nfor row in {x}:\n    {step}\n"
        f"    {seen}.append({h})\n{out} = torch.stack({seen})"
    )


@op(1.5)
def linear_algebra(g: Draft) -> str:
    """Inverses, solutions, factorisations, of well-conditioned matrices."""
    x = g.pick(
        lambda t: (
            floating(t)
            and t.dtype in (torch.float32, torch.float64)
            and t.ndim in (2, 3)
            and t.shape[-2] <= 12
            and t.shape[-1] <= 12
        )
    )
    n = g.shape(x)[-2]
    a = f"(torch.eye({n}, dtype={x}.dtype) * 4 + torch.tanh({x} @ {x}.mT) * 0.2)"
    form = g.choose(
        "torch.linalg.inv({a})",
        "torch.linalg.solve({a}, {x})",
        "torch.linalg.cholesky({a})",
        "torch.linalg.det({a} * 0.25)",
        "torch.linalg.slogdet({a})[1]",
        "torch.linalg.qr({a})[0]",
        "torch.linalg.matrix_exp({a} * 0.1)",
        "torch.linalg.solve_triangular({a}.tril(), {x}, upper=False)",
        "torch.linalg.matrix_norm({a})",
        "torch.linalg.lu_factor({a})[0]",
        "torch.linalg.matrix_power({a} * 0.2, 2)",
        "torch.cholesky_solve({x}, torch.linalg.cholesky({a}))",
        "torch.linalg.pinv({a})",
        "torch.linalg.eigvalsh({a} + torch.diag(torch.arange({n}, dtype={x}.dtype)))",
        "torch.linalg.svdvals({a} + torch.diag(torch.arange({n}, dtype={x}.dtype)))",
        "torch.linalg.cross({x}[..., :3], {x}[..., -3:])",
        "torch.linalg.multi_dot([{x}, {x}.mT, {x}])",
        "torch.linalg.vander({x}[..., 0].tanh(), N=3)",
        "torch.trace({a}) * {x}",
        "torch.linalg.lstsq({a}, {x}).solution",
        "torch.linalg.inv_ex({a})[0]",
        "torch.linalg.eigh({a} + torch.diag(torch.arange({n}, dtype={x}.dtype)))[0]",
    )
    return g.apply(form.format(a=a, x=x))


@op(1)
def transformed(g: Draft) -> str:
    """Fourier transforms and complex numbers."""
    x = g.pick(
        lambda t: floating(t) and t.dtype in (torch.float32, torch.float64) and t.ndim in (1, 2, 3)
    )
    form = g.choose(
        "torch.fft.rfft({x}).abs()",
        "torch.fft.fft({x}).real",
        "torch.fft.irfft(torch.fft.rfft({x}) * 0.5, n={n})",
        "torch.view_as_real(torch.fft.fft({x}))",
        "torch.fft.ifft({x}).imag + {x}",
        "torch.fft.fft2({x}).real * 0.1",
        "torch.fft.fftshift({x})",
        "torch.polar({x}.abs() + 0.5, {x}).real",
        "torch.complex({x}, {x} * 2).abs()",
        "(torch.complex({x}, {x} + 1) * torch.complex({x}, -{x})).real",
        "torch.view_as_complex(torch.stack([{x}, {x} + 1], -1)).conj().imag",
        "torch.complex({x}, {x}.sin()).exp().real.clamp(-5, 5)",
        "torch.fft.rfft({x}, norm='ortho').angle() * 0.1 + {x}.mean()",
    )
    return g.apply(form.format(x=x, n=g.shape(x)[-1]))
