"""From a seed to a program."""

from __future__ import annotations

import warnings
from random import Random

import torch

from programs.draft import OPS, Draft, Skip, floating
from programs.ops.loss import class_losses
from programs.program import Program

__all__ = ["generate"]

TRIES = 6


def generate(seed: int, most: int = 14) -> Program | None:
    """The program of a seed, of up to `most` statements; None where none came about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = torch.get_default_dtype()
        random_state = torch.get_rng_state()
        try:
            return _generate(Random(seed), seed, most)
        except Skip:
            return None
        finally:
            torch.set_default_dtype(before)
            torch.set_rng_state(random_state)


def _generate(random: Random, seed: int, most: int) -> Program:
    torch.manual_seed(seed)
    dtype = random.choices(["float32", "float64", "bfloat16"], [84, 9, 7])[0]
    torch.set_default_dtype(getattr(torch, dtype))
    g = Draft(random)
    for _ in range(random.choice([1, 1, 2])):
        g.input(_input(random))
    names = list(OPS)
    # Each program knows a part of the grammar, so that ops meet in many combinations.
    weights = [OPS[n][0] * random.choice([0, 1, 1, 3]) for n in names]
    for _ in range(random.randint(3, most)):
        for _ in range(TRIES):
            name = random.choices(names, weights)[0]
            if g.add(name, OPS[name][1]):
                break
    return _finish(g, seed, dtype)


def _input(random: Random) -> str:
    b = random.choice([1, 2, 2, 3, 4])
    kind = random.choices(["rows", "sequence", "image", "vector"], [40, 30, 27, 3])[0]
    shape: tuple[int, ...]
    if kind == "rows":
        shape = (random.choice([b, 8, 16]), random.choice([4, 6, 8, 12, 16]))
    elif kind == "sequence":
        shape = (b, random.choice([3, 4, 6]), random.choice([4, 6, 8]))
    elif kind == "image":
        side = random.choice([4, 6, 8])
        shape = (b, random.choice([2, 3, 4]), side, random.choice([side, side, 5]))
    else:
        shape = (random.choice([8, 16]),)
    layout = random.choices(
        ["plain", "transposed", "sliced", "expanded", "channels_last"], [55, 13, 10, 7, 15]
    )[0]
    last = len(shape) - 1
    made = f"torch.randn({', '.join(map(str, shape))})"
    if layout == "transposed" and last:
        turned = (*shape[:-2], shape[-1], shape[-2])
        made = f"torch.randn({', '.join(map(str, turned))}).mT"
    elif layout == "sliced":
        made = f"torch.randn({', '.join(map(str, (*shape[:-1], shape[-1] * 2)))})[..., ::2]"
    elif layout == "expanded" and last:
        made = f"torch.randn({', '.join(map(str, shape[1:]))}).expand({shape[0]}, *{shape[1:]})"
    elif layout == "channels_last" and len(shape) == 4:
        made += ".to(memory_format=torch.channels_last)"
    if layout != "expanded" and random.random() < 0.35:
        made += ".requires_grad_()" if layout != "sliced" else ".detach().requires_grad_()"
    return made


def _finish(g: Draft, seed: int, dtype: str) -> Program:
    """What is returned, and what is differentiated."""
    random = g.random
    ends = [n for n in _unread(g) if floating(g.tensor(n)) and g.tensor(n).requires_grad]
    if not ends:
        ends = [g.pick(grad=True)]
    if len(ends) > 4:
        ends = random.sample(ends, 4)
    style = random.choices(["loss", "fitted", "outputs", "pair"], [45, 20, 25, 10])[0]
    loss = target = objective = ""
    if style == "fitted":
        out = ends[-1]
        shape = g.shape(out)
        rest = [f"{n}.mean()" for n in ends[:-1] if g.tensor(n).dtype == g.tensor(out).dtype]
        result = " + ".join([out, *rest])
        of = random.choice(["F.mse_loss", "F.l1_loss", "F.smooth_l1_loss", "F.huber_loss"])
        loss = f"{of}(out, target)"
        target = f"torch.randn({', '.join(map(str, shape)) or '()'}, dtype={g.tensor(out).dtype})"
        if len(shape) >= 2 and random.random() < 0.3:
            target = f"torch.randint(0, {shape[1]}, {(shape[0], *shape[2:])})"
            loss = "F.cross_entropy(out, target)"
    elif style == "outputs":
        result = ends[0] if len(ends) == 1 else f"({', '.join(ends)})"
        if len(ends) > 1 and random.random() < 0.3:
            pairs = ", ".join(f'"{n}": {n}' for n in ends)
            result = f"{{{pairs}}}"
        each = random.choice(["o.sum()", "o.pow(2).mean()", "o.float().sin().sum()", "o.mean()"])
        leaves = "[out]" if len(ends) == 1 else "out.values()" if "{" in result else "out"
        objective = f"sum(({each}).double() for o in {leaves})"
    else:
        terms = [_scalar(g, n) for n in ends]
        result = " + ".join(terms)
        if style == "pair":
            extra = g.pick()
            result = f"({result}, {extra}{random.choice(['', '.detach()', '.mean().detach()'])})"
            objective = "out[0]"
    return Program(
        seed=seed,
        dtype=dtype,
        parts=dict(g.parts),
        inputs=dict(g.inputs),
        statements=tuple(g.statements),
        result=result,
        loss=loss,
        target=target,
        objective=objective,
        accumulate=random.random() < 0.3,
        update=random.random() < 0.3,
    ).trimmed()


def _unread(g: Draft) -> list[str]:
    """Variables that no later statement names, and the newest one."""
    made = [n for s in g.statements for n in s.makes]
    read: set[str] = set()
    for s in g.statements:
        text = s.code
        for n in s.makes:
            text = text.replace(f"{n} = ", "", 1)
        read |= {n for n in made if n not in s.makes and _names(text, n)}
    return [n for n in made if n not in read]


def _names(text: str, name: str) -> bool:
    import re

    return re.search(rf"\b{name}\b", text) is not None


def _scalar(g: Draft, name: str) -> str:
    t = g.tensor(name)
    if t.ndim == 0:
        return name
    forms = [
        "{x}.pow(2).mean()",
        "{x}.mean()",
        "{x}.sum() * 0.1",
        "{x}.sin().mean()",
        "{x}.abs().mean()",
        "F.mse_loss({x}, torch.zeros_like({x}))",
        "F.smooth_l1_loss({x}, torch.ones_like({x}))",
        "{x}.logsumexp(-1).mean()",
        "({x} * {x}.detach()).mean()",
        "{x}.norm()",
    ]
    if t.ndim >= 2 and t.shape[1] >= 2 and t.dtype in (torch.float32, torch.float64):
        forms += [class_losses(g, name)] if g.chance(0.15) else []
    return str(g.random.choice(forms)).format(x=name)
