"""Elementwise ops, reductions and scans."""

from __future__ import annotations

from programs.draft import Draft, op

UNARY = (
    "torch.relu({x})",
    "torch.tanh({x})",
    "torch.sigmoid({x})",
    "F.gelu({x})",
    'F.gelu({x}, approximate="tanh")',
    "F.silu({x})",
    "F.softplus({x})",
    "F.softplus({x}, beta=2.0, threshold=1.0)",
    "F.elu({x})",
    "F.elu({x}, alpha=0.5)",
    "F.leaky_relu({x}, 0.2)",
    "F.hardtanh({x}, -0.5, 0.5)",
    "F.relu6({x})",
    "F.hardswish({x})",
    "F.hardsigmoid({x})",
    "F.mish({x})",
    "F.logsigmoid({x})",
    "F.selu({x})",
    "F.celu({x}, 0.7)",
    "F.softsign({x})",
    "F.tanhshrink({x})",
    "F.hardshrink({x}, 0.3)",
    "F.softshrink({x}, 0.3)",
    "F.threshold({x}, 0.1, 0.2)",
    "F.rrelu({x}, 0.1, 0.3)",
    "{x}.sin()",
    "{x}.cos()",
    "torch.exp(-{x}.abs())",
    "torch.sqrt({x}.abs() + 0.1)",
    "torch.rsqrt({x} * {x} + 0.5)",
    "torch.log1p({x}.abs())",
    "torch.log({x}.abs() + 1.0)",
    "torch.log2({x} * {x} + 1.0)",
    "torch.erf({x})",
    "torch.erfc({x})",
    "torch.expm1({x}.clamp(max=2.0))",
    "torch.square({x})",
    "{x} ** 3",
    "{x}.abs().pow(1.5)",
    "2.0 ** {x}.clamp(-3, 3)",
    "{x}.abs()",
    "-{x}",
    "1.0 / ({x}.abs() + 1.0)",
    "{x}.sign() * {x}",
    "{x}.clamp(-1.0, 1.0)",
    "{x}.clamp(min=0.1)",
    "torch.clamp({x}, max={x}.detach().mean())",
    "{x}.round() + {x}",
    "{x}.floor() - {x}",
    "{x}.frac()",
    "{x}.trunc() * 0.5 + {x}",
    "torch.atan({x})",
    "torch.asinh({x})",
    "torch.sinh({x}.clamp(-2, 2))",
    "torch.acos({x}.tanh() * 0.9)",
    "torch.atanh({x}.tanh() * 0.5)",
    "torch.sinc({x})",
    "torch.logit({x}.sigmoid(), eps=1e-4)",
    "torch.erfinv({x}.tanh() * 0.8)",
    "torch.lgamma({x}.abs() + 1.0)",
    "torch.digamma({x}.abs() + 1.0)",
    "torch.special.expit({x})",
    "torch.special.entr({x}.sigmoid())",
    "torch.special.i0e({x})",
    "torch.nan_to_num({x})",
    "torch.deg2rad({x}) * 50",
    "{x} * 2",
    "{x} * 0.5 + 0.25",
    "1 - {x}",
    "{x} / 3",
    "{x} * True",
    "{x}.clone()",
    "{x}.detach()",
    "{x}.contiguous()",
    "({x} > 0).to({x}.dtype) * {x}",
    "torch.where({x} > 0, {x}, {x} * 0.1)",
    "torch.where({x} > 0, {x}, 0.0)",
    "{x} * ({x}.detach() > 0.2)",
    "torch.zeros_like({x}) + {x}",
    "{x}.new_full({x}.shape, 0.3) * {x}",
    "torch.masked_fill({x}, {x} < 0, 0.1)",
    "torch.ones_like({x}).sub({x}, alpha=0.5)",
    "{x} - {x}.mean()",
    "{x} / ({x}.norm() + 1.0)",
    "{x}.float().to({x}.dtype)",
    "{x}.double().sin().to({x}.dtype)",
    "{x}.to(torch.bfloat16).to({x}.dtype)",
)

