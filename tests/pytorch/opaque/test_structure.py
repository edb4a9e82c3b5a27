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
    tensors, structure = parted(value)
    assert [id(x) for x in tensors] == [id(a), id(b), id(a), id(a)]
    assert together(structure, tensors) == value
    assert parted([1])[1] != parted([True])[1]
    assert parted([1])[1] != parted((1,))[1]
    assert parted(OrderedDict(a=a))[1] == parted({"a": a})[1]
    with pytest.raises(CannotBeParted, match="a generator"):
        parted([a, (one for one in (a, b))])


def test_objects_that_a_call_makes_are_made_again() -> None:
    a, b = torch.ones(2), torch.zeros(2)
    tensors, structure = parted(Cache([Layer(a, b), Layer(b, a)]))
    assert structure == parted(Cache([Layer(b, b), Layer(a, a)]))[1]
    assert structure != parted(Cache([Layer(b, b)]))[1]
    made = together(structure, tensors)
    assert type(made) is Cache
    assert made.layers[1].keys is b
    assert torch.equal(made.both(), torch.full([2], 2.0))
    linear = nn.Linear(1, 1)
    assert together(parted(linear)[1], []) is linear  # what lasts is the same
    made.layers[0].keys = made
    with pytest.raises(CannotBeParted, match="holds itself"):
        parted(made)
