"""Functions and methods that cannot be traced run as one op, wherever their callers find them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import memfit
from memfit.pytorch.opaque.module_state import Versions
from memfit.pytorch.opaque.places import place_of_module, places_at
from memfit.pytorch.opaque.unit import Unit, Watch

WIDTH = 32


def _helper(x: torch.Tensor, scale: float, config: Any = None, *, power: int = 2) -> dict[str, Any]:
    scale = scale if random.random() < 2 else 0.0
    return {"loss": (x * scale).pow(power).mean() + config.extra, "none": None}


def _mask(count: int, *sizes: int, **_: Any) -> np.ndarray:
    random.random()
    return np.arange(count * sizes[0]).reshape(count, *sizes) % 3 == 0


TABLE: dict[str, Callable[..., Any]] = {"helper": _helper, "mask": _mask}
CONFIG = SimpleNamespace(extra=0.5)


class Net(nn.Module):
    """Layers, and something that cannot be traced in a function or a method."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        x = self.layers(x)
        if self.how == "a function in a table":
            loss: torch.Tensor = TABLE["helper"](x, 2.0, CONFIG, power=4)["loss"]
            return loss
        if self.how == "an array":
            mask = torch.as_tensor(TABLE["mask"](len(x), WIDTH, name="mask"))
            return (x * mask).square().mean()
        return self._drawn(x).square().mean()

    def _drawn(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[2](x) if random.random() < 2 else x


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("a function in a table", "_helper()"),
        ("an array", "_mask()"),
        ("a method", "_drawn of the Net"),
    ],
)
def test_it_alone_is_one_op_with_plain_gradients(how: str, said: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = Net(how)
    model = copy.deepcopy(plain)
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    for i in range(2):
        x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(i))
        for call in (plain, fitted):
            call.zero_grad(set_to_none=True)
            call(x).backward()
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-7)
    assert fitted.plan is not None
    (note,) = [note for note in fitted.plan.notes if "runs as one op" in note]
    assert note.startswith(said)
    assert len(fitted.plans) == 1


def _all_kinds(a: int, /, b: int, *more: int, c: int = 3, d: int, **others: int) -> Any:
    return a, b, more, c, d, others


@pytest.mark.parametrize("function", [_all_kinds, _mask, _helper])
def test_a_function_is_replaced_wherever_it_is_held(function: Any) -> None:
    line = function.__code__.co_firstlineno
    (place,) = next(places_at(nn.Module(), __file__, line + 1))
    held, seen = {"f": function}, []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        return place.run(*args, **kwargs)

    if function is _all_kinds:
        place.put(wrapper)
        try:
            assert held["f"](1, 2, 4, 5, d=6, e=7) == (1, 2, (4, 5), 3, 6, {"e": 7})
        finally:
            place.take_back()
        assert seen == [((1, 2, 4, 5), {"c": 3, "d": 6, "e": 7})]
        assert held["f"](1, 2, d=3) == (1, 2, (), 3, 3, {})
        assert len(seen) == 1
    assert place.name == f"{function.__name__}()"


class Outer(nn.Module):
    """What runs as one op, and calls something that would, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The inner layer, squared."""
        inner: torch.Tensor = self.inner(x)
        return inner.square()


def test_what_runs_inside_of_an_opaque_module_is_a_part_of_it() -> None:
    outer, x = Outer(), torch.randn(8, WIDTH)
    watch = Watch(Versions(outer))
    units = [
        Unit(place_of_module(name, module, name), watch)
        for name, module in (("outer", outer), ("outer.inner", outer.inner))
    ]
    for unit in units:
        unit.install()
    watch.on = True
    outer(x)
    for unit in units:
        unit.remove()
    assert not units[1].calls
    (_, call), *_ = units[0].calls
    assert call.taken.saved_bytes == x.nbytes  # the linear layer's result, which square() reads
    assert set(map(id, call.leaves)) == set(map(id, outer.parameters()))
    outer(x).sum().backward()
    expected = outer.inner.weight.grad
    assert expected is not None
    assert expected.abs().sum() > 0
