"""One line on what ended a compilation, made of what PyTorch's compiler says."""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from memfit.errors import CaptureError, ExecutionError, MemfitError
from memfit.pytorch.compat import TorchDynamoException
from memfit.pytorch.compat_dynamo import error_of_traced_code
from memfit.pytorch.compat_inductor import CppCompileError, InductorError
from memfit.pytorch.source_files import is_own

__all__ = ["explained", "no_code"]


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
_USER_LINE = re.compile(r'File "([^"]+)", line (\d+)')


_REMEDY = (
    "rewrite that line without a branch on tensor data or a call that PyTorch cannot trace "
    "(torch.where, torch.cond), or fit the parts of the model before and after it one by one"
)
_HOOKS = "backwards hooks"
_REMEDIES = {
    _HOOKS: "take off the hooks that modules have for their backward pass "
    "(register_full_backward_hook); hooks on tensors and parameters (Tensor.register_hook) work",
    "maximum recursion depth": "raise the limit before the first step, "
    "sys.setrecursionlimit(10_000), or make the nesting of what forward calls flatter",
    "FSDP with use_orig_params=False": "use FSDP2: memfit.fit_blocks, then fully_shard",
}


def _place(found: tuple[str, str]) -> tuple[str, int]:
    return found[0], int(found[1])


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
    places = [m for m in _USER_LINE.findall(text) if "/torch/" not in m[0] and not is_own(m[0])]
    where = f" at {places[-1][0]}:{places[-1][1]}" if places else ""
    own = error_of_traced_code(text)
    if own is not None:
        return (
            f"{name} fails on these inputs{where}: {own[0]}: {own[1].rstrip('.')}; check number, "
            "shapes and dtypes of the inputs, and of the target if there is one"
        )
    if "as_proxy" in text and places and "generator" in linecache.getline(*_place(places[-1])):
        return (
            f"{name} cannot be captured{where}: a random op is given a generator of its own, which "
            "PyTorch cannot trace; draw from the default generator (torch.manual_seed), or draw "
            "outside and give the numbers as an input"
        )
    detail = detail.removeprefix("Explanation:").strip()
    if "grad_fn()" in text and any(module._backward_hooks for module in model.modules()):
        text += _HOOKS  # those of register_backward_hook, which look at the result's grad_fn
    remedy = next((told for part, told in _REMEDIES.items() if part in text), _REMEDY)
    return (
        f"{name} cannot be captured as one graph{where}: {reason.rstrip('.')}"
        f"{f' ({detail})' if detail else ''}; {remedy}"
    )