BINARY = (
    "{x} + {y}",
    "{x} - {y}",
    "{y} - {x}",
    "{x} * {y}",
    "{x} / ({y}.abs() + 1.0)",
    "{x} + 2 * {y}",
    "torch.add({x}, {y}, alpha=0.5)",
    "torch.sub({x}, {y}, alpha=2)",
    "torch.maximum({x}, {y})",
    "torch.minimum({x}, {y})",
    "torch.fmax({x}, {y})",
    "torch.where({x} > {y}, {x}, {y})",
    "torch.where({y} > 0, {x}, -{x})",
    "torch.atan2({x}, {y}.abs() + 0.5)",
    "torch.hypot({x}, {y} + 2.0)",
    "torch.lerp({x}, {x} * {y}, 0.3)",
    "torch.lerp({x}, {y} + {x}, {y}.sigmoid())",
    "torch.addcmul({x}, {x}, {y})",
    "torch.addcmul({x}, {y}, {y}, value=0.5)",
    "torch.addcdiv({x}, {y}, {x}.abs() + 1.0)",
    "torch.pow({x}.abs() + 0.2, {y}.tanh())",
    "torch.fmod({x}, {y}.abs() + 0.5)",
    "torch.remainder({x}, {y}.abs() + 0.5)",
    "torch.logaddexp({x}, {y})",
    "torch.copysign({x}, {y})",
    "torch.xlogy({x}, {y}.abs() + 0.5)",
    "torch.clamp({x}, {y} - 1.0, {y} + 1.0)",
    "torch.heaviside({y}.detach(), {x}.detach()) * {x}",
    "torch.ldexp({x}, {y}.detach().clamp(-2, 2).round())",
    "torch.stack([{x}, {y}.expand_as({x})]).mean(0)",
    "{x} @ {y}.mT if {x}.ndim >= 2 and {x}.shape == {y}.shape else {x} + {y}",
    "{x} * {y}.sigmoid() + {y}",
)

REDUCE = (
    "{x}.sum({d})",
    "{x}.sum({d}, keepdim=True)",
    "{x}.mean({d})",
    "{x}.mean({d}, keepdim=True)",
    "{x}.var({d})",
    "{x}.var({d}, correction=0, keepdim=True)",
    "torch.sqrt({x}.var({d}, correction=0) + 0.1)",
    "{x}.amax({d})",
    "{x}.amin({d}, keepdim=True)",
    "{x}.max({d}).values",
    "{x}.min({d}, keepdim=True)[0]",
    "{x}.median({d}).values",
    "{x}.kthvalue(1, {d}).values",
    "torch.logsumexp({x}, {d})",
    "torch.linalg.vector_norm({x} + 0.1, dim={d})",
    "{x}.abs().add(0.5).norm(p=1, dim={d})",
    "({x} * 0.5 + 1.0).prod({d})",
    "torch.nansum({x}, {d})",
    "torch.aminmax({x}, dim={d}).max",
    "torch.std_mean({x} + 0.1, {d}, correction=0)[1]",
    "torch.quantile({x}.float(), 0.4, dim={d})",
    "{x}.argmax({d}).to({x}.dtype)",
    "({x} > 0).sum({d}).to({x}.dtype)",
    "({x} > 0).any({d}) * {x}.sum({d})",
    "torch.count_nonzero({x}, {d}).to({x}.dtype) * 0.1",
    "{x}.mode({d}).values",
)

SCAN = (
    "{x}.cumsum({d})",
    "({x} * 0.3 + 1.0).cumprod({d})",
    "torch.logcumsumexp({x}, {d})",
    "torch.cummax({x}, {d}).values",
    "torch.cummin({x}, {d})[0]",
    "F.softmax({x}, {d})",
    "F.log_softmax({x}, {d})",
    "F.softmin({x}, {d})",
    "F.softmax({x}, {d}, dtype=torch.float32).to({x}.dtype)",
    "{x}.sort({d}).values",
    "{x}.sort({d}, descending=True)[0]",
    "{x}.sort({d}, stable=True).values * {x}",
    "torch.diff({x}, dim={d})",
    "{x}.renorm(2, {d} % {x}.ndim, 1.0)",
    "torch.gradient({x}, dim={d})[0]",
    "torch.cumulative_trapezoid({x}, dim={d})",
)


@op(14)
def unary(g: Draft) -> str:
    """An elementwise function."""
    text = g.choose(*UNARY)
    return g.apply(text.format(x=g.pick(grad=g.chance(0.8))))


@op(9)
def binary(g: Draft) -> str:
    """Two values of one shape, or one that broadcasts."""
    x = g.pick()
    return g.apply(g.choose(*BINARY).format(x=x, y=g.like(x)))


@op(2)
def scaled_by_parameter(g: Draft) -> str:
    """A parameter of the last dimensions, as a factor, offset or slope."""
    x = g.pick(grad=g.chance(0.5))
    shape = g.shape(x)
    p = g.parameter(shape[-g.choose(1, 1, 2) :], g.tensor(x).dtype)
    forms = ("{x} * {p}", "{x} + {p}", "torch.addcmul({x}, {x}, {p})", "{p}.exp() * {x}")
    return g.apply(g.choose(*forms).format(x=x, p=p))


