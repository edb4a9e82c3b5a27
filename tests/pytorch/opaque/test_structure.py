"""What opaque modules are given and return: constants, and tensors in structures of all kinds."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import memfit
from memfit.pytorch.opaque.results import given_back, made_within, parted_result
from memfit.pytorch.opaque.structure import CannotBeParted, parted, together

WIDTH = 32


class Pair(NamedTuple):
    """Named values."""

    value: Any
    other: Any = None


@dataclass
class Output:
    """What models of libraries return."""

    loss: Any = None
    hidden: Any = None


class Layer:
    """Keys and values of one layer."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values, self.seen = keys, values, len(keys)
        self.kind = Layer


class Cache:
    """An object that is neither a container nor a dataclass, as caches of keys and values are."""

    setting: Any
    count: int

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers

    def both(self) -> torch.Tensor:
        """Of all layers."""
        assert all(layer.kind is Layer for layer in self.layers)
        return torch.stack([layer.keys + layer.values for layer in self.layers]).sum(0)


class Part(nn.Module):
    """Cannot be traced, for chance decides what it does."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.kind = kind

    def forward(
        self, x: torch.Tensor, mask: Any = None, scale: float = 1.0, extras: Any = (None, 2)
    ) -> Any:
        """Of the structure that the kind names."""
        y = self.layer(x)
        y = y if torch.rand([]) < 0.5 else y * scale * extras[1]
        if mask is not None:
            y = y * mask["rows"]
        return {
            "tensor": y,
            "tuple": (y, None),
            "list": [None, (y, "name"), 3],
            "dict": {"value": y, "none": None},
            "named": Pair(y),
            "dataclass": Output(hidden=(x * 2, y)),
            "object": Cache([Layer(x * 2, y), Layer(y * 2, x)]),
        }[self.kind]


class Net(nn.Module):
    """Two such parts, called in several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Part(kind) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        y = _tensor(self.parts[0](torch.relu(x), mask=None))
        y = _tensor(self.parts[1](y, {"rows": y.detach()}, scale=2.0))
        return _tensor(self.parts[1](y, scale=0.5, extras=[None, 3])).square().mean()


