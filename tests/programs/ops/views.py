"""Views, copies that rearrange, and writes in place."""

from __future__ import annotations

from programs.draft import Draft, Skip, floating, op

REARRANGE = (
    "{x}.flip({d})",
    "{x}.roll(1, {d})",
    "{x}.roll(-2, {d}) + {x}",
    "torch.cat([{x}, {x}], {d})",
    "torch.cat([{x} * 2, {x}.sin()], {d})",
    "torch.stack([{x}, -{x}], {d})",
    "{x}.repeat_interleave(2, {d})",
    "{x}.tile(2)",
    "torch.atleast_2d({x})",
    "{x}.unsqueeze({d})",
    "{x}.unsqueeze({d}).expand_as({x}.unsqueeze({d}))",
    "{x}.movedim(0, {d})",
    "{x}.swapaxes(0, {d})",
    "{x}.transpose(0, {d}).contiguous()",
    "{x}.transpose(0, {d})",
    "{x}.flatten()",
    "{x}.reshape(-1)",
    "{x}.flatten({d} % {x}.ndim)",
    "{x}.contiguous().view(-1).view({x}.shape)",
    "{x}.squeeze()",
    "{x}.select({d}, 0)",
    "{x}.select({d}, -1)",
    "{x}.narrow({d}, 0, {half})",
    "{x}.narrow({d}, 1, {less})",
    "{x}.chunk(2, {d})[-1]",
    "{x}.split({half}, {d})[0]",
    "{x}.unbind({d})[0]",
    "torch.tensor_split({x}, 2, {d})[0]",
    "{x}.unfold({d}, {half}, 1)",
    "{x}.mT if {x}.ndim > 1 else {x}",
    "{x}[..., ::2]",
    "{x}[::2]",
    "{x}[1:]",
    "{x}[..., 1:] - {x}[..., :-1]",
    "{x}[..., None]",
    "{x}[None].expand(2, *{x}.shape)",
    "{x}.as_strided(({half},), (1,))",
    "torch.broadcast_to({x}, (2, *{x}.shape))",
    "{x}.diagonal() if {x}.ndim > 1 else {x}",
    "torch.diag_embed({x}) if {x}.ndim < 3 else {x}",
    "{x}.tril() if {x}.ndim > 1 else {x}",
    "torch.triu({x}, 1) if {x}.ndim > 1 else {x}",
    "torch.rot90({x}) if {x}.ndim > 1 else {x}",
    "torch.block_diag({x}, {x}) if {x}.ndim == 2 else {x}",
    "{x}.view_as({x})",
    "{x}.unflatten({d}, (1, -1))",
    "{x}.expand(3, *{x}.shape).reshape(-1, *{x}.shape[1:])",
    "torch.meshgrid({x}[..., 0].flatten(), {x}[..., -1].flatten(), indexing='ij')[0]",
    "torch.hstack([{x}, {x}])",
    "torch.squeeze({x}.unsqueeze(0), 0)",
)

PAD = (
    "F.pad({x}, (1, 2))",
    "F.pad({x}, (1, 0), value=0.5)",
    "F.pad({x}, (-1, 1))",
    'F.pad({x}, (1, 1), mode="reflect")',
    'F.pad({x}, (2, 1), mode="replicate")',
    'F.pad({x}, (1, 1), mode="circular")',
)

