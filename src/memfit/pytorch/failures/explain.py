"""One line on what ended a compilation, made of what PyTorch's compiler says."""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from memfit.errors import CaptureError, ExecutionError, MemfitError
from memfit.pytorch.compat.dynamo import error_of_traced_code
from memfit.pytorch.compat.eager import TorchDynamoException
from memfit.pytorch.compat.inductor import CppCompileError, InductorError
from memfit.pytorch.compat.remedies import (
    BACKWARDS_HOOKS,
    remedy_for,
    remedy_for_op,
    remedy_inside_torch,
)
from memfit.pytorch.failures.source_files import is_users

__all__ = ["explained", "forward_of", "no_code"]


def explained(
    model: nn.Module, error: Exception, given: Sequence[Any], kwargs: Mapping[str, Any]
) -> MemfitError:
    """The error to raise for one that PyTorch's compiler raised on a model's step.

    Args:
        model: the model.
        error: what PyTorch raised.
        given, kwargs: what the model's forward was called with.

    Returns:
        An ExecutionError where Inductor could not generate code, else a CaptureError.
    """
    failed = no_code(type(model).__name__, error)
    return failed or CaptureError(_why_not_captured(model, error, given, kwargs))


def no_code(name: str, error: BaseException) -> ExecutionError | None:
    """The error to raise where Inductor could not make or load code; None for any other error."""
    inner = getattr(error, "inner_exception", error)
    damaged = _DAMAGED.search(str(inner)) if isinstance(inner, (ImportError, OSError)) else None
    if damaged is not None:
        return ExecutionError(
            f"Inductor cannot load the code that it once compiled for {name}: {damaged[0]}; a "
            "compilation that was stopped leaves such a file: delete it and run again"
        )
    if not isinstance(error, InductorError) and not isinstance(inner, CppCompileError):
        return None
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    first = next((line for line in lines if ": error: " in line), (lines or ["no reason given"])[0])
    said = f"{type(inner).__name__}: {first}"
    return ExecutionError(
        f"Inductor cannot generate code for {name}: {said.rstrip('.;')}; use "
        'executor="eager-graph", which runs PyTorch\'s own kernels'
    )


_DAMAGED = re.compile(r"\S+\.so: (file too short|invalid ELF header|cannot read file data)")
_TERMS = tuple(
    re.compile(part)
    for part in (
        r"^Consider annotating your code using torch\._check\*\(\)\. ",
        r" *\((unhinted|Size-like symbols): .*?\)\.?(?= |$)",
        r" This function is either a Python builtin .*?\)\.",
        r" in file `[^`]*`",
        r" at 0x[0-9a-fA-F]+",
    )
)
_BRANCH = re.compile("data-dependent branching|could not guard on data-dependent", re.IGNORECASE)
_CHECK = "check number, shapes and dtypes of the inputs, and of the target if there is one"
_USER_LINE = re.compile(r'File "([^"]+)", line (\d+)')


def _why_not_captured(
    model: nn.Module, error: Exception, given: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """One line on why a model was not captured: its own error, or what cannot be traced."""
    text = str(error)
    name = type(model).__name__
    try:
        inspect.signature(model.forward).bind(*given, **kwargs)
    except TypeError as mismatch:
        return (
            f"{name} does not take these {len(given) + len(kwargs)} inputs: {mismatch}; give as "
            "many as its forward takes"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    inner = getattr(error, "inner_exception", None)
    if inner is not None:
        reason = f"{type(inner).__name__}: {(str(inner).strip().splitlines() or [''])[0]}"
    else:
        reason = lines[0] if lines else type(error).__name__
        if not isinstance(error, TorchDynamoException) and lines:
            reason = f"{type(error).__name__}: {reason}"
    detail = next((ln for ln in lines if ln.startswith("Explanation:")), "")
    found = _USER_LINE.findall(text)
    place = next((f"{m[0]}:{m[1]}" for m in reversed(found) if is_users(m[0])), None)
    where = f" at {place}" if place else forward_of(model)
    own = error_of_traced_code(text)
    if own is not None:
        remedy = remedy_for_op(own[1], _CHECK)
        return f"{name} fails on these inputs{where}: {own[0]}: {own[1].rstrip('.')}; {remedy}"
    line = linecache.getline(found[-1][0], int(found[-1][1])) if found else ""
    if "as_proxy" in text and "generator" in line:
        return (
            f"{name} cannot be captured{where}: a random op is given a generator of its own, which "
            "PyTorch cannot trace; draw from the default generator (torch.manual_seed), or draw "
            "outside and give the numbers as an input"
        )
    reason, detail = _plainly(reason), _plainly(detail.removeprefix("Explanation:"))
    said = f"{reason} {detail}"
    if "grad_fn()" in text and any(module._backward_hooks for module in model.modules()):
        said = (
            BACKWARDS_HOOKS  # those of register_backward_hook, which look at the result's grad_fn
        )
    if "data-dependent" in said and "random." in line:
        said = line
    if found and not is_users(found[-1][0]):
        said = f"{said} {found[-1][0]}"  # of which part of Python, or of PyTorch
        if _BRANCH.search(said):
            said = ""
    remedy = remedy_for(said) if said else remedy_inside_torch()
    return (
        f"{name} cannot be captured as one graph{where}: {reason}"
        f"{f' ({detail})' if detail else ''}; {remedy}"
    )


def _plainly(said: str) -> str:
    """What tracing says, without its own terms and files, and its advice on code of others."""
    for part in _TERMS:
        said = part.sub("", said)
    return said.strip().rstrip(".").strip()


def forward_of(model: nn.Module) -> str:
    """Where the model's forward begins, if that is the user's code."""
    code = getattr(inspect.unwrap(type(model).forward), "__code__", None)
    if code is None or not is_users(code.co_filename):
        return ""
    return f" (its forward is at {code.co_filename}:{code.co_firstlineno})"
