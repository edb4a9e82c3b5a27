"""Private or experimental names of Dynamo (see `compat`)."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import fx
from torch._dynamo import convert_frame
from torch._dynamo.callback import callback_handler
from torch._dynamo.exc import (
    InternalTorchDynamoError,
    ShortenTraceback,
    SkipFrame,
    TensorifyScalarRestartAnalysis,
    Unsupported,
)
from torch._dynamo.symbolic_convert import InstructionTranslator, TensorifyState
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.tensor import TensorVariable
from torch._guards import TracingContext

from memfit.errors import CaptureError

__all__ = [
    "FrameTraced",
    "arguments_traced",
    "code_not_traced",
    "depends_on_data",
    "ending_break",
    "error_of_traced_code",
    "is_meant_for_dynamo",
    "not_traced",
    "register_backend",
    "shown_by_dynamo",
    "stored_outputs",
    "traced_code",
    "tracing_for",
    "user_frames",
    "with_fixed_scalars",
    "without_dropped_writes",
]

# `raised exception ValueError('text')`; 2.11 has `ValueError([ConstantVariable(str: 'text')])`.
_RAISED = re.compile(
    r"(?:got|raised exception) (\w+)\((?:\[ConstantVariable\(str: )?(['\"])(.*?)\2\)", re.DOTALL
)


def register_backend(name: str, backend: Callable[..., Any]) -> None:
    """Make a backend known to `torch.compile` by name, unless the name is taken."""
    from torch._dynamo.backends import registry

    if name not in registry._COMPILER_FNS:
        registry.register_backend(backend, name=name)


def ending_break(module: fx.GraphModule) -> str | None:
    """Source line of the graph break that ends a Dynamo graph, None where it ends without one."""
    reason = getattr(module, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return None
    stack = reason.user_stack
    if stack and stack[-1].filename.endswith("torch/_dynamo/backends/distributed.py"):
        return (
            "a bucket's end of DistributedDataParallel (torch._dynamo.config.optimize_ddp = False)"
        )
    return f"{stack[-1].filename}:{stack[-1].lineno}" if stack else "an unknown line"


def arguments_traced() -> list[Any]:
    """The arguments of the function that Dynamo traces just now; none where it traces nothing.

    What it makes up to go on after a graph break is no function of the user's: none either.
    """
    try:
        traced = InstructionTranslator.current_tx()
    except AttributeError:  # nothing has been traced in this thread
        return []
    code = traced.f_code
    if code.co_name.startswith("torch_dynamo_resume_in_"):
        return []
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return [traced.f_locals[n] for n in code.co_varnames[:count] if n in traced.f_locals]


def traced_code() -> list[CodeType]:
    """The code of the functions that the trace that is going on has run through."""
    return TracingContext.get_traced_code() or []


def error_of_traced_code(text: str) -> tuple[str, str] | None:
    """Class and message of the error that the code being traced raised.

    Args:
        text: of Dynamo's error, which quotes it.

    Returns:
        None where Dynamo's error is about something else.
    """
    found = _RAISED.search(text)
    return (found[1], found[3]) if found else None


def not_traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as Dynamo puts it into a graph without looking inside; AOTAutograd does."""
    made: Callable[..., Any] = torch._dynamo.nonstrict_trace(function)
    return made


def user_frames(error: BaseException) -> list[tuple[str, int]]:
    """File and line of each function that was being traced when an error came up, innermost last.

    Empty where Dynamo does not say.
    """
    if isinstance(error, CaptureError):
        return list(error.frames)
    stack = getattr(error, "real_stack", None) or getattr(error, "user_stack", None) or ()
    return [(frame.filename, frame.lineno or 0) for frame in stack]


def code_not_traced(error: Exception) -> bool:
    """Whether Dynamo met code that it cannot trace, whatever the data; no error of that code."""
    text = str(error)
    return (
        isinstance(error, (Unsupported, InternalTorchDynamoError))
        and error_of_traced_code(text) is None
        and "data-dependent" not in text.lower()
        and "data dependent" not in text.lower()
    )


def depends_on_data(error: Exception) -> bool:
    """Whether tracing met a size or a branch that depends on the content of a tensor."""
    text = str(error).lower()
    return any(part in text for part in _ON_DATA)


_ON_DATA = (
    "data-dependent",
    "data dependent",
    "output shape depends on input tensor data",
    "tolist() with non-integer tensor",
)


def is_meant_for_dynamo(error: Exception) -> bool:
    """Whether a backend lets an error pass because Dynamo then goes on: it traces anew, or not."""
    return isinstance(error, (SkipFrame, TensorifyScalarRestartAnalysis))


def shown_by_dynamo(error: Exception) -> Exception:
    """The same error, of a class that Dynamo lets through to the user as it is.

    Dynamo wraps what a backend raises into errors of its own, except errors of this one class
    (`OutputGraph._call_user_compiler`). The result is an instance of the error's class too, of the
    same name, with the same attributes.
    """
    kind, text = type(error), str(error)
    own = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__str__": lambda _: text,  # Dynamo adds advice on its own logs to the arguments
    }
    made = type(kind.__name__, (ShortenTraceback, kind), own)
    shown = made.__new__(made, *error.args)
    shown.__dict__.update(
        {
            "first_useful_frame": None,  # nothing to cut off the traceback
            "frame_exec_strategy": None,
            "_torch_dynamo_tracer_output": None,
            **error.__dict__,
        }
    )
    return shown.with_traceback(error.__traceback__)


