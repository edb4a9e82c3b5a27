"""Convolutions, pooling, resampling, patches."""

from __future__ import annotations

from programs.draft import Draft, Skip, floating, op

POOL = (
    "F.max_pool2d({x}, 2)",
    "F.max_pool2d({x}, 3, stride=1, padding=1)",
    "F.max_pool2d({x}, 2, return_indices=True)[0]",
    "F.avg_pool2d({x}, 2)",
    "F.avg_pool2d({x}, 3, stride=2, padding=1, count_include_pad=False)",
    "F.adaptive_avg_pool2d({x}, 1)",
    "F.adaptive_avg_pool2d({x}, (2, 3))",
    "F.adaptive_max_pool2d({x}, 2)",
    "F.lp_pool2d({x}.abs() + 0.1, 2, 2)",
    "F.fractional_max_pool2d({x}, 2, output_size=(2, 2))",
    "F.max_unpool2d(*F.max_pool2d({x}, 2, return_indices=True), 2)",
)

RESAMPLE = (
    "F.interpolate({x}, scale_factor=2)",
    'F.interpolate({x}, size=(5, 5), mode="bilinear", align_corners=False)',
    'F.interpolate({x}, scale_factor=0.5, mode="bilinear", align_corners=True)',
    'F.interpolate({x}, size=(6, 7), mode="bicubic")',
    'F.interpolate({x}, scale_factor=2, mode="nearest-exact")',
    'F.interpolate({x}, size=3, mode="area")',
    'F.interpolate({x}, size=(5, 4), mode="bilinear", antialias=True)',
    "F.pixel_shuffle({x}.repeat(1, 4, 1, 1), 2)",
    "F.pixel_unshuffle({x}, 2)",
    "F.channel_shuffle({x}, 2)",
    "F.unfold({x}, 2)",
    "F.unfold({x}, 3, padding=1, stride=2)",
    "F.fold(F.unfold({x}, 2), {x}.shape[-2:], 2)",
    "F.fold(F.unfold({x}, 3, padding=1), {x}.shape[-2:], 3, padding=1) * 0.2",
    "F.grid_sample({x}, F.affine_grid(torch.eye(2, 3, dtype={x}.dtype)[None]"
    ".expand({x}.shape[0], 2, 3) * 0.8, {x}.shape, align_corners=False), align_corners=False)",
    "F.grid_sample({x}, torch.tanh({x}.mean(1)[..., None].repeat(1, 1, 1, 2)), align_corners=True)",
    'F.pad({x}, (1, 1, 1, 1), mode="reflect")',
    'F.pad({x}, (1, 0, 2, 1), mode="replicate")',
    'F.pad({x}, (1, 1, 1, 1), mode="circular")',
    "F.pad({x}, (1, 0, 0, 1))",
    "{x}.to(memory_format=torch.channels_last)",
    "{x}.contiguous(memory_format=torch.channels_last)",
    "{x}.permute(0, 2, 3, 1)",
    "{x}.flatten(2).transpose(1, 2)",
    "{x}.mean((2, 3))",
)


@op(6)
def conv2d(g: Draft) -> str:
    """A convolution of images."""
    x = g.pick(lambda t: floating(t) and t.dtype == g.default and t.ndim == 4)
    channels = g.shape(x)[1]
    groups = g.choose(1, 1, *(n for n in (2, channels) if channels % n == 0))
    out = groups * g.choose(1, 2) if groups > 1 else g.choose(3, 4, 6)
    options = g.choose("", ", padding=1", ", padding=1, stride=2", ", padding=2, dilation=2",
                       ", bias=False, padding=1", ', padding="same"',
                       ', padding=1, padding_mode="reflect"',
                       ', padding=1, padding_mode="circular"')  # fmt: skip
    size = g.choose(1, 3, 3)
    if size == 1 and "reflect" not in options:
        options = ""
    name = g.choose("Conv2d", "Conv2d", "Conv2d", "Conv2d", "ConvTranspose2d")
    if name == "ConvTranspose2d":
        options = g.choose("", ", stride=2", ", padding=1")
    layer = g.module(f"nn.{name}({channels}, {out}, {size}, groups={groups}{options})")
    if g.chance(0.15):
        g.also(f"{layer}.to(memory_format=torch.channels_last)")
    return g.apply(f"{layer}({x})")


