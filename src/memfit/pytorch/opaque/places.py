"""Code that may run as one op: found by its lines, and replaced where callers look it up."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from memfit.pytorch.failures.source_files import is_users

__all__ = ["Place", "named", "place_of_module", "places_at", "sparse_embeddings"]


@dataclass(eq=False)
class Place:
    """A function, a method or a module's forward, and where it is looked up when it is called.

    Attributes:
        key: the same for the same code.
        kind: the same for all that are made opaque together.
        name: for people.
        module: whose state a run may change.
        own: what runs, with the arguments of a call.
        whole: it is all of `module` that runs.
        instance: the newest object whose method it is, where objects are made anew in each step.
    """

    key: Any
    kind: Any
    name: str
    module: nn.Module
    own: Callable[..., Any]
    whole: bool = False
    instance: Any = None
    _holders: Sequence[tuple[Any, str]] = ()
    _before: list[Any] = field(default_factory=list)

    def put(self, wrapper: Callable[..., Any]) -> None:
        """From here on, who calls it calls the wrapper."""
        self._before = []
        for holder, name in self._holders:
            if isinstance(holder, FunctionType):
                self._before.append(holder.__code__)
                holder.__globals__[_global_of(holder)] = wrapper
                holder.__code__ = _trampoline(holder)
                continue
            self._before.append(_names(holder).get(name, _NOTHING))
            _set(holder, name, wrapper)

    def take_back(self) -> None:
        """It is itself again."""
        for (holder, name), before in zip(self._holders, self._before, strict=True):
            if before is _NOTHING:
                _names(holder).pop(name, None)
            else:
                _set(holder, name, before)
        self._before = []

    @property
    def of_class(self) -> bool:
        """Whether callers hand over an object first."""
        return any(isinstance(holder, type) for holder, _ in self._holders)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the code itself."""
        given = (self.instance, *args) if self.of_class else args
        return self.own(*given, **kwargs)


_NOTHING = object()


def _names(holder: Any) -> MutableMapping[str, Any]:
    return holder if isinstance(holder, dict) else vars(holder)


def _set(holder: Any, name: str, value: Any) -> None:
    if isinstance(holder, (type, FunctionType)):
        setattr(holder, name, value)
    else:
        _names(holder)[name] = value


def _global_of(function: FunctionType) -> str:
    return f"__memfit_{id(function)}"


@cache
def _trampoline(function: FunctionType) -> CodeType:
    """Code that calls the wrapper: whoever holds the function, in whatever table, calls it then.

    It takes the same parameters, which Dynamo remembers of a function.
    """
    code = function.__code__
    names = list(code.co_varnames)
    count = code.co_argcount
    plain, rest = names[:count], names[count:]
    keywords, rest = rest[: code.co_kwonlyargcount], rest[code.co_kwonlyargcount :]
    parameters = [*plain[: code.co_posonlyargcount], "/"] if code.co_posonlyargcount else []
    parameters += plain[code.co_posonlyargcount :]
    given = list(plain)
    if code.co_flags & inspect.CO_VARARGS:
        parameters.append(f"*{rest[0]}")
        given.append(f"*{rest.pop(0)}")
    elif keywords:
        parameters.append("*")
    parameters += keywords
    given += [f"{name}={name}" for name in keywords]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        parameters.append(f"**{rest[0]}")
        given.append(f"**{rest[0]}")
    scope: dict[str, Any] = {}
    called = f"{_global_of(function)}({', '.join(given)})"
    source = f"def trampoline({', '.join(parameters)}): return {called}"
    exec(compile(source, __file__, "exec"), scope)
    made: CodeType = scope["trampoline"].__code__
    return made.replace(co_name=function.__name__)


def named(path: str, module: nn.Module) -> str:
    """A module by its path in a step, for people."""
    path = "" if path == "model" else path.removeprefix("model.")
    return f"{path} ({type(module).__name__})" if path else f"the {type(module).__name__}"