IN_PLACE = (
    "{x}.add_({y})",
    "{x}.sub_({y}, alpha=0.5)",
    "{x}.mul_({y})",
    "{x}.mul_(0.5)",
    "{x}.add_(1)",
    "{x}.div_(2)",
    "{x}.neg_()",
    "{x}.relu_()",
    "F.relu({x}, inplace=True)",
    "F.leaky_relu({x}, 0.1, inplace=True)",
    "F.elu({x}, inplace=True)",
    "F.hardtanh({x}, inplace=True)",
    "F.silu({x}, inplace=True)",
    "F.dropout({x}, 0.3, inplace=True)",
    "{x}.tanh_()",
    "{x}.sigmoid_()",
    "{x}.sin_()",
    "{x}.clamp_(-1, 1)",
    "{x}.clamp_min_(0.0)",
    "{x}.zero_()",
    "{x}.fill_(0.3)",
    "{x}.copy_({y})",
    "{x}.addcmul_({y}, {y}, value=0.1)",
    "{x}.lerp_({y}, 0.3)",
    "{x}.masked_fill_({x} > 0.5, 0.5)",
    "{x}.masked_fill_({x}.detach() < 0, 0.0)",
    "{x}[..., 0] = 0.0",
    "{x}[..., 0] = {x}[..., -1].detach() * 2",
    "{x}[..., 1:] += 0.5",
    "{x}[..., ::2] *= 0.5",
    "{x}[0] = {y}[0]",
    "{x}[:1] = {x}[:1].sin()",
    "{x}[-1] += {y}[-1]",
    "{x}.select(0, 0).mul_(2)",
    "{x}.narrow(-1, 0, 1).zero_()",
    "{x}.unbind(0)[0].add_(1)",
    "{x}.view(-1)[::3].mul_(2)",
    "{x}.flatten()[0] = 1.0",
    "{x}.mT.add_({y}.mT)",
    "{x}.transpose(0, -1).mul_(1.5)",
    "{x}.unsqueeze(0).add_(0.1)",
    "{x}.detach().add_(0.1)",
    "{x}.t_()",
    "{x}.diagonal().add_(0.3)",
    "{x}[{x} > 0.3] = 0.3",
    "{x}[{x} < 0] *= 0.5",
    "{x}.chunk(2, -1)[0].sin_()",
    "{x}.index_fill_(0, torch.tensor([0]), 0.2)",
    "torch._foreach_add_([{x}], [{y}.expand_as({x})])",
    "torch.add({x}.detach(), 1, out={x}.detach())",
    "{x}.data.mul_(0.5)",
    "{x}.squeeze_(0)",
    "{x}.exponential_()",
    "{x}.uniform_()",
    "{x}.normal_()",
    "{x}.bernoulli_(0.5)",
)


