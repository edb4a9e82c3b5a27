"""What changes between two steps of a fitted module is captured anew, or refused; never missed.

A plain copy of the network gets the same change; losses, gradients, buffers and the random state
have to be its, bit for bit.
"""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as modules
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

import memfit
from memfit.errors import CaptureError
from memfit.pytorch.prepare.unguarded import Unguarded

WIDTH = 4
factor = 1.0
table = {"a": 1.0}


def scaled(x: torch.Tensor) -> torch.Tensor:
    return x * factor


def tripled(x: torch.Tensor) -> torch.Tensor:
    return x * 3


class Options:
    """Read by the network."""

    def __init__(self) -> None:
        self.gain = 1.0

    def use(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled by the gain."""
        return x * self.gain


class Base(nn.Module):
    """Something to inherit."""

    level = 1.0

    def twist(self, x: torch.Tensor) -> torch.Tensor:
        """Something to override."""
        return x


class Net(Base):
    """Reads all sorts of things."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Tanh()])
        self.norm = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.5)
        self.w = nn.Parameter(torch.ones(WIDTH))
        self.v = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("b", torch.ones(WIDTH))
        self.const = torch.ones(WIDTH)
        self.scale, self.name, self.pair, self.none = 1.0, "a", (1.0,), None
        self.parts, self.table, self.options = [1.0], {"a": 1.0}, Options()
        self.act = torch.tanh

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """A method."""
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Everything that it holds, multiplied."""
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        x = self.drop(self.norm(self.act(x))) * self.w * self.v * self.b * self.const
        for number in (self.scale, *self.pair, *self.parts, *self.table.values(), self.level):
            x = x * number
        if self.none is not None:
            x = x * self.none
        x = x if self.name == "a" else 2 * x
        return scaled(self.options.use(self.twist(self.own(x)))) * table["a"]


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Doubled."""
        return x * 2


def full(value: float, **options: Any) -> torch.Tensor:
    return torch.full((WIDTH,), value, **options)


def linear() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(WIDTH, WIDTH)


def doubled(result: torch.Tensor) -> torch.Tensor:
    return result * 2


Change = Callable[[Any], Any]
CHANGES: dict[str, Change] = {
    "a number": lambda m: setattr(m, "scale", 2.0),
    "a text": lambda m: setattr(m, "name", "b"),
    "a tuple": lambda m: setattr(m, "pair", (2.0, 3.0)),
    "an entry of a list": lambda m: m.parts.__setitem__(0, 0.5),
    "a longer list": lambda m: m.parts.append(2.0),
    "an entry of a dictionary": lambda m: m.table.update(a=3.0),
    "an attribute of an object": lambda m: setattr(m.options, "gain", 2.0),
    "something instead of None": lambda m: setattr(m, "none", full(2.0)),
    "a tensor that is no buffer": lambda m: setattr(m, "const", full(2.0)),
    "the data of a tensor that is no buffer": lambda m: setattr(m.const, "data", full(0.5)),
    "a function": lambda m: setattr(m, "act", torch.sigmoid),
    "a module": lambda m: setattr(m, "first", linear()),
    "a module of another kind": lambda m: setattr(m, "first", nn.Softplus()),
    "a module of a list": lambda m: m.layers.__setitem__(0, linear()),
    "one more module in a list": lambda m: m.layers.append(nn.Sigmoid()),
    "the same module twice in a list": lambda m: m.layers.append(m.layers[0]),
    "another parameter": lambda m: setattr(m, "w", nn.Parameter(full(2.0))),
    "no parameter": lambda m: setattr(m.layers[0], "bias", None),
    "one parameter for two": lambda m: setattr(m, "v", m.w),
    "two parameters for one": lambda m: setattr(m, "v", nn.Parameter(full(3.0))),
    "other data": lambda m: setattr(m.w, "data", full(3.0)),
    "data of another type": lambda m: setattr(m.w, "data", full(3.0, dtype=torch.float64)),
    "data of another shape": lambda m: setattr(m.v, "data", torch.full((1,), 3.0)),
    "data shared with a buffer": lambda m: setattr(m.w, "data", m.b),
    "another buffer": lambda m: setattr(m, "b", full(2.0)),
    "a buffer of another type": lambda m: setattr(m, "b", full(2.0, dtype=torch.float64)),
    "a frozen parameter": lambda m: m.v.requires_grad_(False),
    "a trained buffer": lambda m: m.b.requires_grad_(True),
    "a module in eval mode": lambda m: m.drop.eval(),
    "all in eval mode": lambda m: m.eval(),
    "all in training mode": lambda m: m.train(),
    "the share of dropout": lambda m: setattr(m.drop, "p", 0.25),
    "the momentum of batch norm": lambda m: setattr(m.norm, "momentum", 0.5),
    "a cumulative average": lambda m: setattr(m.norm, "momentum", None),
    "no running statistics": lambda m: setattr(m.norm, "track_running_stats", False),
    "a parametrization": lambda m: parametrize.register_parametrization(
        m.layers[0], "weight", Twice()
    ),
    "no parametrization": lambda m: parametrize.remove_parametrizations(m.layers[0], "weight"),
    "a method of the object": lambda m: setattr(m, "own", tripled),
    "forward of the object": lambda m: setattr(
        m.layers[0], "forward", types.MethodType(lambda self, x: F.softsign(x), m.layers[0])
    ),
    "another class": lambda m: setattr(m, "__class__", type("Other", (Net,), {"level": 2.0})),
    "a forward hook": lambda m: m.first.register_forward_hook(lambda *a: doubled(a[2])),
    "a second one": lambda m: m.first.register_forward_hook(lambda *a: F.dropout(a[2], 0.5)),
    "a hook before": lambda m: m.norm.register_forward_pre_hook(lambda *a: (doubled(a[1][0]),)),
    "a hook with keywords": lambda m: m.drop.register_forward_hook(
        lambda *a: doubled(a[3]), with_kwargs=True
    ),
    "a hook of the model": lambda m: m.register_forward_hook(lambda *a: doubled(a[2])),
    "no hooks": lambda m: [part._forward_hooks.clear() for part in m.modules()],
    "a hook of a parameter": lambda m: m.w.register_hook(doubled),
    "a hook after accumulation": lambda m: m.w.register_post_accumulate_grad_hook(
        lambda p: setattr(p, "grad", p.grad * 2)
    ),
}


