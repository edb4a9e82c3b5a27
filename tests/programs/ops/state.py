"""Buffers, hooks, custom functions, checkpoints, autocast, what a module stores."""

from __future__ import annotations

from programs.draft import Draft, Skip, floating, op


def _default(g: Draft, *ndims: int) -> str:
    return g.pick(lambda t: floating(t) and t.dtype == g.default and t.ndim in ndims)


@op(3)
def buffer_updated(g: Draft) -> str:
    """A running statistic, read before or after it is written."""
    x = _default(g, 1, 2, 3)
    width = g.shape(x)[-1]
    b, out = g.buffer(f"torch.zeros({width})"), g.new()
    mean = f"{x}.detach().reshape(-1, {width}).mean(0)"
    form = g.choose(
        "{b}.mul_(0.9).add_({mean}, alpha=0.1)\n{o} = {x} - {b}",
        "{o} = {x} - {b}\n{b}.mul_(0.9).add_({mean})",
        "{b}.copy_({mean})\n{o} = {x} * {b}.clone()",
        "{o} = {x} * {b}.sigmoid()\n{b}.add_(1)\n{o} = {o} + {b}.clone()",
        "{b}.lerp_({mean}, 0.3)\n{o} = {x} + {b}",
        "{b} = {b} * 0.9 + {mean}\n{o} = {x} + {b}",
        "with torch.no_grad():\n    {b}.add_({x}.reshape(-1, {w}).sum(0))\n{o} = {x} * 1.5 + {b}",
        "{b}[0] = {mean}[0]\n{o} = {x} + {b}",
        "{b}[1:].add_(0.5)\n{o} = torch.maximum({x}, {b})",
        "{b}.fill_(0.5)\n{o} = {x} * {b}",
        "{o} = torch.where({b} > 0, {x}, -{x})\n{b}.sub_(0.5)",
        "{b}.data = {b} + {mean}\n{o} = {x} + {b}",
    )
    return form.format(b=b, x=x, o=out, mean=mean, w=width)


@op(1.2)
def counter(g: Draft) -> str:
    """A number that counts calls."""
    x = g.pick()
    start = g.choose("torch.zeros(())", "torch.tensor(0)", "torch.ones(1)", "torch.tensor(1.5)",
                     "torch.tensor(0.0, dtype=torch.float64)")  # fmt: skip
    b, out = g.buffer(start), g.new()
    form = g.choose(
        "{b}.add_(1)\n{o} = {x} * {b}",
        "{b} += 1\n{o} = {x} / (1 + {b})",
        "{o} = {x} + {b}\n{b}.add_(2)",
        "{b}.mul_(0.5).add_(1)\n{o} = {x} * {b}.to({x}.dtype)",
    )
    return form.format(b=b, x=x, o=out)


@op(0.7)
def queue(g: Draft) -> str:
    """A memory of earlier batches, whose oldest rows are overwritten."""
    x = _default(g, 2)
    rows, width = g.shape(x)
    b, out = g.buffer(f"torch.randn({rows + 2}, {width}) * 0.1"), g.new()
    form = g.choose(
        "{o} = {x} @ {b}.t()\n{b}[:{n}] = {x}.detach()",
        "{o} = {x} @ {b}.t()\n{b}.copy_(torch.cat([{b}[{n}:], {x}.detach()]))",
        "{o} = {x} @ {b}.clone().t()\n{b}.roll(1, 0)\n{b}[0] = {x}[0].detach()",
    )
    return form.format(b=b, x=x, o=out, n=rows)


@op(2.5)
def custom_function(g: Draft) -> str:
    """An autograd function of the user's."""
    x = g.pick(grad=True)
    form = g.choose(
        "Scale.apply({x}, 0.5)",
        "Cube.apply({x})",
        "Exponential.apply({x})",
        "Straight.apply({x} * 2)",
        "sum(Product.apply({x}, {y}))",
        "Product.apply({x}, {y})[0]",
        "Dropped.apply({x}, {y})",
        "Dropped.apply({y}, {x})",
        "Noisy.apply({x})",
        "Scale.apply({x}, 2.0) + {x}",
    )
    shape, dtype = g.tensor(x).shape, g.tensor(x).dtype
    y = g.pick(lambda t: t.shape == shape and t.dtype == dtype) if "{y}" in form else ""
    if y == x and g.chance(0.9):  # Dynamo refuses the same tensor twice
        y = f"({x} * 2)"
    return g.apply(form.format(x=x, y=y))