def _tensor(found: Any) -> torch.Tensor:
    if isinstance(found, Cache):
        tensor = found.both()
    elif isinstance(found, Output):
        tensor = found.hidden[0] + found.hidden[1]
    elif isinstance(found, Pair):
        tensor = found.value
    elif isinstance(found, dict):
        tensor = found["value"]
    elif isinstance(found, list):
        tensor = found[1][0] * found[2]
    elif isinstance(found, tuple):
        tensor = found[0]
    else:
        tensor = found
    assert isinstance(tensor, torch.Tensor)
    return tensor


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "kind", ["tensor", "tuple", "list", "dict", "named", "dataclass", "object"]
)
def test_each_part_is_one_op_with_plain_gradients(kind: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = Net(kind)
    model = copy.deepcopy(plain)
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    x = torch.randn(64, WIDTH)
    for i in range(2):
        for call in (plain, fitted):
            call.zero_grad(set_to_none=True)
            torch.manual_seed(i)
            call(x).backward()
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
    assert fitted.plan is not None
    ops = [note for note in fitted.plan.notes if "runs as one op" in note]
    assert {note.partition(" ")[0] for note in ops} == {"parts.0", "parts.1"}


def test_structures_are_taken_apart_and_put_together() -> None:
    a, b = torch.ones(2), torch.zeros(3)
    value = {"a": a, 1: [None, True, 1.5], "p": Pair(b, (a,)), "o": Output(a, {"x": "y"})}
    tensors, structure = parted(value, {})
    assert [id(x) for x in tensors] == [id(a), id(b), id(a), id(a)]
    assert together(structure, tensors) == value
    assert parted([1], {})[1] != parted([True], {})[1]
    assert parted([1], {})[1] != parted((1,), {})[1]
    assert parted(OrderedDict(a=a), {})[1] == parted({"a": a}, {})[1]
    tensors, structure = parted_result(value)
    assert [id(x) for x in tensors] == [id(a), id(b)]  # the same tensor is the same again
    assert given_back(structure, tensors, {}, (), ()) == value
    with pytest.raises(CannotBeParted, match="a generator"):
        parted_result([a, (one for one in (a, b))])


def test_objects_that_a_call_makes_are_made_again() -> None:
    a, b = torch.ones(2), torch.zeros(2)
    tensors, structure = parted_result(Cache([Layer(a, b), Layer(b, a)]))
    assert structure == parted_result(Cache([Layer(b, a), Layer(a, b)]))[1]
    assert structure != parted_result(Cache([Layer(b, b)]))[1]
    made = given_back(structure, tensors, {}, (), ())
    assert type(made) is Cache
    assert made.layers[1].keys is b
    assert torch.equal(made.both(), torch.full([2], 2.0))
    linear = nn.Linear(1, 1)
    assert given_back(parted_result(linear)[1], [], {}, (), ()) is linear  # what lasts is the same
    made.layers[0].keys = made
    with pytest.raises(CannotBeParted, match="holds itself"):
        parted_result(made)


def test_what_a_call_changes_of_an_object_is_given_back() -> None:
    a, b, kept = torch.ones(2), torch.zeros(2), Setting(2)
    cache = Cache([Layer(a, b)])
    cache.setting = kept
    objects: dict[int, Any] = {}
    kinds = [(type(x), tuple(vars(x))) for x in made_within((cache,), lambda x: x is kept)]
    found: list[Any] = []
    tensors, structure = parted((cache,), objects, tuple(kinds), found)
    assert found == [cache]
    assert objects == {id(kept): kept}
    handed: list[Any] = []
    (ours,) = together(structure, tensors, objects, handed)
    assert handed == [ours]
    assert ours.setting is kept
    first = cache.layers[0]
    ours.layers[0].keys = c = torch.full([2], 3.0)
    ours.layers.append(Layer(a, c))
    made, structure = parted_result((ours, c), tensors, handed, objects)
    assert [id(x) for x in made] == [id(c)]  # what it was given is no result
    back, same = given_back(structure, made, objects, tensors, found)
    assert back is cache
    assert same is c
    assert cache.layers[0] is first
    assert (first.keys is c, first.values is b, cache.layers[1].values is c) == (True, True, True)


class Setting:
    """An object that lasts, such as a configuration."""

    def __init__(self, scale: float) -> None:
        self.scale = scale


class Writer(nn.Module):
    """Adds to a cache, in a way that cannot be traced."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.setting = setting

    def forward(self, x: torch.Tensor, cache: Cache | None = None, **rest: Any) -> torch.Tensor:
        """Of all that is in the cache."""
        torch._dynamo.graph_break()
        y = torch.tanh(self.layer(x)) * rest.get("setting", self.setting).scale
        if cache is not None:
            cache.layers.append(Layer(y, x))
            cache.count = len(cache.layers)
            y = y + sum(layer.keys for layer in cache.layers)
        return y


class Decoder(nn.Module):
    """Makes a cache, which its parts write to, as decoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.setting = Setting(0.5)
        self.parts = nn.ModuleList(Writer(self.setting) for _ in range(3))

    def forward(self, x: torch.Tensor) -> Any:
        """Loss and cache."""
        cache = Cache([])
        for part in self.parts:
            x = part(x, cache=cache, setting=self.setting)
        assert cache.count == 3
        last = cache.layers[1].keys + cache.layers[2].values
        return (x * last).square().mean(), cache


@pytest.mark.sampled(2)
@pytest.mark.parametrize("budget", ["100%", "smallest"])
def test_objects_that_a_step_makes_are_written_to(budget: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = Decoder()
    model = copy.deepcopy(plain)
    x = torch.randn(64, WIDTH)
    limit: Any = budget
    if budget == "smallest":
        limit = memfit.plan(model, (x,), budget="1GiB", cost="analytic")
        limit = limit.smallest_feasible_budget_bytes
    fitted = memfit.fit(model, budget=limit, cost="analytic")
    for _ in range(2):
        found = []
        for call in (plain, fitted):
            call.zero_grad(set_to_none=True)
            loss, cache = call(x)
            loss.backward()
            found.append([loss, *(t for one in cache.layers for t in (one.keys, one.values))])
        assert len(found[1]) == 7
        for theirs, ours in zip(*found, strict=True):
            assert torch.equal(theirs, ours)
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
    assert fitted.plan is not None
    ops = [note for note in fitted.plan.notes if "runs as one op" in note]
    assert {note.partition(" ")[0] for note in ops} == {"parts.0", "parts.1", "parts.2"}


class Appending(nn.Module):
    """Writes to a list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Appender()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss."""
        found: list[torch.Tensor] = []
        y = self.part(x, found)
        return (y * found[0]).square().mean()


class Appender(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, found: list[torch.Tensor]) -> torch.Tensor:
        """What it appends as well."""
        torch._dynamo.graph_break()
        y = self.layer(x)
        found.append(y)
        return y


def test_what_writes_to_a_list_is_taken_with_what_is_around_it() -> None:
    torch._dynamo.reset()
    plain = Appending()
    model = copy.deepcopy(plain)
    x = torch.randn(64, WIDTH)
    fitted = memfit.fit(model, budget="100%", cost="analytic")
    fitted(x).backward()
    plain(x).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
    assert fitted.plan is not None
    assert any(note.startswith("the Appending") for note in fitted.plan.notes)