class Pair:
    """A plain network, and a fitted copy beside it."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        self.plain = Net()
        self.model = copy.deepcopy(self.plain)
        self.x = torch.randn(8, WIDTH)
        self.fitted = memfit.fit(self.model, budget="1GiB", cost="analytic", max_shapes=500)
        self.compare()

    def compare(self) -> float:
        """A step with each; the loss."""
        ends = []
        for module, call in ((self.plain, self.plain), (self.model, self.fitted)):
            module.zero_grad()
            torch.manual_seed(1)
            loss = call(self.x).float().square().mean()
            loss.backward()
            ends.append((loss, module, torch.rand(2)))
            loss = loss.detach()  # a step that is kept would keep a parameter's old shape
        (loss, plain, after), (fitted_loss, model, fitted_after) = ends
        assert torch.equal(loss, fitted_loss)
        assert torch.equal(after, fitted_after)
        names = dict(model.state_dict(keep_vars=True))
        assert list(names) == list(plain.state_dict())
        for name, tensor in plain.state_dict(keep_vars=True).items():
            assert torch.equal(tensor, names[name]), name
            assert (tensor.grad is None) == (names[name].grad is None), name
            assert tensor.grad is None or torch.equal(tensor.grad, names[name].grad), name
        return loss.item()


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


OWN_CHANGES = {
    "one parameter for two",
    "two parameters for one",
    "a cumulative average",
    "a forward hook",
    "a hook before",
    "a hook of the model",
}
"""Those that Dynamo's ordinary guards miss; the others take a while."""


def marked(name: str, quick: bool) -> Any:
    return pytest.param(name, marks=() if quick else pytest.mark.slow)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [marked(name, name in OWN_CHANGES) for name in CHANGES])
def test_a_change(pair: Pair, name: str) -> None:
    for model in (pair.plain, pair.model):
        CHANGES[name](model)
    pair.compare()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute of a module or a class, or none where it had none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value, raising=False)
        yield


@contextmanager
def hooked(register: Callable[..., Any], kind: type, hook: Callable[..., Any]) -> Iterator[None]:
    """A hook for all modules, which does something to those of one kind."""
    handle = register(lambda module, *a: hook(*a) if isinstance(module, kind) else None)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def switched(turn: Callable[[Any], None], to: Any, back: Any) -> Iterator[None]:
    """A setting of PyTorch."""
    turn(to)
    try:
        yield
    finally:
        turn(back)