@op(1)
def prelu(g: Draft) -> str:
    """A learned slope, one for all or one for each channel."""
    x = g.of(2, 3, 4)
    channels = g.choose(1, g.shape(x)[1])
    return g.apply(f"{g.module(f'nn.PReLU({channels})')}({x})")


@op(4)
def reduction(g: Draft) -> str:
    """A sum, mean, extremum, … over a dimension."""
    x = g.of(1, 2, 3, 4)
    return g.apply(g.choose(*REDUCE).format(x=x, d=g.dim(x)))


@op(1)
def reduce_all(g: Draft) -> str:
    """A scalar that scales a value."""
    x, y = g.pick(), g.pick()
    form = g.choose("sum", "mean", "max", "min", "median", "norm")
    return g.apply(f"{x} * torch.tanh({y}.{form}())")


@op(1)
def reduce_two(g: Draft) -> str:
    """A reduction over two dimensions."""
    x = g.of(2, 3, 4)
    a, b = g.random.sample(range(g.tensor(x).ndim), 2)
    form = g.choose("sum", "mean", "amax", "logsumexp", "var")
    return g.apply(f"{x}.{form}(({a}, {b}){g.choose('', ', keepdim=True')})")


@op(4)
def scan(g: Draft) -> str:
    """A cumulative function, softmax or sort along a dimension."""
    x = g.of(1, 2, 3, 4)
    return g.apply(g.choose(*SCAN).format(x=x, d=g.dim(x)))


@op(1)
def top(g: Draft) -> str:
    """The largest entries, or where they stand."""
    x = g.of(1, 2, 3)
    d = g.dim(x)
    k = g.random.randint(1, g.shape(x)[d])
    if g.chance(0.5):
        return g.apply(f"{x}.topk({k}, {d}).values")
    return g.apply(f"{x}.gather({d}, {x}.topk({k}, {d}).indices)")


@op(1)
def sorted_pair(g: Draft) -> str:
    """Values sorted, and others gathered by the same order."""
    x = g.of(1, 2, 3)
    d, first, order = g.dim(x), g.new(), g.new()
    out = g.new()
    return f"{first}, {order} = {x}.sort({d})\n{out} = {x}.cos().gather({d}, {order}) * {first}"


@op(1)
def variance_and_mean(g: Draft) -> str:
    """Two results of one op, both read."""
    x = g.of(1, 2, 3, 4)
    d, var, mean, out = g.dim(x), g.new(), g.new(), g.new()
    return (
        f"{var}, {mean} = torch.var_mean({x}, {d}, correction=0, keepdim=True)\n"
        f"{out} = ({x} - {mean}) * torch.rsqrt({var} + 0.1)"
    )


@op(1.5)
def cast(g: Draft) -> str:
    """Another floating-point type."""
    dtype = g.choose("float32", "bfloat16", "float64", "float32", "float64")
    return g.apply(f"{g.pick()}.to(torch.{dtype})")


@op(1)
def of_mixed_types(g: Draft) -> str:
    """Two types in one op, which promotes them."""
    x = g.pick()
    shape = g.tensor(x).shape

    def other(t) -> bool:  # type: ignore[no-untyped-def]
        return t.is_floating_point() and t.shape == shape and t.dtype != g.tensor(x).dtype

    return g.apply(f"{x} {g.choose('*', '+', '-')} {g.pick(other)}")


@op(1)
def from_integers(g: Draft) -> str:
    """Integers that become numbers."""
    x = g.pick()
    form = g.choose(
        "torch.arange({x}.shape[-1], dtype={x}.dtype) * 0.1 + {x}",
        "torch.linspace(0, 1, {x}.shape[-1], dtype={x}.dtype) * {x}",
        "torch.arange({x}.numel()).view({x}.shape) % 3 * {x}",
        "torch.full({x}.shape, 2) * {x}",
        "torch.eye({x}.shape[-1], dtype={x}.dtype)[0] + {x}",
        "torch.tensor([0.5], dtype={x}.dtype) * {x}",
        "torch.ones(()) * {x}",
        "{x} * {x}.shape[0]",
        "{x} + {x}.ndim",
        "{x} * (1.0 / {x}.numel() ** 0.5)",
    )
    return g.apply(form.format(x=x))
