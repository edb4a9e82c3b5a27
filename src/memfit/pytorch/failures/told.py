"""What ended a step, told as one of memfit's errors, in one line.

An error that comes out of a kernel while a step runs, such as an index out of range, is told as an
`ExecutionError` that is also an instance of the error's own class: code around plain PyTorch that
catches `IndexError` or `torch.linalg.LinAlgError` goes on working. Running out of memory stays what
it is, for trainers that then make the batch smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from memfit.errors import CaptureError, ExecutionError, MemfitError
from memfit.pytorch.compat.autograd import wrap_backward
from memfit.pytorch.compat.eager import tree_leaves
from memfit.pytorch.compat.symbols import DependsOnData
from memfit.pytorch.failures.explain import explained, forward_of
from memfit.pytorch.failures.source_files import OWN_FOLDER

__all__ = [
    "failing",
    "first_line",
    "guard_backward",
    "is_own_fault",
    "out_of_memory",
    "own_fault",
    "told",
]

_REMEDIES = (
    (
        "modified by an inplace operation",
        "write to parameters, buffers and inputs before the forward or after the backward pass, "
        "not between them",
    ),
    (
        "backward through the graph a second time",
        "call backward() once for each forward pass; for several losses, add them up",
    ),
    (
        "after they have already been freed",
        "call backward() once for each forward pass; for several losses, add them up",
    ),
)
_REMEDY = (
    "call the plain model on the same inputs to see the line that fails; where that works, please "
    "report this as a bug"
)


def first_line(error: BaseException, most: int = 300) -> str:
    """The class of an error and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0].rstrip(".;:") if lines else ""
    said = said if len(said) <= most else f"{said[:most]}…"
    kind = type(error).__name__.lstrip("_")  # _LinAlgError is torch.linalg.LinAlgError
    return f"{kind}: {said}" if said else kind


def out_of_memory(error: BaseException | None) -> Exception | None:
    """The error that says that memory ran out, where an error is, or wraps, one."""
    while isinstance(error, Exception):
        full = "can't allocate memory" in str(error) and isinstance(error, RuntimeError)
        inner = getattr(error, "inner_exception", None)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (full and inner is None):
            return error
        error = inner
    return None


class _OwnFault(ExecutionError):
    """Something that memfit's own code did by mistake."""


def is_own_fault(error: Exception) -> bool:
    """Whether an error is one of `own_fault`, whose traceback is worth a report."""
    return isinstance(error, _OwnFault)


def own_fault(name: str, error: Exception) -> ExecutionError | None:
    """What to raise for an error that memfit's own code raised by mistake; None for any other."""
    if isinstance(error, MemfitError) or type(error).__module__.partition(".")[0] != "builtins":
        return None
    place = _innermost(error.__traceback__)
    if place is None or not place[0].startswith(OWN_FOLDER):
        return None
    where = f"{place[0].removeprefix(OWN_FOLDER)}:{place[1]}"
    return _OwnFault(
        f"memfit fails on {name}: {first_line(error)}, in {where}; please report this as a bug, "
        "with the traceback"
    )


def _innermost(traceback: TracebackType | None) -> tuple[str, int] | None:
    place = None
    while traceback is not None:
        place = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        traceback = traceback.tb_next
    return place


def told(
    model: nn.Module,
    error: Exception,
    known: Exception | None,
    given: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Exception:
    """What to raise for an error that ended a call of a step: a `MemfitError`, or no memory.

    Args:
        model: the model.
        error: what PyTorch raised.
        known: what ended the compilation in memfit's own code, which PyTorch wraps.
        given, kwargs: what the model's forward was called with.
    """
    cause = known or error
    odd = next((x for x in tree_leaves((given, kwargs)) if _is_subclass(x)), None)
    if odd is not None and "Multiple dispatch failed" in str(cause):
        return CaptureError(
            f"{type(model).__name__} is given a {type(odd).__name__}, which PyTorch cannot trace; "
            "give a plain tensor: x.as_subclass(torch.Tensor)"
        )
    name = type(model).__name__
    if isinstance(cause, DependsOnData):
        where = "" if "made by" in str(cause) else forward_of(model)
        return CaptureError(f"{name} cannot be captured as one graph{where}: {cause}")
    if isinstance(cause, MemfitError):
        return cause
    full = out_of_memory(cause)
    if full is not None:
        return full
    return own_fault(name, cause) or explained(model, error, given, kwargs)


def _is_subclass(value: object) -> bool:
    return isinstance(value, torch.Tensor) and type(value) not in (torch.Tensor, nn.Parameter)


class failing:  # a generator could not pass on StopIteration
    """Tell errors of a step that runs as memfit's own.

    Args:
        name: of the model.
        phase: `forward` or `backward`.

    Raises:
        ExecutionError: something inside failed; an instance of the error's class, too.
    """

    def __init__(self, name: str, phase: str) -> None:
        self._name = name
        self._phase = phase

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, __: TracebackType | None) -> None:
        if not isinstance(error, Exception) or isinstance(error, MemfitError):
            return
        if out_of_memory(error) is not None:
            return
        text = str(error)
        remedy = next((told for part, told in _REMEDIES if part in text), _REMEDY)
        said = f"{self._name} fails in its {self._phase} pass: {first_line(error)}; {remedy}"
        raise _as_both(type(error), said) from error


def guard_backward(name: str, results: Iterable[Any]) -> bool:
    """Have errors in the backward pass of a compiled graph told as memfit's own (`failing`).

    Args:
        name: of the model.
        results: what the graph returned.

    Returns:
        Whether its backward pass was found.
    """

    def guarded(backward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with failing(name, "backward"):
                return backward(*args)

        return run

    return wrap_backward(results, guarded)


def _as_both(kind: type[Exception], text: str) -> ExecutionError:
    made = _CLASSES.setdefault(kind, _class_of_both(kind))
    error = made.__new__(made, text)
    error.args = (text,)
    return error


_CLASSES: dict[type[Exception], type[ExecutionError]] = {}


def _class_of_both(kind: type[Exception]) -> type[ExecutionError]:
    own = {
        "__module__": ExecutionError.__module__,
        "__doc__": f"An `ExecutionError` that is a `{kind.__name__}`, too.",
        "__init__": lambda self, *_: None,
        "__str__": lambda self: self.args[0],
        "__reduce__": lambda self: (ExecutionError, self.args),  # no file has this class
    }
    try:
        return type("ExecutionError", (ExecutionError, kind), own)
    except TypeError:  # a class that cannot be inherited from, or not beside another
        return ExecutionError
