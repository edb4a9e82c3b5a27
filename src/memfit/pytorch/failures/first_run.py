"""One plain run before a capture, for models that prepare themselves in their first forward pass.

A first forward pass may take a lock, install hooks, import or fill a cache, which PyTorch cannot
trace; the second one has nothing of it. So where tracing fails on such, the model runs without
gradients, and is captured from what that leaves.

The step to come has to be the one that it would have been. So the model runs once more from the
same buffers and random states, and both runs have to give the same; then buffers and random states
are put back. What it does beside that (prints, counters) has happened twice more.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memfit.pytorch.compat.dynamo import code_not_traced
from memfit.pytorch.compat.eager import plain_mode, tree_leaves
from memfit.pytorch.compat.fake import FakeTensor

__all__ = [
    "FirstRun",
    "RandomStates",
    "random_states",
    "random_states_kept",
    "set_random_states",
]


class FirstRun:
    """The plain run of one step, made once at most."""

    def __init__(self, step: nn.Module) -> None:
        self._step = step
        self._done = False

    def prepares(self, error: Exception, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Run the step plainly, if tracing failed on something that this may mend.

        Args:
            error: what tracing raised.
            args, kwargs: what to call the step with.

        Returns:
            Whether it ran, and the step to come is what it would have been without it.
        """
        if self._done or not code_not_traced(error):
            return False
        self._done = True
        try:
            return _runs_alike(self._step, lambda: self._step(*args, **kwargs))
        except Exception:
            return False  # the caller tells what tracing raised


@dataclass(frozen=True)
class _Seen:
    """About what a run gave and left: its results, buffers, other tensors held by modules."""

    results: tuple[Any, ...]
    buffers: tuple[Any, ...]
    attributes: tuple[Any, ...]

    def is_like(self, other: _Seen) -> bool:
        return (
            _close(self.results, other.results)
            and _close(self.buffers, other.buffers)
            and _close(self.attributes, other.attributes)
        )


def _runs_alike(model: nn.Module, run: Callable[[], Any]) -> bool:
    buffers = [b for b in model.buffers() if not isinstance(b, FakeTensor)]
    with torch.no_grad():
        before = [b.detach().clone() for b in buffers]
    parameters = _content(list(model.parameters()))

    def seen() -> _Seen:
        with torch.no_grad(), random_states_kept():
            results = _content(run())
        held = [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
        return _Seen(results, _content([*buffers, *model.buffers()]), _content(held))

    def put_back() -> None:
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                if buffer.layout is not torch.strided or not torch.equal(buffer, old):
                    buffer.copy_(old)

    try:
        first = seen()
        after = [b.detach().clone() for b in buffers]
        put_back()
        second = seen()
    except Exception:  # it wants gradients, for one
        put_back()
        raise
    if first.is_like(second) and parameters == _content(list(model.parameters())):
        put_back()
        return True
    with torch.no_grad():  # as one plain call leaves them
        for buffer, new in zip(buffers, after, strict=True):
            buffer.copy_(new)
    return False


def _content(tree: Any) -> tuple[Any, ...]:
    """About what a tree of values holds: rounding aside, equal for equal content."""
    return tuple(_about(leaf) for leaf in tree_leaves(tree))


def _about(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf if isinstance(leaf, (bool, int, float, str)) else type(leaf).__qualname__
    kind = (tuple(leaf.shape), leaf.dtype, leaf.device)
    if isinstance(leaf, FakeTensor) or leaf.layout is not torch.strided or leaf.is_meta:
        return kind
    with plain_mode():
        if leaf.is_floating_point():
            exact = torch.float64
            norm = torch.linalg.vector_norm(leaf.detach(), dtype=exact).item()
            return (*kind, leaf.detach().sum(dtype=exact).item(), norm)
        if leaf.is_complex():
            return _about(torch.view_as_real(leaf.detach().resolve_conj()))
        return (*kind, leaf.sum(dtype=torch.int64).item())


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        # Sums of scattered values round otherwise in each run on a GPU.
        return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) or (a != a and b != b)
    return bool(a == b)


@dataclass(frozen=True)
class RandomStates:
    """States of Python's, NumPy's and PyTorch's default generators."""

    states: Mapping[str, Any]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of those that are tensors."""
        return sum(x.nbytes for x in self.states.values() if isinstance(x, torch.Tensor))

    def differs(self, other: RandomStates) -> set[str]:
        """Those that are in another state: `python`, `numpy` or a device."""
        return {
            name
            for name, state in self.states.items()
            if not _same_state(state, other.states.get(name))
        }


def _same_state(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple) and any(hasattr(x, "tobytes") for x in a):  # NumPy's
        return isinstance(b, tuple) and all(map(_same_part, a, b))
    return bool(a == b)


def _same_part(a: Any, b: Any) -> bool:
    return bool(a.tobytes() == b.tobytes() if hasattr(a, "tobytes") else a == b)


def random_states() -> RandomStates:
    """The states as they are."""
    numpy = getattr(sys.modules.get("numpy"), "random", None)
    with plain_mode():
        found: dict[str, Any] = {"python": random.getstate(), "cpu": torch.get_rng_state()}
        if numpy is not None:
            found["numpy"] = numpy.get_state()
        for d in range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ():
            found[f"cuda:{d}"] = torch.cuda.get_rng_state(d)
    return RandomStates(found)


def set_random_states(known: RandomStates) -> None:
    """Make them what they were."""
    with plain_mode():
        for name, state in known.states.items():
            if name == "python":
                random.setstate(state)
            elif name == "numpy":
                sys.modules["numpy"].random.set_state(state)
            elif name == "cpu":
                torch.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, int(name.removeprefix("cuda:")))


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Put back the states of PyTorch's, Python's and NumPy's default generators."""
    before = random_states()
    try:
        yield
    finally:
        set_random_states(before)
