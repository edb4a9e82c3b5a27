"""The compile-time side: a Dynamo backend that captures a step, has it planned, and lowers it."""

from __future__ import annotations

import gc
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from memfit.errors import CaptureError
from memfit.graph import TrainingGraph, Value, ValueKind
from memfit.plan import Plan
from memfit.pytorch import joint as J
from memfit.pytorch.capture import CapturedStep, read_joint
from memfit.pytorch.compat import (
    BackendCompilerFailed,
    TorchDynamoException,
    aot_backend,
    capture_settings,
    whole_ops,
)
from memfit.pytorch.distributed import Replication, hand_over_gradients
from memfit.pytorch.lower import lower

__all__ = ["StepBackend", "StepModule", "captured_graph", "compile_step", "resident_values"]

Costs = Callable[[CapturedStep], CapturedStep]
Decide = Callable[[TrainingGraph], Plan]


class StepModule(nn.Module):
    """The computation that is planned: the model, and the loss where one is given."""

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Any] | None) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`model(*args)`, or `loss_fn(model(*inputs), target)` with the target last in `args`."""
        if self.loss_fn is None:
            return self.model(*args, **kwargs)
        return self.loss_fn(self.model(*args[:-1], **kwargs), args[-1])


def resident_values(model: nn.Module, optimizer_bytes: int) -> dict[ValueKind, int]:
    """Bytes of a model's parameters and buffers and of the optimizer's state."""

    def total(tensors: Sequence[torch.Tensor]) -> int:
        sizes = {t.untyped_storage()._cdata: int(t.untyped_storage().nbytes()) for t in tensors}
        return sum(sizes.values())

    return {
        ValueKind.PARAMETER: total(list(model.parameters())),
        ValueKind.BUFFER: total(list(model.buffers())),
        ValueKind.OPTIMIZER: optimizer_bytes,
    }


@dataclass(frozen=True)
class Compiled:
    """What one compilation decided."""

    graph: TrainingGraph
    plan: Plan


class _Captured(Exception):
    """Ends a compilation that is only there to capture."""


class StepBackend:
    """A Dynamo backend for one step.

    Attributes:
        compiled: the graph and plan of every compilation so far (one for each input shape).
        error: what ended the last compilation in memfit's own code; Dynamo wraps it.
    """

    def __init__(
        self,
        *,
        costs: Costs,
        decide: Decide | None,
        resident: Mapping[ValueKind, int],
        name: str,
        replication: Replication | None = None,
    ) -> None:
        self._costs = costs
        self._decide = decide
        self._resident = resident
        self._name = name
        self._kinds: dict[int, ValueKind] = {}
        self._replication = replication or Replication()
        self._overlap = self._replication.overlapper()
        self._sharing = self._replication.sharing(name)
        compile_backward = self._overlap.compile_backward if self._overlap else None
        self._aot = aot_backend(self._partition, compile_backward)
        self.compiled: list[Compiled] = []
        self.captured: CapturedStep | None = None
        self.error: Exception | None = None
        self._shared = False

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        """Dynamo's entry."""
        static = {
            i for i, x in enumerate(example_inputs) if getattr(x, "_dynamo_static_input_type", None)
        }
        self._kinds = {}
        for i, example in enumerate(example_inputs):
            if isinstance(example, nn.Parameter):
                self._kinds[i] = ValueKind.PARAMETER
            elif isinstance(example, torch.Tensor) and i in static:
                self._kinds[i] = ValueKind.BUFFER
        if self._overlap is None:
            with whole_ops():
                return self._aot(module, example_inputs)
        self._overlap.begin(example_inputs)
        with whole_ops():
            compiled = self._aot(module, example_inputs)
        return self._overlap.wrap(compiled)

    def _partition(
        self,
        joint: fx.GraphModule,
        joint_inputs: Any,
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **_: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        try:
            J.normalise(joint)
            kinds = dict(self._kinds)
            for i in static_lifetime_input_indices or ():
                kinds.setdefault(i, ValueKind.BUFFER)
            parameters = {i for i, kind in kinds.items() if kind is ValueKind.PARAMETER}
            J.own_gradients(joint, num_fwd_outputs, parameters)
            step = self._read(joint, num_fwd_outputs, kinds)
            if self._replication.bucket_view:
                step = hand_over_gradients(step, parameters)
            if self._decide is None:
                self.captured = self._costs(step)
                raise _Captured
            step, plan = self._plan(step, self._decide)
            plan.check_graph(step.graph)
            modules = lower(step, plan.schedule)
            if self._overlap is not None:
                modules = self._overlap.mark(*modules, num_fwd_outputs)
            self.compiled.append(Compiled(step.graph, plan))
            return modules
        except _Captured:
            raise
        except Exception as error:
            self.error = error
            raise

    def _plan(self, step: CapturedStep, decide: Decide) -> tuple[CapturedStep, Plan]:
        if self._sharing is None:
            step = self._costs(step)
            return step, decide(step.graph)
        self._shared = True
        return self._sharing.agree(step, self._costs, lambda s: decide(s.graph))

    def compiling(self) -> None:
        """A call begins, which may compile."""
        self.error = None
        self._shared = False

    def failed(self, error: Exception) -> None:
        """A compilation ended in an error: ranks that wait for this one's graph learn of it."""
        if self._sharing is not None and not self._shared:
            self._sharing.fail(error)

    def _read(
        self, joint: fx.GraphModule, forward_outputs: int, kinds: Mapping[int, ValueKind]
    ) -> CapturedStep:
        first = read_joint(joint, forward_outputs, kinds, name=self._name)
        extra = []
        for kind, size in self._resident.items():
            seen = sum(v.size_bytes for v in first.graph.values if v.kind is kind)
            if size > seen:
                extra.append(Value(f"other {kind.value}s", size - seen, kind))
        if not extra:
            return first
        return read_joint(joint, forward_outputs, kinds, extra, name=self._name)


def compile_step(step: StepModule, backend: StepBackend) -> Callable[..., Any]:
    """`step`, compiled by `backend` at its first call, with memfit's errors unwrapped."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs)

    # Dynamo limits compilations by code object: every fitted module has its own, and its own limit.
    run.__code__ = run.__code__.replace(co_name=f"run_{type(step.model).__name__}")
    compiled = torch.compile(run, backend=backend, fullgraph=True, dynamic=False)

    def call(*args: Any, **kwargs: Any) -> Any:
        backend.compiling()
        try:
            with capture_settings(), _no_leaf_warnings(args, kwargs):
                return compiled(*args, **kwargs)
        except (BackendCompilerFailed, TorchDynamoException) as error:
            if isinstance(getattr(error, "inner_exception", None), _Captured):
                raise _Captured from None
            cause = backend.error or CaptureError(_explain(step, error, args, kwargs))
            backend.failed(cause)
            raise cause from None

    return call


@contextmanager
def _no_leaf_warnings(*given: Any) -> Iterator[None]:
    """While Dynamo compiles, it reads `.grad` of inputs that others computed, which warns."""
    leaves = torch.utils._pytree.tree_leaves(given)
    if not any(isinstance(x, torch.Tensor) and not x.is_leaf for x in leaves):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        yield


def captured_graph(
    step: StepModule, backend: StepBackend, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> CapturedStep:
    """The step as captured, without running it.

    Raises:
        CaptureError: the model cannot be captured as one graph, or has nothing to train.
    """
    with torch.enable_grad(), suppress(_Captured):
        compile_step(step, backend)(*args, **kwargs)
    if backend.captured is None:
        raise CaptureError(
            f"{type(step.model).__name__} has no backward pass for these inputs: no output depends "
            "on a tensor that requires gradients; set requires_grad on what you train"
        )
    captured, backend.captured = backend.captured, None
    gc.collect()
    return captured


_USER_LINE = re.compile(r'File "([^"]+)", line (\d+)')
_OWN_ERROR = re.compile(r"(?:got|raised exception) (\w+)\((['\"])(.*?)\2\)", re.DOTALL)


def _explain(
    step: StepModule, error: Exception, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """One line on why a model was not captured: its own error, or what cannot be traced."""
    text = str(error)
    name = type(step.model).__name__
    given = args if step.loss_fn is None else args[:-1]
    try:
        inspect.signature(step.model.forward).bind(*given, **kwargs)
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
    detail = next((ln for ln in lines if ln.startswith("Explanation:")), "")
    places = [
        m
        for m in _USER_LINE.findall(text)
        if "/torch/" not in m[0] and not m[0].endswith("memfit/pytorch/backend.py")
    ]
    where = f" at {places[-1][0]}:{places[-1][1]}" if places else ""
    own = _OWN_ERROR.search(text)
    if own is not None:
        return (
            f"{name} fails on these inputs{where}: {own[1]}: {own[3].rstrip('.')}; check number, "
            "shapes and dtypes of the inputs"
        )
    return (
        f"{name} cannot be captured as one graph{where}: {reason}"
        f"{' (' + detail.removeprefix('Explanation: ') + ')' if detail else ''}; rewrite that line "
        "without a branch on tensor data or a call that PyTorch cannot trace (torch.where, "
        "torch.cond), or fit the parts of the model before and after it one by one"
    )
