"""Whatever fails on the way from `fit` to the second step is told as memfit's own, in one line."""

from __future__ import annotations

import builtins
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.exc
import torch._inductor.exc
import torch._subclasses.fake_tensor
import torch.fx.experimental.symbolic_shapes
from torch import nn

import memfit
from memfit.errors import CaptureError, ExecutionError, MemfitError
from memfit.pytorch import backend as backend_module
from memfit.pytorch.failures.told import failing
from memfit.pytorch.prepare import for_kernels

_MODULES = (
    torch._dynamo.exc,
    torch._inductor.exc,
    torch._subclasses.fake_tensor,
    torch.fx.experimental.symbolic_shapes,
    torch.linalg,
    torch,
    builtins,
)
_FOR_DYNAMO = (  # it traces anew, or leaves the code alone
    torch._dynamo.exc.SkipFrame,
    torch._dynamo.exc.TensorifyScalarRestartAnalysis,
)
_THEIR_OWN_WAY = (MemoryError, torch.OutOfMemoryError)  # trainers wait for these
TEXT = "what went wrong\nand a second line\n\nand more"


def family() -> list[type[Exception]]:
    """Every class of exceptions of PyTorch's tracing, and Python's own."""
    found = {
        value: None
        for module in _MODULES
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and not issubclass(value, (Warning, ExceptionGroup, *_THEIR_OWN_WAY))
    }
    return list(found)


def made(kind: type[Exception]) -> Exception:
    """An error of a class, however many arguments its constructor wants."""
    error = kind.__new__(kind, TEXT)
    error.args = (TEXT,)
    return error


raising: dict[str, type[Exception]] = {}
"""What is raised where: `fake`, `forward` or `backward`."""


def fail(where: str) -> None:
    if where in raising:
        raise made(raising[where])


@torch.library.custom_op("memfit_failures::forward", mutates_args=())
def forward_op(x: torch.Tensor) -> torch.Tensor:
    """A copy, unless it is to fail."""
    fail("forward")
    return x.clone()


@torch.library.custom_op("memfit_failures::backward", mutates_args=())
def backward_op(x: torch.Tensor) -> torch.Tensor:
    """A copy, unless it is to fail."""
    fail("backward")
    return x.clone()


@forward_op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    fail("fake")
    return torch.empty_like(x)


@backward_op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


forward_op.register_autograd(lambda _, gradient: backward_op(gradient))


class Net(nn.Module):
    """A layer, and an op that may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's result."""
        return forward_op(self.layer(x))


X = torch.ones(3, 2)


def fitted(model: nn.Module | None = None) -> nn.Module:
    return memfit.fit(
        model or Net(), budget="1GiB", cost="analytic", max_shapes=10_000, fullgraph=True
    )


def check(error: BaseException, *parts: str) -> None:
    text = str(error)
    assert isinstance(error, MemfitError), f"{type(error).__name__}: {text[:200]}"
    assert "\n" not in text
    assert "; " in text, "no remedy"
    for part in parts:
        assert part in text


def outcome(call: Callable[[], Any]) -> BaseException | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def wrong(where: str, call: Callable[[], Any], kinds: list[type[Exception]]) -> list[str]:
    """Where an error of a class does not come out as one of memfit's."""
    found = []
    for kind in kinds:
        raising[where] = kind
        try:
            error = outcome(call)
        finally:
            del raising[where]
        try:
            assert error is not None
            check(error)
        except AssertionError as failed:
            found.append(f"{kind.__module__}.{kind.__name__}: {failed}")
    return found


def test_the_family_is_what_it_was_thought_to_be() -> None:
    names = {kind.__name__ for kind in family()}
    assert len(names) > 80
    assert names >= {
        "Unsupported",
        "TorchRuntimeError",
        "BackendCompilerFailed",
        "GuardOnDataDependentSymNode",
        "DataDependentOutputException",
        "DynamicOutputShapeException",
        "InductorError",
        "_LinAlgError",
        "RecursionError",
        "AssertionError",
    }


def test_errors_while_tracing() -> None:
    net = fitted()
    theirs = [kind for kind in family() if kind.__module__ != "builtins"]
    pythons = [kind for kind in family() if kind.__module__ == "builtins"]
    assert wrong("fake", lambda: net(X), [*theirs, *pythons[::4], RecursionError]) == []
    net(X).sum().backward()  # and nothing is left behind


def plan() -> None:
    memfit.plan(Net(), (X,), budget="1GiB", cost="analytic", fullgraph=True)


def verify() -> None:
    memfit.verify(Net(), (X,), budget="1GiB", cost="analytic", rounds=1, fullgraph=True)