@op(1.2)
def checkpointed(g: Draft) -> str:
    """A part under PyTorch's own checkpoint."""
    x = _default(g, 2, 3)
    width = g.shape(x)[-1]
    act = g.choose("nn.Tanh()", "nn.GELU()", "nn.Dropout(0.2)")
    layer = g.module(f"nn.Sequential(nn.Linear({width}, {width}), {act}, nn.Linear({width}, 4))")
    return g.apply(f"torch.utils.checkpoint.checkpoint({layer}, {x}, use_reentrant=False)")


@op(1.2)
def autocast(g: Draft) -> str:
    """A block in low precision."""
    x = _default(g, 2, 3)
    width = g.shape(x)[-1]
    layer = g.module(f"nn.Linear({width}, {g.choose(4, 8)})")
    out = g.new()
    rest = g.choose(
        "{o} = {m}({x})",
        "{o} = F.layer_norm({m}({x}).tanh(), [{m}.out_features])",
        "{o} = torch.softmax({m}({x}), -1)",
        "{o} = {m}({x}).float()",
        "{o} = {x} @ {x}.mT",
    ).format(o=out, m=layer, x=x)
    return f'with torch.autocast("cpu", dtype=torch.bfloat16):\n    {rest}'


@op(1.2)
def hooked(g: Draft) -> str:
    """A layer with a hook that changes, stores or counts."""
    x = _default(g, 2, 3)
    width = g.shape(x)[-1]
    layer = g.module(f"nn.Linear({width}, {g.choose(width, 4)})")
    kind = g.choose("residual", "halved", "watched", "counted")
    if kind == "halved":
        g.also(f"{layer}.register_forward_pre_hook(halved)")
    else:
        if kind == "counted":
            g.also(f'{layer}.register_buffer("calls", torch.zeros(()))')
        g.also(f"{layer}.register_forward_hook({kind})")
    return g.apply(f"{layer}({x})")


@op(0.8)
def stored(g: Draft) -> str:
    """A value that the module keeps as an attribute."""
    x = g.pick()
    name = f"kept{g.count}"
    return f"self.{name} = {x}{g.choose('', '.detach()', ' * 2', '.mean()')}"


@op(0.8)
def unused(g: Draft) -> str:
    """A layer whose result nobody reads, or that is never called."""
    x = _default(g, 1, 2, 3)
    layer = g.module(f"nn.Linear({g.shape(x)[-1]}, 3)")
    return g.choose(f"{layer}({x})", f"{layer}({x}).sum()", f"{layer}.weight.sum()")


@op(0.8)
def frozen(g: Draft) -> str:
    """A layer that is not trained, or runs without gradients."""
    x = _default(g, 1, 2, 3)
    layer = g.module(f"nn.Linear({g.shape(x)[-1]}, 4)")
    if g.chance(0.5):
        g.also(f"{layer}.requires_grad_(False)")
        return g.apply(f"{layer}({x})")
    return f"with torch.no_grad():\n    {g.new()} = {layer}({x})"


@op(0.8)
def tied(g: Draft) -> str:
    """Two layers that share a weight."""
    x = _default(g, 2, 3)
    width = g.shape(x)[-1]
    a = g.module(f"nn.Linear({width}, {width})")
    b = g.module(f"nn.Linear({width}, {width})")
    g.also(f"{b}.weight = {a}.weight")
    return g.apply(f"{b}({a}({x}).relu())")


@op(0.8)
def gradient_stopped(g: Draft) -> str:
    """A straight-through estimate, or a part without a gradient."""
    x = g.pick(grad=True)
    form = g.choose(
        "{x} + ({x}.round() - {x}).detach()",
        "{x} * {x}.detach()",
        "{x}.detach() + 0 * {x}",
        "({x} - {x}.detach()) + 1.0",
    )
    return g.apply(form.format(x=x))


@op(0.5)
def scratch(g: Draft) -> str:
    """A write into an input, where it takes no gradient."""
    names = [n for n in g.inputs if floating(g.tensor(n)) and not g.tensor(n).requires_grad]
    if not names:
        raise Skip
    x = g.choose(*names)
    return g.choose("{x}.add_(1)", "{x}.mul_(0.5)", "{x}[0] = 0.0", "{x}.clamp_(-1, 1)").format(x=x)


@op(0.6)
def changed_parameter(g: Draft) -> str:
    """A parameter written under `no_grad`, such as a constraint on its norm."""
    x = _default(g, 2, 3)
    p = g.parameter((g.shape(x)[-1],))
    form = g.choose(
        "with torch.no_grad():\n    {p}.clamp_(-0.5, 0.5)\n{o} = {x} * {p}",
        "with torch.no_grad():\n    {p}.mul_(0.9)\n{o} = {x} + {p}",
    )
    return form.format(p=p, x=x, o=g.new())