def with_fixed_scalars(compile_graph: Callable[[], Any]) -> Any:
    """What `compile_graph` returns, called again where AOTAutograd has scalars taken as constants.

    AOTAutograd looks at the number in every float64 scalar that a step is given. Where it cannot do
    without, it asks Dynamo to trace once more, to leave inputs out; on this occasion Dynamo drops
    nodes that write such a scalar (`remove_tensorify_specialized_graphargs` takes a node without
    readers for one that reads the number only). Here AOTAutograd begins again with Dynamo's first
    graph, which is right; that it has an input too many does not matter.
    """
    try:
        return compile_graph()
    except TensorifyScalarRestartAnalysis:
        return compile_graph()
    finally:
        TensorifyState.clear()


def without_dropped_writes() -> None:
    """Have Dynamo trace once more where an earlier compilation, of anybody, left notes for it.

    By these notes it drops writes to scalars (`with_fixed_scalars`); it never takes them back.
    """
    if not TensorifyState.empty():
        TensorifyState.clear()
        raise TensorifyScalarRestartAnalysis


def stored_outputs(module: fx.GraphModule) -> dict[int, str]:
    """Outputs of the graph that Dynamo makes just now which the code stores and does not return.

    Args:
        module: the graph.

    Returns:
        For their positions, the names of the attributes that they are stored as, "" where they go
        elsewhere: into a list or a dict. Nothing for a graph that a break ends, whose values the
        code after the break may use.
    """
    if ending_break(module) is not None:
        return {}
    try:
        traced = InstructionTranslator.current_tx()
    except AttributeError:  # nothing has been traced in this thread
        return {}
    changes = traced.output.side_effects
    returned = _tensors_of(list(traced.stack), changes)
    known = list(changes.id_to_variable.values())
    stored: dict[str, str] = dict.fromkeys(_tensors_of(known, changes), "")
    for attributes in list(changes.store_attr_mutations.values()):
        for name, value in list(attributes.items()):
            stored.update(dict.fromkeys(_tensors_of(value, changes), name))
    (end,) = module.graph.find_nodes(op="output")
    return {
        i: stored[node.name]
        for i, node in enumerate(end.args[0])
        if isinstance(node, fx.Node) and node.name in stored and node.name not in returned
    }


def _tensors_of(value: Any, changes: Any) -> set[str]:
    """Names of the graph's nodes whose tensors hang on a value of the traced code."""
    found: set[str] = set()
    seen: dict[int, Any] = {}

    def visit(variable: VariableTracker) -> None:
        if id(variable) in seen:
            return
        seen[id(variable)] = variable
        if issubclass(type(variable), TensorVariable):  # isinstance would trace what is not read
            found.add(variable.as_proxy().node.name)
        if variable in changes.store_attr_mutations:
            VariableTracker.visit(visit, changes.store_attr_mutations[variable])

    VariableTracker.visit(visit, value)
    return found


@dataclass(frozen=True)
class FrameTraced:
    """A call that Dynamo traces for a backend, or gives up on.

    Attributes:
        options: as they were given to `torch.compile`.
        owner: the first argument, None where there is none.
        error: being handled: why Dynamo gives up, and leaves the call to plain PyTorch.
    """

    options: Mapping[str, Any]
    owner: Any
    error: Exception | None = None


def _traced_for(backend: Callable[..., Any]) -> FrameTraced | None:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "_compile" and frame.f_globals is vars(convert_frame):
            break
    else:
        return None
    wrapper: Any = frame.f_locals.get("compiler_fn")
    traced: Any = frame.f_locals.get("frame")
    error = sys.exc_info()[1]
    while hasattr(wrapper, "_torchdynamo_orig_backend"):
        wrapper = wrapper._torchdynamo_orig_backend
    if getattr(wrapper, "compiler_fn", None) is not backend or traced is None:
        return None
    owner = traced.f_locals.get(next(iter(traced.f_code.co_varnames), ""))
    options = wrapper.kwargs.get("options", {})
    return FrameTraced(options, owner, error if isinstance(error, Exception) else None)


def tracing_for(
    backend: Callable[..., Any],
    given_up: Callable[[FrameTraced], None],
) -> None:
    """Have Dynamo trace recurrent layers for a backend, and tell where it gives up, from now on.

    A backend is called with a graph only: not where Dynamo finds none that it can make, and not
    before it has traced. `torch._dynamo.reset` forgets such functions; these come back.
    """

    before: list[tuple[bool, Exception | None]] = []

    def start(_: Any) -> None:
        frame = _traced_for(backend)
        if frame is not None:
            before.append((torch._dynamo.config.allow_rnn, frame.error))
            torch._dynamo.config.allow_rnn = True

    def end(_: Any) -> None:
        frame = _traced_for(backend)
        if frame is None or not before:
            return
        torch._dynamo.config.allow_rnn, handled = before.pop()
        if frame.error is not handled:  # an error that the caller handles meanwhile is not Dynamo's
            given_up(frame)

    forget = callback_handler.clear

    def clear() -> None:
        forget()
        register()

    def register() -> None:
        callback_handler.register_start_callback(start)
        callback_handler.register_end_callback(end)

    register()
    callback_handler.clear = clear