def compiled() -> None:
    torch._dynamo.reset()
    options = {"budget": "1GiB", "cost": "analytic"}
    torch.compile(Net(), backend="memfit", options=options)(X)


@pytest.mark.parametrize(
    ("door", "every"),
    [
        (plan, 16),
        (compiled, 16),
        (verify, 24),
        *[pytest.param(d, 1, marks=pytest.mark.slow) for d in (plan, verify, compiled)],
    ],
)
def test_errors_while_tracing_behind_other_doors(
    door: Callable[[], Any], every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = backend_module.prepare_module

    def begun(*given: Any) -> Any:
        if "behind Dynamo" in raising:
            raising["fake"] = raising["behind Dynamo"]
        return begin(*given)

    def call() -> None:
        try:
            door()
        finally:
            raising.pop("fake", None)

    monkeypatch.setattr(backend_module, "prepare_module", begun)
    theirs = [k for k in family() if k.__module__ != "builtins" and k not in _FOR_DYNAMO]
    assert wrong("behind Dynamo", call, theirs[::every]) == []


def test_errors_in_memfits_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    net = fitted()

    def normalise(*_: Any) -> None:
        fail("own")

    monkeypatch.setattr(for_kernels.J, "normalise", normalise)
    few = [*[k for k in family() if k.__module__ != "builtins"][::16], KeyError, AssertionError]
    assert wrong("own", lambda: net(X), few) == []


def test_errors_while_a_step_runs() -> None:
    net = fitted()
    net(X).sum().backward()
    assert wrong("forward", lambda: net(X), family()) == []

    def step() -> None:
        net(X).sum().backward()

    assert wrong("backward", step, family()) == []
    step()


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_error_of_a_kernel_is_of_its_own_class_too(where: str) -> None:
    net = fitted()
    raising[where] = torch.linalg.LinAlgError
    try:
        with pytest.raises(torch.linalg.LinAlgError) as caught:
            net(X).sum().backward()
    finally:
        del raising[where]
    check(caught.value, f"Net fails in its {where} pass: LinAlgError: what went wrong", "the line")
    assert isinstance(caught.value, (ExecutionError, RuntimeError))
    assert isinstance(caught.value.__cause__, torch.linalg.LinAlgError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("kind", _THEIR_OWN_WAY)
def test_running_out_of_memory_stays_what_it_is(kind: type[Exception], where: str) -> None:
    net = fitted()
    raising[where] = kind
    try:
        with pytest.raises(kind) as caught:
            net(X).sum().backward()
    finally:
        del raising[where]
    assert not isinstance(caught.value, MemfitError)


def test_interrupts_are_no_errors_of_a_step() -> None:
    with pytest.raises(KeyboardInterrupt), failing("Net", "forward"):
        raise KeyboardInterrupt


class Lookup(nn.Module):
    """An embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The rows."""
        return self.embed(x)


def test_a_kernel_that_refuses_its_input() -> None:
    net = fitted(Lookup())
    net(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(IndexError) as caught:
        net(torch.tensor([1, 4]))
    check(caught.value, "Lookup fails in its forward pass: IndexError: index out of range")
    net(torch.tensor([1, 3])).sum().backward()


class Squares(nn.Module):
    """Saves its parameter for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A product."""
        return (self.w * self.w * x).sum()


def test_a_parameter_written_between_the_passes() -> None:
    model = Squares()
    loss = fitted(model)(torch.ones(3))
    with torch.no_grad():
        model.w.add_(1)
    with pytest.raises(RuntimeError) as caught:
        loss.backward()
    check(caught.value, "modified by an inplace operation", "not between them")


def test_a_second_backward_pass() -> None:
    loss = fitted(Squares())(torch.ones(3))
    loss.backward()
    with pytest.raises(ExecutionError) as caught:
        loss.backward()
    check(caught.value, "call backward() once")


def test_a_compiled_graph_tells_so_too() -> None:
    torch._dynamo.reset()
    options = {"budget": "1GiB", "cost": "analytic"}
    net = torch.compile(Net(), backend="memfit", options=options)
    net(X).sum().backward()
    for where in ("forward", "backward"):
        raising[where] = ValueError
        try:
            error = outcome(lambda: net(X).sum().backward())
        finally:
            del raising[where]
        assert isinstance(error, ValueError)
        check(error, f"fails in its {where} pass")


def test_the_models_own_errors_are_told_with_their_line() -> None:
    with pytest.raises(CaptureError) as caught:
        fitted(nn.Linear(5, 5))(X)
    check(caught.value, "Linear fails on these inputs", "check number, shapes and dtypes")