@op(7)
def rearranged(g: Draft) -> str:
    """A view or a copy in another shape or order."""
    x = g.of(1, 2, 3, 4)
    d = g.dim(x)
    size = g.shape(x)[d]
    text = g.choose(*REARRANGE).format(x=x, d=d, half=max(1, size // 2), less=max(0, size - 1))
    return g.apply(text)


@op(2)
def permuted(g: Draft) -> str:
    """The dimensions in another order."""
    x = g.of(2, 3, 4)
    order = g.random.sample(range(g.tensor(x).ndim), g.tensor(x).ndim)
    return g.apply(f"{x}.permute({', '.join(map(str, order))}){g.choose('', '', '.contiguous()')}")


@op(3)
def reshaped(g: Draft) -> str:
    """Two dimensions joined, or one cut in two."""
    x = g.of(1, 2, 3, 4)
    shape = list(g.shape(x))
    i = g.random.randrange(len(shape))
    if len(shape) > 1 and g.chance(0.5):
        i = min(i, len(shape) - 2)
        shape[i : i + 2] = [shape[i] * shape[i + 1]]
    else:
        if shape[i] % 2:
            raise Skip
        shape[i : i + 1] = [2, shape[i] // 2]
    return g.apply(f"{x}.{g.choose('reshape', 'reshape', 'view')}({', '.join(map(str, shape))})")


@op(2)
def joined(g: Draft) -> str:
    """Two or three values one after the other."""
    x = g.of(1, 2, 3, 4)
    d = g.dim(x)
    shape = g.shape(x)

    def fits(t) -> bool:  # type: ignore[no-untyped-def]
        other = list(t.shape)
        if not floating(t) or len(other) != len(shape):
            return False
        other[d] = shape[d]
        return tuple(other) == shape

    items = [x, *(g.pick(fits) for _ in range(g.choose(1, 1, 2)))]
    return g.apply(f"torch.cat([{', '.join(items)}], {d})")


@op(1)
def padded(g: Draft) -> str:
    """Padding of the last dimension."""
    return g.apply(g.choose(*PAD).format(x=g.of(2, 3)))


@op(1)
def parts_of(g: Draft) -> str:
    """A value cut into parts, which are used apart."""
    x = g.of(1, 2, 3, 4)
    d = g.dim(x)
    if g.shape(x)[d] % 2:
        raise Skip
    a, b, out = g.new(), g.new(), g.new()
    return f"{a}, {b} = {x}.chunk(2, {d})\n{out} = {a}.sigmoid() * {b}"


@op(5)
def in_place(g: Draft) -> str:
    """A write into what was computed before."""
    x = g.pick()
    return g.choose(*IN_PLACE).format(x=x, y=g.like(x))


@op(5)
def in_place_copy(g: Draft) -> str:
    """A write into a fresh copy."""
    x = g.pick()
    y, out = g.like(x), g.new()
    copy = g.choose("{x}.clone()", "{x} * 2", "torch.zeros_like({x})", "{x} + 0.5", "{x}.tanh()")
    return f"{out} = {copy.format(x=x)}\n{g.choose(*IN_PLACE).format(x=out, y=y)}"


@op(1.5)
def filled_by_loop(g: Draft) -> str:
    """A fresh tensor whose slices are written one by one."""
    x = g.of(1, 2, 3)
    out, n = g.new(), g.random.randint(2, 4)
    value = g.choose("{x} * i", "({x} + i).sin()", "{x}", "{x}.detach() * 0.5")
    fresh = g.choose("torch.zeros", "torch.ones", "torch.empty")
    text = value.format(x=x)
    return (
        f"{out} = {fresh}({n}, *{x}.shape, dtype={x}.dtype)\n"
        f"for i in range({n}):\n    {out}[i] = {text}"
    )


@op(1)
def loop(g: Draft) -> str:
    """The same few ops again and again."""
    x = g.pick(grad=True)
    out, n = g.new(), g.random.randint(2, 4)
    step = g.choose(
        "{o} = torch.tanh({o}) + {x}",
        "{o} = {o} * torch.sigmoid({o} + i)",
        "{o} = F.dropout({o}.sin(), 0.2) - {x}",
        "{o} = {o} - 0.1 * ({o} - {o}.mean())",
        "{o} = {o}.mul(0.9); {o}.add_({x})",
    )
    return f"{out} = {x} * 1\nfor i in range({n}):\n    {step.format(o=out, x=x)}"


@op(1)
def windows_summed(g: Draft) -> str:
    """Sliding windows with weights of their own."""
    x = g.of(2, 3)
    size = g.shape(x)[-1]
    if size < 4:
        raise Skip
    p = g.parameter((3,), g.tensor(x).dtype)
    return g.apply(f"({x}.unfold(-1, 3, 1) * {p}).sum(-1)")


@op(1)
def foreach(g: Draft) -> str:
    """One call for a list of tensors."""
    x = g.pick()
    y = g.like(x)
    a, b = g.new(), g.new()
    call = g.choose(
        "torch._foreach_mul([{x}, {y}], 2.0)",
        "torch._foreach_add([{x}, {y}], [{y}, {y}])",
        "torch._foreach_tanh([{x}, {y}])",
        "torch._foreach_sub([{x}, {y}], [{y}, {x}], alpha=0.5)",
        "torch._foreach_lerp([{x}, {y}], [{y}, {y}], 0.3)",
        "torch._foreach_addcmul([{x}, {y}], [{y}, {y}], [{y}, {y}], 0.5)",
    )
    return f"{a}, {b} = {call.format(x=x, y=y)}"


@op(1)
def foreach_in_place(g: Draft) -> str:
    """One call that writes into a list of tensors."""
    x = g.pick()
    y = g.like(x)
    a, b = g.new(), g.new()
    call = g.choose(
        "torch._foreach_mul_([{a}, {b}], 2.0)",
        "torch._foreach_add_([{a}, {b}], [{b}, {b}], alpha=0.5)",
        "torch._foreach_tanh_([{a}, {b}])",
        "torch._foreach_add_([{a}[:1], {b}[..., ::2]], 1.0)",
        "torch._foreach_copy_([{a}], [{b}])",
    )
    return f"{a}, {b} = {x} * 1, {y}.sin().expand_as({x}).clone()\n{call.format(a=a, b=b)}"