@op(1.5)
def conv1d(g: Draft) -> str:
    """A convolution of sequences."""
    x = g.pick(lambda t: floating(t) and t.dtype == g.default and t.ndim == 3)
    channels = g.shape(x)[1]
    options = g.choose("", ", padding=1", ", padding=2, dilation=2", ", stride=2, padding=1",
                       f", padding=1, groups={channels}")  # fmt: skip
    out = channels if "groups" in options else g.choose(3, 4, 6)
    name = g.choose("Conv1d", "Conv1d", "Conv1d", "ConvTranspose1d")
    return g.apply(f"{g.module(f'nn.{name}({channels}, {out}, 3{options})')}({x})")


@op(0.4)
def conv3d(g: Draft) -> str:
    """A convolution of volumes."""
    x = g.pick(lambda t: floating(t) and t.dtype == g.default and t.ndim == 4)
    if g.shape(x)[0] > 3:
        raise Skip
    return g.apply(f"{g.module(f'nn.Conv3d({g.shape(x)[0]}, 2, 3, padding=1)')}({x}[None])")


@op(0.6)
def conv_of_parameter(g: Draft) -> str:
    """A convolution whose kernel is computed."""
    x = g.pick(lambda t: floating(t) and t.dtype == g.default and t.ndim == 4)
    p = g.parameter((g.choose(2, 4), g.shape(x)[1], 3, 3))
    form = g.choose(
        "F.conv2d({x}, {p}.tanh())",
        "F.conv2d({x}, {p} / ({p}.norm() + 1), padding=1)",
        "F.conv2d({x}, {p}.to(memory_format=torch.channels_last), stride=2)",
        "F.conv_transpose2d({x}, {p}.transpose(0, 1))",
    )
    return g.apply(form.format(x=x, p=p))


@op(2.5)
def pooled(g: Draft) -> str:
    """Pooling of images."""
    return g.apply(g.choose(*POOL).format(x=g.of(4)))


@op(1)
def pooled_sequence(g: Draft) -> str:
    """Pooling of sequences."""
    form = g.choose(
        "F.max_pool1d({x}, 2)",
        "F.avg_pool1d({x}, 2)",
        "F.adaptive_avg_pool1d({x}, 2)",
        "F.adaptive_max_pool1d({x}, 3)",
        "F.lp_pool1d({x}.abs() + 0.1, 2, 2)",
        "F.interpolate({x}, scale_factor=2)",
        'F.interpolate({x}, size=5, mode="linear")',
    )
    return g.apply(form.format(x=g.of(3)))


@op(3)
def resampled(g: Draft) -> str:
    """Other sizes, other layouts, patches of images."""
    return g.apply(g.choose(*RESAMPLE).format(x=g.of(4)))


@op(1.5)
def image_block(g: Draft) -> str:
    """Convolution, norm, activation, residual sum."""
    x = g.pick(lambda t: floating(t) and t.dtype == g.default and t.ndim == 4)
    c = g.shape(x)[1]
    norm = g.choose(f"nn.BatchNorm2d({c})", f"nn.GroupNorm(1, {c})", f"nn.InstanceNorm2d({c})")
    act = g.choose("nn.ReLU()", "nn.ReLU(inplace=True)", "nn.SiLU()", "nn.Hardswish()", "nn.GELU()")
    made = f"nn.Sequential(nn.Conv2d({c}, {c}, 3, padding=1, bias=False), {norm}, {act})"
    return g.apply(f"{x} + {g.module(made)}({x})")
