"""The checks in a graph that its branches on data go the way they were traced.

`memfit::outcome` and `memfit::numbers` are this module's; `aten::_assert_scalar` and
`aten::_assert_async` are what PyTorch puts into a graph for the comparisons of numbers that it has
decided, and for assertions. Where one of them fails, the step ends before it has changed anything,
and can be run in another way: as plain PyTorch, which raises what the model's own code raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from memfit.errors import MemfitError
from memfit.pytorch.python_ops import run_instead

__all__ = ["ASSERTION", "CHECKS", "NUMBERS", "OUTCOME", "OtherOutcome", "frames_text", "is_branch"]


class OtherOutcome(MemfitError):
    """A branch on data goes another way than it was traced.

    Attributes:
        frames: file and line of each function around the branch, innermost last; none where a
            comparison of numbers failed.
    """

    def __init__(self, where: str) -> None:
        super().__init__(f"a branch on data goes another way than it was traced: {where}")
        self.where = where
        self.frames: tuple[tuple[str, int], ...] = ()
        if where.startswith(_MARK):
            found = json.loads(where.removeprefix(_MARK))
            self.frames = tuple((str(file), int(line)) for file, line in found)


_MARK = "memfit: "
_LIBRARY = torch.library.Library("memfit", "FRAGMENT")
_LIBRARY.define("outcome(Tensor condition, bool expected, str where) -> ()")
_LIBRARY.define("numbers(Tensor content, int[] expected, str where) -> ()")

OUTCOME = torch.ops.memfit.outcome.default
NUMBERS = torch.ops.memfit.numbers.default
ASSERTION = torch.ops.aten._assert_scalar.default
_ASSERT = torch.ops.aten._assert_async
CHECKS = frozenset({OUTCOME, NUMBERS, ASSERTION, _ASSERT.default, _ASSERT.msg})


def frames_text(frames: Sequence[tuple[str, int]]) -> str:
    """Where a branch is, as an argument of the ops."""
    return _MARK + json.dumps(list(frames))


def is_branch(where: str) -> bool:
    """Whether a check is of a branch that this module has decided, not of PyTorch's own."""
    return where.startswith(_MARK)


def _outcome(condition: torch.Tensor, expected: bool, where: str) -> None:
    if bool(condition) is not expected:
        raise OtherOutcome(where)


def _numbers(content: torch.Tensor, expected: Sequence[int], where: str) -> None:
    if content.reshape(-1).tolist() != list(expected):
        raise OtherOutcome(where)


def _assertion(holds: Any, where: str = "an assertion fails") -> None:
    if not bool(holds):
        raise OtherOutcome(where)


def _nothing(*_: Any) -> None:
    return None


def _no_cost(_: fx.Node) -> tuple[int, int]:
    return 0, 0


_RUNS: dict[Any, Callable[..., None]] = {
    OUTCOME: _outcome,
    NUMBERS: _numbers,
    ASSERTION: _assertion,
    _ASSERT.default: _assertion,  # how tracing writes the `assert` of a tensor
    _ASSERT.msg: _assertion,
}
for _name, _op in (("outcome", OUTCOME), ("numbers", NUMBERS)):
    _LIBRARY.impl(_name, _RUNS[_op], "CompositeExplicitAutograd")
    torch.library.register_fake(f"memfit::{_name}", _nothing, lib=_LIBRARY)
for _op, _run in _RUNS.items():
    fx.node.has_side_effect(_op)
    run_instead(_op, _run, _run, _no_cost, once=True)
