"""Private names for branches on data that are decided as they went once (see `compat`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._dynamo.symbolic_convert import InstructionTranslator, InstructionTranslatorBase
from torch._dynamo.variables import ConstantVariable, SymNodeVariable, TensorVariable
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.functions import UserFunctionVariable
from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_unbacked_symbols
from torch.utils._pytree import tree_leaves

from memfit.pytorch.compat.constants import decides
from memfit.pytorch.compat.dynamo import depends_on_data
from memfit.pytorch.compat.symbols import SYMBOLIC, sizes_depend_on_data
from memfit.pytorch.compat.versions import config_values

__all__ = ["Checks", "outcomes_can_be_known", "outcomes_known"]

_READ = "aten::_local_scalar_dense"
_EQUAL, _CLOSE = "aten::equal", "aten::allclose"
_DRAW = ("rand", "bernoulli", "normal", "multinomial", "uniform", "poisson", "exponential")


class Checks(NamedTuple):
    """Ops that check in a graph what a trace took for granted; each is told where last.

    Attributes:
        outcome: takes a tensor of one truth value, and what it should be.
        numbers: takes a tensor of whole numbers, and what they should be.
        assertion: takes a truth value.
        where: file and line of functions, innermost last, as the ops are told.
    """

    outcome: Any
    numbers: Any
    assertion: Any
    where: Callable[[Sequence[tuple[str, int]]], str]


Take = Callable[[Any, Sequence[tuple[str, str]], str], Any]
"""The next number that an op reads in a trace (an object that stands for it), in functions by file
and name, innermost first; None where it is not known."""


def outcomes_can_be_known() -> bool:
    """Whether this PyTorch has the names that `outcomes_known` is made of; 2.13 has."""
    return all(
        hasattr(owner, name)
        for owner, name in (
            (ShapeEnv, "_log_real_tensor_propagation"),
            (ShapeEnv, "set_real_tensor_prop_unbacked_vals"),
            (SymNodeVariable, "evaluate_expr"),
            (TensorVariable, "bool_impl"),
            (TensorVariable, "nb_index_impl"),
        )
    )


@contextmanager
def outcomes_known(take: Take, checks: Checks, *, pinned: bool = False) -> Iterator[None]:
    """Tracing knows the numbers that code reads out of tensors, and decides branches by them.

    For each branch it puts a check into the graph. A branch that a random number alone decides
    stays undecided.

    Args:
        take: hands out the numbers.
        checks: ops for the graph.
        pinned: whole numbers that are read are constants for the trace, with a check of each.
    """
    known = _Known(take, checks, pinned)
    settings = [
        (FakeTensorMode, {"dispatch": known.dispatch(FakeTensorMode.dispatch)}),
        (InstructionTranslatorBase, {"pop": known.pop(InstructionTranslatorBase.pop)}),
        (
            TensorVariable,
            {
                "call_method": known.call_method(TensorVariable.call_method),
                "bool_impl": known.bool_impl(TensorVariable.bool_impl),
                "nb_index_impl": known.nb_index_impl(TensorVariable.nb_index_impl),
            },
        ),
        (SymNodeVariable, {"evaluate_expr": known.evaluate_expr(SymNodeVariable.evaluate_expr)}),
        (
            TorchInGraphFunctionVariable,
            {"call_function": known.call_function(TorchInGraphFunctionVariable.call_function)},
        ),
        (ShapeEnv, {"_log_real_tensor_propagation": _only_whole_numbers}),
    ]
    with _all(settings):
        yield


@contextmanager
def _all(settings: Sequence[tuple[Any, dict[str, Any]]]) -> Iterator[None]:
    if not settings:
        yield
        return
    (owner, values), *others = settings
    with config_values(owner, **values), _all(others):
        yield


class _Known:
    def __init__(self, take: Take, checks: Checks, pinned: bool) -> None:
        self._take = take
        self._checks = checks
        self._pinned = pinned
        self._undecided = self._inside = False

    def _next(self, shape_env: Any, op: str = _READ) -> Any:
        stack = TracingContext.extract_stack()
        return self._take(shape_env, [(f.filename, f.name) for f in reversed(stack)], op)

    def _where(self) -> str:
        stack = TracingContext.extract_stack()
        return self._checks.where([(f.filename, f.lineno or 0) for f in stack])

    def dispatch(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Numbers that an op reads have a value that branches are decided by."""

        def dispatch(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = plain(mode, func, types, args, kwargs or {})
            if self._inside or not isinstance(func, torch._ops.OpOverload):
                return result
            if func is torch.ops.aten._local_scalar_dense.default:
                value = self._next(mode.shape_env) if isinstance(result, SYMBOLIC) else None
                if value is not None and not self._undecided:
                    _give(mode.shape_env, result, value)
            elif sizes_depend_on_data(func, args):
                shapes = self._next(mode.shape_env, func._schema.name)
                tensors = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
                for tensor, shape in zip(tensors, shapes or (), strict=False):
                    for size, seen in zip(tensor.shape, shape, strict=True):
                        _give(mode.shape_env, size, seen)
            return result

        return dispatch

    def pop(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """What a jump takes from the stack is decided."""

        def pop(tx: Any) -> Any:
            value = plain(tx)
            instruction = getattr(tx, "current_instruction", None)
            if instruction is None or not decides(instruction.opname):
                return value
            if isinstance(value, SymNodeVariable) and not isinstance(value.sym_num, torch.SymBool):
                return SymNodeVariable.create(tx, value.as_proxy() != 0)
            if not value.is_tensor():
                return value
            return self._decided(tx, value) or value

        return pop

    def bool_impl(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """`bool(tensor)`."""

        def bool_impl(variable: Any, tx: Any) -> Any:
            return self._decided(tx, variable) or plain(variable, tx)

        return bool_impl

    def nb_index_impl(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """A tensor as an index."""

        def nb_index_impl(variable: Any, tx: Any) -> Any:
            return self._item(tx, variable) or plain(variable, tx)

        return nb_index_impl

    def call_method(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """`tensor.item()` and others that read numbers."""

        def call_method(variable: Any, tx: Any, name: str, args: Any, kwargs: Any) -> Any:
            made = None
            if name in ("item", "is_nonzero") and not args and not kwargs:
                made = self._item(tx, variable)
            elif name == "tolist" and self._pinned:
                made = self._list(tx, variable)
            elif name in _COMPARISONS:
                made = self._compared(tx, _COMPARISONS[name], [variable, *args], kwargs)
            if made is not None:
                return made
            self._undecided = name == "item" and _is_whole(variable.dtype) and _is_drawn(variable)
            try:
                return plain(variable, tx, name, args, kwargs)
            finally:
                self._undecided = False

        return call_method

    def call_function(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Functions of PyTorch that compare tensors, or have branches inside."""

        def call_function(variable: Any, tx: Any, args: Any, kwargs: Any) -> Any:
            function = variable.value
            comparison = _FUNCTIONS.get(function)
            made = self._compared(tx, comparison, args, kwargs) if comparison is not None else None
            if made is not None:
                return made
            if not inspect.isfunction(function) or self._inside:
                return plain(variable, tx, args, kwargs)
            self._inside = True  # no check would become of what it decides as a node of the graph
            last = next(iter(reversed(tx.output.graph.nodes)), None)
            try:
                return plain(variable, tx, args, kwargs)
            except Exception as error:
                if not depends_on_data(error):
                    raise
            finally:
                self._inside = False
            _erase_after(tx.output.graph, last)
            inlined = UserFunctionVariable(function)
            return inlined.call_function(tx, list(args), dict(kwargs))

        return call_function

    def evaluate_expr(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Comparisons of numbers that PyTorch does not decide, or does not check."""

        def evaluate_expr(variable: Any, output_graph: Any = None) -> Any:
            try:
                return plain(variable, output_graph)
            except Exception:
                value = _value(variable.sym_num)
                if value is None or _is_drawn(variable):
                    raise
            tx = InstructionTranslator.current_tx()
            holds = variable.as_proxy()
            if not isinstance(value, bool):
                holds = SymNodeVariable.create(tx, holds == value).as_proxy()
            elif not value:
                wrong = tx.output.create_proxy("call_function", torch.sym_not, (holds,), {})
                holds = SymNodeVariable.create(tx, wrong).as_proxy()
            self._check(tx, self._checks.assertion, holds)
            return value

        return evaluate_expr

    def _check(self, tx: Any, op: Any, *args: Any) -> None:
        tx.output.create_proxy("call_function", op, (*args, self._where()), {})

    def _decided(self, tx: Any, variable: Any, op: str = _READ) -> Any:
        """Whether a tensor of one element is true, with a check of it; None where unknown."""
        if _elements(variable) != 1 or _is_drawn(variable):
            return None
        value = self._next(tx.output.shape_env, op)
        if value is None:
            return None
        condition = variable.as_proxy()
        if variable.dtype is not torch.bool:
            condition = condition != 0
        self._check(tx, self._checks.outcome, condition, bool(value))
        return ConstantVariable.create(bool(value))

    def _item(self, tx: Any, variable: Any) -> Any:
        if variable.dtype is torch.bool:
            return self._decided(tx, variable)
        if not (self._pinned and _is_whole(variable.dtype)) or _elements(variable) != 1:
            return None
        value = None if _is_drawn(variable) else self._next(tx.output.shape_env)
        if value is None:
            return None
        self._check(tx, self._checks.numbers, variable.as_proxy(), [value])
        return ConstantVariable.create(value)

    def _list(self, tx: Any, variable: Any) -> Any:
        count = _elements(variable)
        if count is None or not _is_whole(variable.dtype) or _is_drawn(variable):
            return None
        values = [self._next(tx.output.shape_env) for _ in range(count)]
        if not values or None in values:
            return None
        self._check(tx, self._checks.numbers, variable.as_proxy(), values)
        shape = variable.as_proxy().node.meta["example_value"].shape
        nested: Any = iter(values)
        for size in reversed(shape[1:]):
            nested = zip(*[nested] * size, strict=True)
        as_lists = _lists(list(nested)) if shape else values[0]
        return VariableTracker.build(tx, as_lists)

    def _compared(self, tx: Any, comparison: Any, args: Any, kwargs: Any) -> Any:
        op, function = comparison
        if not all(x.is_tensor() for x in args[:2]):
            return None
        if op == _EQUAL and _shape(args[0]) != _shape(args[1]):
            return None
        made = VariableTracker.build(tx, function).call_function(tx, list(args), dict(kwargs))
        return self._decided(tx, made, op)


def _erase_after(graph: fx.Graph, last: fx.Node | None) -> None:
    for node in list(reversed(graph.nodes)):
        if node is last:
            return
        graph.erase_node(node)


def _same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a == b).all()


def _close(a: torch.Tensor, b: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.isclose(a, b, *args, **kwargs).all()


_COMPARISONS: dict[str, tuple[str, Any]] = {"equal": (_EQUAL, _same), "allclose": (_CLOSE, _close)}
_FUNCTIONS: dict[Any, tuple[str, Any]] = {
    torch.equal: (_EQUAL, _same),
    torch.allclose: (_CLOSE, _close),
}


def _lists(value: Any) -> Any:
    return [_lists(x) for x in value] if isinstance(value, (list, tuple)) else value


def _is_whole(dtype: Any) -> bool:
    return isinstance(dtype, torch.dtype) and not dtype.is_floating_point and not dtype.is_complex


def _shape(variable: Any) -> Any:
    example = variable.as_proxy().node.meta.get("example_value")
    return tuple(example.shape) if isinstance(example, torch.Tensor) else None


def _elements(variable: Any) -> int | None:
    example = variable.as_proxy().node.meta.get("example_value")
    count = example.numel() if isinstance(example, torch.Tensor) else None
    return count if isinstance(count, int) else None


def _give(shape_env: Any, number: Any, value: Any) -> None:
    symbols = list(free_unbacked_symbols(number)) if isinstance(number, SYMBOLIC) else []
    for symbol in symbols if len(symbols) == 1 else ():
        shape_env.set_real_tensor_prop_unbacked_vals(
            symbol, int(value) if isinstance(value, bool) else value
        )


def _value(number: Any) -> bool | int | float | None:
    """What a number was in the run that was seen; None where that is not known."""
    shape_env = number.node.shape_env
    found = number.node.expr.xreplace(shape_env.real_tensor_prop_unbacked_vals)
    if getattr(found, "free_symbols", None):
        return None
    kind = {torch.SymBool: bool, torch.SymInt: int, torch.SymFloat: float}[type(number)]
    value: bool | int | float = kind(found)
    return value


def _only_whole_numbers(shape_env: Any, expression: Any, _: Any) -> None:
    """PyTorch checks comparisons of whole numbers; those of others it would leave out."""
    if not all(symbol.is_integer for symbol in expression.free_symbols):
        raise shape_env._make_data_dependent_error(expression, expression)


def _is_drawn(variable: Any) -> bool:
    """Whether a tensor is made of numbers of one element, one of which is a random one.

    Not a uniform number below 0, or up to 1: layers that are left out with probability 0 never are.
    """
    seen: set[fx.Node] = set()
    following = [variable.as_proxy().node]
    while following:
        node = following.pop()
        if _is_certain(node):
            continue
        example = node.meta.get("example_value")
        count = example.numel() if isinstance(example, torch.Tensor) else int(_is_symbolic(example))
        if node in seen or not isinstance(count, int) or count != 1:
            continue
        seen.add(node)
        if node.op != "placeholder" and _name(node).startswith(_DRAW):
            return True
        following.extend(node.all_input_nodes)
    return False


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, SYMBOLIC)


def _name(node: fx.Node) -> str:
    found = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(found)


def _is_certain(node: fx.Node) -> bool:
    """Whether a node compares a number of [0, 1) with one that it is always, or never, below."""
    if _name(node) not in ("lt", "le", "gt", "ge") or len(node.args) != 2:
        return False
    drawn, other = node.args
    while isinstance(drawn, fx.Node) and _name(drawn) == "item":
        drawn = drawn.args[0]
    uniform = isinstance(drawn, fx.Node) and drawn.op != "placeholder" and _name(drawn) == "rand"
    if not uniform or not isinstance(other, (int, float)):
        return False
    return other >= 1 or other < 0 or (other == 0 and _name(node) in ("lt", "ge"))