def place_of_module(path: str, module: nn.Module, kind: Any) -> Place:
    """The forward of a module of a step."""
    name = named(path, module)
    own = module.forward
    return Place(module, kind, name, module, own, whole=True, _holders=[(module, "forward")])


def places_at(step: nn.Module, file: str, line: int) -> Iterator[list[Place]]:
    """The code around a line that may run as one op, the narrowest first.

    Args:
        step: the step.
        file, line: of the code.

    Yields:
        Places that are made opaque together: all modules of one class, for one.
    """
    if not is_users(file):
        return
    modules = list(step.named_modules())
    kinds = {
        kind: None
        for _, module in modules
        if module is not step
        for kind in type(module).__mro__
        if issubclass(kind, nn.Module) and kind is not nn.Module
    }
    for kind in kinds:
        if not _holds(_lines(kind), file, line):
            continue
        method = _method(kind, file, line)
        own = [(path, m) for path, m in modules if isinstance(m, kind) and m is not step]
        if method not in (None, "forward"):
            yield [_place_of_method(path, m, kind, str(method)) for path, m in own]
        yield [place_of_module(path, m, kind) for path, m in own]
        return
    for namespace in _namespaces(file):
        for value in list(namespace.values()):
            found = _lines(value) if isinstance(value, (FunctionType, type)) else ("", 0, 0)
            if not _holds(found, file, line):
                continue
            if isinstance(value, FunctionType):
                yield [_place_of_function(step, value)]
            elif issubclass(value, nn.Module):  # made anew in each step
                own_forward = value.forward
                name = f"{value.__name__}, which is made anew in each step,"
                holders = [(value, "forward")]
                yield [Place(value, value, name, step, own_forward, _holders=holders)]
            return


def sparse_embeddings(step: nn.Module, path: str) -> list[Place]:
    """The embeddings with sparse gradients of a step, where a path names one of them."""
    found = {
        name: m
        for name, m in step.named_modules()
        if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse
    }
    if path not in found:
        return []
    return [place_of_module(name, m, "sparse embeddings") for name, m in found.items()]


def _place_of_method(path: str, module: nn.Module, kind: type[nn.Module], method: str) -> Place:
    name = f"{method} of {named(path, module)}"
    own = getattr(module, method)
    return Place((module, method), (kind, method), name, module, own, _holders=[(module, method)])


def _place_of_function(step: nn.Module, function: FunctionType) -> Place:
    name = f"{function.__name__}()"
    if function.__closure__ is None:
        own = FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__
        )
        own.__kwdefaults__ = function.__kwdefaults__
        return Place(function, function, name, step, own, _holders=[(function, "__code__")])
    holders: list[tuple[Any, str]] = [
        (vars(module), name)
        for module in list(sys.modules.values())
        if isinstance(getattr(module, "__dict__", None), dict)
        for name, value in list(vars(module).items())
        if value is function
    ]
    return Place(function, function, name, step, function, _holders=holders)


def _namespaces(file: str) -> Iterator[dict[str, Any]]:
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == file:
            yield vars(module)


def _holds(lines: tuple[str, int, int], file: str, line: int) -> bool:
    own, first, last = lines
    return file == own and first <= line <= last


def _method(kind: type, file: str, line: int) -> str | None:
    """The method of a class that a line is in; None where it is in none that can be replaced."""
    for name, value in vars(kind).items():
        plain = isinstance(value, FunctionType) and not name.startswith("__")
        if plain and _holds(_lines(value), file, line):
            return name
    return None


@cache
def _lines(code: Any) -> tuple[str, int, int]:
    """File of a class or a function, its first line and its last."""
    try:
        lines, first = inspect.getsourcelines(code)
        return inspect.getsourcefile(code) or "", first, first + len(lines) - 1
    except (OSError, TypeError):
        function = getattr(code, "forward", code)
        compiled = getattr(function, "__code__", None)
        if compiled is None:
            return "", 0, 0
        last = max((line or 0 for _, _, line in compiled.co_lines()), default=0)
        return str(compiled.co_filename), int(compiled.co_firstlineno), last
