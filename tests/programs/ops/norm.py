"""Normalisations."""

from __future__ import annotations

from programs.draft import Draft, Skip, floating, op


def _typed(g: Draft, x: str) -> str:
    """`, dtype=…` for layers on a value of another type than the program's."""
    return f", dtype={g.tensor(x).dtype}"


@op(3)
def layer_norm(g: Draft) -> str:
    """Over the last dimension or two, with and without weights."""
    x = g.of(1, 2, 3, 4)
    dims = list(g.shape(x)[-g.choose(1, 1, 1, 2) :])
    form = g.random.randrange(4)
    if form == 0:
        return g.apply(f"F.layer_norm({x}, {dims})")
    if form == 1:
        return g.apply(f"{g.module(f'nn.RMSNorm({dims}{_typed(g, x)})')}({x})")
    affine = g.choose("", ", elementwise_affine=False", ", bias=False")
    return g.apply(f"{g.module(f'nn.LayerNorm({dims}{affine}{_typed(g, x)})')}({x})")


@op(3)
def batch_norm(g: Draft) -> str:
    """Of 2, 3 or 4 dimensions."""
    x = g.of(2, 3, 4)
    shape = g.shape(x)
    if len(shape) == 2 and shape[0] < 2:
        raise Skip
    kind = "BatchNorm2d" if len(shape) == 4 else "BatchNorm1d"
    options = g.choose(
        "", "", "", ", affine=False", ", track_running_stats=False", ", momentum=None",
        ", momentum=0.3",
    )  # fmt: skip
    layer = g.module(f"nn.{kind}({shape[1]}{options}{_typed(g, x)})")
    if g.chance(0.1):
        g.also(f"{layer}.train(False)")
    again = g.choose(False, False, False, True)
    return g.apply(f"{layer}({layer}({x}))" if again else f"{layer}({x})")


@op(1.5)
def group_norm(g: Draft) -> str:
    """Over groups of channels."""
    x = g.of(2, 3, 4)
    channels = g.shape(x)[1]
    groups = g.choose(*(n for n in (1, 2, channels) if channels % n == 0))
    affine = g.choose("", ", affine=False")
    return g.apply(f"{g.module(f'nn.GroupNorm({groups}, {channels}{affine}{_typed(g, x)})')}({x})")


@op(1.5)
def instance_norm(g: Draft) -> str:
    """Over each channel of each sample."""
    x = g.of(3, 4)
    shape = g.shape(x)
    kind = "InstanceNorm2d" if len(shape) == 4 else "InstanceNorm1d"
    options = g.choose("", ", affine=True", ", track_running_stats=True", ", affine=True, "
                       "track_running_stats=True")  # fmt: skip
    return g.apply(f"{g.module(f'nn.{kind}({shape[1]}{options}{_typed(g, x)})')}({x})")


@op(1)
def normalised(g: Draft) -> str:
    """Without layers."""
    x = g.of(2, 3, 4)
    form = g.choose(
        "F.normalize({x} + 0.1, dim={d})",
        "F.normalize({x} + 0.1, p=1, dim={d})",
        "F.local_response_norm({x}, 3)",
        "({x} - {x}.mean({d}, keepdim=True)) / ({x}.std({d}, keepdim=True) + 1.0)",
        "{x} / {x}.abs().amax({d}, keepdim=True).clamp(min=0.5)",
        "F.batch_norm({x}, None, None, training=True)",
        "F.instance_norm({x})",
        "F.rms_norm({x}, [{x}.shape[-1]])",
        "F.group_norm({x}, 1)",
    )
    return g.apply(form.format(x=x, d=g.dim(x)))


@op(1.5)
def reparametrised(g: Draft) -> str:
    """A linear layer whose weight is computed from others at each call."""
    x = g.pick(lambda t: floating(t) and t.ndim >= 2 and t.dtype == g.default)
    wrap = g.choose(
        "nn.utils.weight_norm({m})",
        "nn.utils.spectral_norm({m})",
        "nn.utils.parametrizations.weight_norm({m})",
        "nn.utils.parametrizations.spectral_norm({m})",
        "nn.utils.weight_norm({m}, dim=None)",
        "nn.utils.parametrizations.orthogonal({m})",
    )
    linear = f"nn.Linear({g.shape(x)[-1]}, {g.choose(4, 8)})"
    return g.apply(f"{g.module(wrap.format(m=linear))}({x})")
