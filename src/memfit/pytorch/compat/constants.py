"""Private or experimental names for tensors whose content is known while tracing (see `compat`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.symbolic_convert import InstructionTranslatorBase
from torch._dynamo.variables import ConstantVariable, NumpyNdarrayVariable, TensorVariable
from torch._dynamo.variables.base import VariableTracker
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves

from memfit.pytorch.compat.symbols import SYMBOLIC
from memfit.pytorch.compat.versions import config_values

__all__ = ["MOST_ELEMENTS", "constants_known", "decides"]

MOST_ELEMENTS = 4096
"""Elements of a tensor above which its content is not looked at."""

_FACTORIES = frozenset(
    {
        "aten::arange",
        "aten::eye",
        "aten::full",
        "aten::linspace",
        "aten::logspace",
        "aten::ones",
        "aten::scalar_tensor",
        "aten::tril_indices",
        "aten::triu_indices",
        "aten::zeros",
    }
)


@contextmanager
def constants_known() -> Iterator[None]:
    """Tracing knows the content of small tensors that are computed from nothing but constants.

    So `torch.arange(2, x.dim()).tolist()` is a list of numbers, and a branch on such a tensor is
    decided. PyTorch itself knows that of tensors of one element; what is written in place to such a
    tensor is followed or makes it unknown.
    """
    with (
        config_values(fake_tensor, CONSTANT_NUMEL_LIMIT=MOST_ELEMENTS),
        config_values(FakeTensorMode, dispatch=_dispatch),
        config_values(InstructionTranslatorBase, pop=_pop),
        config_values(TensorVariable, call_method=_asked(TensorVariable.call_method)),
        config_values(NumpyNdarrayVariable, call_method=_asked(NumpyNdarrayVariable.call_method)),
    ):
        yield


_plain_dispatch = FakeTensorMode.dispatch
_plain_pop = InstructionTranslatorBase.pop


def _dispatch(
    self: FakeTensorMode, func: Any, types: Any, args: Any = (), kwargs: Any = None
) -> Any:
    result = _plain_dispatch(self, func, types, args, kwargs or {})
    if (
        not isinstance(func, torch._ops.OpOverload)
        or func._schema.name not in _FACTORIES
        or not isinstance(result, FakeTensor)
        or result.constant is not None
        or result.device.type == "meta"
    ):
        return result
    given = tree_leaves((args, kwargs))
    if any(isinstance(x, (torch.Tensor, *SYMBOLIC)) for x in given):
        return result
    if result.numel() > MOST_ELEMENTS:
        return result
    with no_dispatch():
        content = func(*args, **(kwargs or {}))
    return self.fake_tensor_converter.from_real_tensor(self, content, make_constant=True)


def _pop(self: Any) -> Any:
    value = _plain_pop(self)
    instruction = getattr(self, "current_instruction", None)
    if instruction is None or not decides(instruction.opname) or not value.is_tensor():
        return value
    content = _content(value)
    if content is None or content.numel() != 1:
        return value
    with no_dispatch():
        return ConstantVariable.create(bool(content.item()))


def decides(opname: str) -> bool:
    """Whether an instruction takes what is on the stack for a truth value."""
    return opname in ("TO_BOOL", "UNARY_NOT") or (
        "JUMP" in opname and "IF_" in opname and "NONE" not in opname
    )


def _asked(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Dynamo's for calling methods that answers `item` and `tolist` itself."""

    def call_method(self: Any, tx: Any, name: str, args: Any, kwargs: Any) -> Any:
        content = None if args or kwargs or name not in ("item", "tolist") else _content(self)
        if content is None or (name == "item" and content.numel() != 1):
            return plain(self, tx, name, args, kwargs)
        with no_dispatch():
            return VariableTracker.build(tx, getattr(content, name)())

    return call_method


def _content(variable: Any) -> torch.Tensor | None:
    """The content of the tensor that one of Dynamo's variables stands for, None if unknown."""
    found = getattr(variable.proxy.node.meta.get("example_value"), "constant", None)
    return found if isinstance(found, torch.Tensor) else None