class Doubling(TorchFunctionMode):
    """Doubles what linear layers compute."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        result = func(*args, **(kwargs or {}))
        return doubled(result) if func is F.linear else result


linear_forward, module_call = nn.Linear.forward, nn.Module.__call__
SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "a global number": lambda: replaced(sys.modules[__name__], "factor", 2.0),
    "a global function": lambda: replaced(sys.modules[__name__], "scaled", tripled),
    "the code of a function": lambda: replaced(scaled, "__code__", tripled.__code__),
    "a global dictionary": lambda: replaced(sys.modules[__name__], "table", {"a": 2.0}),
    "an attribute of the class": lambda: replaced(Base, "level", 2.0),
    "an attribute that hides an inherited one": lambda: replaced(Net, "level", 3.0),
    "a method of the class": lambda: replaced(Net, "own", lambda self, x: x * 3),
    "the code of a method": lambda: replaced(Net.own, "__code__", (lambda s, x: x * 3).__code__),
    "an inherited method": lambda: replaced(Base, "twist", lambda self, x: x * 3),
    "a method that hides an inherited one": lambda: replaced(Net, "twist", lambda self, x: x * 4),
    "a method of what the network holds": lambda: replaced(Options, "use", lambda s, x: x * 5),
    "forward of a library's class": lambda: replaced(
        nn.Linear, "forward", lambda self, x: doubled(linear_forward(self, x))
    ),
    "a call of a library's class": lambda: replaced(
        nn.Linear, "__call__", lambda self, x: doubled(module_call(self, x))
    ),
    "a function of a library": lambda: replaced(
        F, "batch_norm", lambda x, *a: torch.sigmoid(x) * 2
    ),
    "a hook of all modules": lambda: hooked(
        modules.register_module_forward_hook, nn.Linear, lambda _, output: doubled(output)
    ),
    "a hook of all modules before": lambda: hooked(
        modules.register_module_forward_pre_hook, Net, lambda given: (doubled(given[0]),)
    ),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a mode for functions": Doubling,
    "another default type": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic algorithms": lambda: switched(torch.use_deterministic_algorithms, True, False),
}


_OWN_WORDS = ("class", "method", "inherited", "hook")


@pytest.fixture(scope="module")
def calm() -> Pair:
    """A pair that no test leaves changed."""
    return Pair()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name", [marked(name, any(w in name for w in _OWN_WORDS)) for name in SURROUNDINGS]
)
def test_a_change_around_the_network(calm: Pair, name: str) -> None:
    before = calm.compare()
    with SURROUNDINGS[name]():
        changed = calm.compare()
        calm.compare()
    assert (changed == before) == (name in ("another default type", "deterministic algorithms"))
    plans = len(calm.fitted.plans)
    assert calm.compare() == before
    assert len(calm.fitted.plans) == plans  # the state that was captured before is known again


def test_nothing_is_captured_anew_where_nothing_changes(calm: Pair) -> None:
    plans = len(calm.fitted.plans)
    for _ in range(3):
        calm.compare()
    other = memfit.fit(nn.Linear(WIDTH, WIDTH), budget="1GiB", cost="analytic")
    other(calm.x).sum().backward()
    calm.compare()
    assert len(calm.fitted.plans) == plans


def halved(*given: Any) -> Any:
    return tuple(None if g is None else g / 2 for g in given[-2])


BACKWARD_HOOKS: dict[str, Callable[[Net], Any]] = {
    "of a module": lambda m: m.layers[0].register_full_backward_hook(halved),
    "of a module, before": lambda m: m.layers[0].register_full_backward_pre_hook(lambda *a: a[1]),
    "of the model": lambda m: m.register_full_backward_hook(halved),
    "of the old kind": lambda m: m.layers[1].register_backward_hook(halved),
    "of all modules": lambda m: modules.register_module_full_backward_hook(halved),
    "of all modules, before": lambda m: modules.register_module_full_backward_pre_hook(
        lambda *a: a[1]
    ),
}


@pytest.mark.parametrize("name", BACKWARD_HOOKS)
def test_backward_hooks_of_modules_are_refused(calm: Pair, name: str) -> None:
    before = calm.compare()
    handle = BACKWARD_HOOKS[name](calm.model)
    try:
        with pytest.raises(CaptureError, match="take off the hooks that modules have") as caught:
            calm.fitted(calm.x)
        assert "\n" not in str(caught.value)
    finally:
        handle.remove()
    assert calm.compare() == before


def test_what_is_set_on_the_fitted_module_is_set_on_the_model() -> None:
    model = Net()
    fitted = memfit.fit(model, budget="1GiB", cost="analytic")
    fitted.scale, fitted.first, fitted.extra = 5.0, nn.Identity(), "a note"
    assert (model.scale, model.extra) == (5.0, "a note")
    assert isinstance(model.first, nn.Identity)
    fitted.register_buffer("c", torch.ones(1), persistent=False)
    assert model.c is fitted.c
    assert "c" not in model.state_dict()
    del fitted.extra, fitted.c
    assert not hasattr(model, "extra")
    assert not hasattr(model, "c")
    fitted.training = False
    assert not model.training
    model.train()
    assert fitted.training
    assert fitted.eval() is fitted
    assert not any(part.training for part in model.modules())
    fitted._progress = None  # its own
    assert "_progress" not in vars(model)


def test_states_of_what_is_not_guarded_are_numbered() -> None:
    class Local(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """The same."""
            return x

    model = nn.Sequential(Local(), nn.Linear(2, 2))
    found = Unguarded(model, None)
    found.look_again({Local.forward.__code__})
    assert found.state() == found.state() == 0
    plain = Local.forward
    Local.forward = tripled  # type: ignore[method-assign]
    assert found.state() == 1
    found.look_again({plain.__code__, tripled.__code__})
    Local.extra = 1  # type: ignore[attr-defined]
    assert found.state() == 2
    del Local.extra  # type: ignore[attr-defined]
    assert found.state() == 1
    Local.forward = plain  # type: ignore[method-assign]
    assert found.state() == 0
