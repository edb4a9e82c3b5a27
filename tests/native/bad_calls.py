"""Calls every function of the native module with one bad argument each; a program of its own.

Names each call on stderr before it, so that the last line names the one that takes the interpreter
down, and on stdout those that are not refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from memfit._core import _native

WORD = 8
HUGE = (2**31, 2**40, 2**60, 2**61, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**100)
NO_ROWS = (None, 5, "ab", b"ab", [1], [None], [[None]], ["a"], [[0.5]], [[2**31]], [[-(2**31) - 1]])
NO_NUMBERS = (None, 5, "ab", [None], ["a"], [0.5], [2**63], [-(2**63) - 1], [[1]])
NO_FLAGS = (None, 5, "ab", [None], ["a"], [0.5], [2], [[True]])
NO_INDEX = (None, "1", 0.5, [1], -1, -(2**63), -(2**63) - 1, *HUGE)
NO_NUMBER = (None, "1", 0.5, [1], 2**63, -(2**63) - 1, 2**100)
NO_BYTES = (None, 5, "a" * WORD, bytearray(WORD), [0] * WORD)

GRAPH: list[list[int]] = [[], [0]]
WIDE: list[list[int]] = [[v - 1] if v else [] for v in range(70)]


def masks(*sets: int, width: int = WORD) -> bytes:
    return b"".join(s.to_bytes(width, "little") for s in sets)


def canonical() -> dict[str, Any]:
    return {
        "predecessors": GRAPH,
        "node_bytes": [1, 2],
        "node_cost": [1, 1],
        "lower_sets": masks(0, 1, 3),
        "count": 3,
        "connected": False,
        "threads": 1,
        "progress": None,
    }


def problem() -> dict[str, Any]:
    """Two forward ops in a row and their backward ops: values 0 and 1, gradient 2 of value 0."""
    return {
        "value_bytes": [4, 4, 4],
        "outlives": [False, False, False],
        "forward_inputs": [[], [0]],
        "forward_outputs": [[0], [1]],
        "forward_cost": [1, 1],
        "forward_workspace": [0, 0],
        "forward_recomputable": [True, True],
        "backward_inputs": [[0, 1], [2]],
        "backward_outputs": [[2], []],
        "backward_workspace": [0, 0],
        "keep_flags": [[False, False, False], [True, True, True]],
        "always_keep_bytes": 0,
        "auxiliary_share": 128,
        "from_below": [False, False, False],
        "read_above": [False, False, False],
        "used_below": [False, False, False],
        "begun_above": [False, False, False],
        "always_keep": [False, False, False],
        "interface_below": [],
        "interface_above": [],
        "cached_below": [[], []],
    }


def cuts() -> dict[str, Any]:
    return {
        "problem": _native.StageProblem(**problem()),
        "count": 3,
        "lower": masks(0, 1, 3),
        "finished": masks(3, 1, 0),
        "boundary": [[], [0], []],
        "needed_below": [[], [], []],
        "base_bytes": [0, 4, 0],
        "threads": 1,
        "progress": None,
    }


def stages() -> dict[str, Any]:
    return {
        "tables": [_native.block_table(**cuts())] * 2,
        "base_bytes": [0, 0],
        "total_cost": 4,
        "slots": 16,
        "threads": 1,
        "progress": None,
    }


def fail(share: float) -> None:
    raise KeyError(share)


BAD: dict[Callable[..., Any], tuple[Callable[[], dict[str, Any]], dict[str, tuple[Any, ...]]]] = {
    _native.enumerate_lower_sets: (
        lambda: {"predecessors": GRAPH, "limit": 10},
        {"predecessors": (*NO_ROWS, [[0]], [[-1]], [[], [1]], [[5]]), "limit": NO_NUMBER},
    ),
    _native.canonical_table: (
        canonical,
        {
            "predecessors": (*NO_ROWS, [], [[]], [[], [1]], [[], [-1]], [[], [], []], WIDE),
            "node_bytes": (*NO_NUMBERS, [], [1], [1, 2, 3], [-1, 1], [2**60, 1], [2**62, 2**62]),
            "node_cost": (*NO_NUMBERS, [], [1], [1, 2, 3], [-1, 1], [2**60, 1], [2**62, 2**62]),
            "lower_sets": (
                *NO_BYTES,
                b"",
                masks(0, 1, 3)[:-1],
                masks(0, 1, 3) + b"\0",
                masks(0, 2, 3),
                masks(0, 3, 1),
                masks(1, 1, 3),
                masks(0, 1, 1),
                masks(0, 1, 7),
                masks(0, 1, 2**63),
            ),
            "count": (*NO_INDEX, 0, 1, 2, 4),
            "connected": (None, "yes", 2, 0.5, [True]),
            "threads": (None, "1", 0.5, -1, 2**64),
        },
    ),
    _native.StageProblem: (
        problem,
        {
            **{
                name: (*NO_ROWS, [], [[]], [[], [], []], [[], [3]], [[], [-1]])
                for name in (
                    "forward_inputs",
                    "forward_outputs",
                    "backward_inputs",
                    "backward_outputs",
                    "cached_below",
                )
            },
            **{
                name: (*NO_NUMBERS, [], [1], [1] * 4, [-1, 0, 0], [-1, 0], [2**62] * 3, [2**62] * 2)
                for name in (
                    "value_bytes",
                    "forward_cost",
                    "forward_workspace",
                    "backward_workspace",
                )
            },
            **{
                name: (*NO_FLAGS, [], [True], [True] * 4)
                for name in (
                    "outlives",
                    "forward_recomputable",
                    "from_below",
                    "read_above",
                    "used_below",
                    "begun_above",
                    "always_keep",
                )
            },
            "keep_flags": (None, 5, [None], [True], [[None]], [[]], [[True]], [[True] * 4]),
            "always_keep_bytes": NO_NUMBER,
            "auxiliary_share": (*NO_NUMBER, -1, 1025),
            "interface_below": (*NO_NUMBERS, [3], [-1], [2**31]),
            "interface_above": (*NO_NUMBERS, [3], [-1], [2**31]),
        },
    ),
    _native.block_table: (
        cuts,
        {
            "problem": (None, 5, object(), _native.StageProblem.__new__(_native.StageProblem)),
            "count": (*NO_INDEX, 0, 1, 2, 4),
            "lower": (
                *NO_BYTES,
                b"",
                masks(0, 1),
                masks(0, 1, 3, 3),
                masks(0, 1, 3)[:-1],
                masks(0, 1, 7),
            ),
            "finished": (*NO_BYTES, b"", masks(3, 1), masks(3, 1, 0, 0), masks(7, 1, 0)),
            "boundary": (*NO_ROWS, [], [[], []], [[]] * 4, [[], [3], []], [[], [-1], []]),
            "needed_below": (*NO_ROWS, [], [[], []], [[]] * 4, [[], [3], []], [[], [-1], []]),
            "base_bytes": (*NO_NUMBERS, [], [0] * 4, [0, 2**60, 0], [0, -(2**60), 0]),
            "threads": (None, "1", 0.5, -1, 2**64),
        },
    ),
    _native.stage_table: (
        stages,
        {
            "tables": (
                None,
                5,
                [None, None],
                [5, 5],
                [object()] * 2,
                [],
                stages()["tables"][:1],
                [stages()["tables"][0], None],
                [_native.BlockTable.__new__(_native.BlockTable)] * 2,
            ),
            "base_bytes": (*NO_NUMBERS, [], [0], [0] * 3, [-1, 0], [2**60, 0]),
            "total_cost": (*NO_NUMBER, -1, 3, 2**60),
            "slots": (*NO_INDEX, 0),
            "threads": (None, "1", 0.5, -1, 2**64),
        },
    ),
}


def bad_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """A description and a call for each bad argument."""
    for function, (make_good, bad) in BAD.items():
        good = make_good()
        function(**good)  # nothing else is wrong
        yield f"{function.__name__}()", function
        for name, values in bad.items():
            without = {k: v for k, v in good.items() if k != name}
            yield f"{function.__name__} without {name}", lambda f=function, a=without: f(**a)
            for value in values:
                yield (
                    f"{function.__name__}({name}={value!r:.80})",
                    lambda f=function, a={**good, name: value}: f(**a),
                )
    # Numbers of rows whose product with their width is 0 in 64 bits.
    wide = {"predecessors": WIDE, "node_bytes": [1] * 70, "node_cost": [1] * 70, "lower_sets": b""}
    for count in (2**60, 2**61, 2**62, 2**63):
        yield (
            f"canonical_table of 70 nodes (lower_sets=b'', count={count})",
            lambda c=count: _native.canonical_table(**canonical() | wide | {"count": c}),
        )
    yield (
        "canonical_table(progress=fail)",
        lambda: _native.canonical_table(**canonical() | {"progress": fail}),
    )
    yield from bad_method_calls()


def bad_method_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    for kind in (_native.CanonicalTable, _native.BlockTable, _native.StageTable):
        yield f"{kind.__name__}()", kind
    block = _native.block_table(**cuts())
    beyond = (-1, *HUGE, None, "0", 0.5)
    arguments: dict[str, list[tuple[Any, ...]]] = {
        "inner": [(0, 0, 0), (1, 0, 0), (2, 2, 0), (0, 3, 0), (0, 1, 2)],
        "top": [(3, 0), (1, 2)],
        "bottom": [(2, 0, False), (0, 2, False), (0, 0, None), (0, 0, 2)],
        "through": [(2, False), (0, None)],
    }
    good: dict[str, tuple[Any, ...]] = {
        "inner": (0, 1, 0),
        "top": (1, 0),
        "bottom": (0, 0, False),
        "through": (0, False),
    }
    for name, start in good.items():
        method = getattr(block, name)
        method(*start)
        swept = [
            (*start[:k], value, *start[k + 1 :])
            for k in range(len(start))
            for value in beyond
            if not (k == len(start) - 1 and isinstance(start[k], bool) and isinstance(value, int))
        ]
        for chosen in (*arguments[name], *swept):
            yield f"BlockTable.{name}{chosen}", lambda m=method, a=chosen: m(*a)
    path = _native.stage_table(**stages()).path
    shortest = _native.canonical_table(**canonical()).shortest
    for value in NO_NUMBER:
        yield f"StageTable.path({value!r})", lambda v=value: path(v)
        yield f"CanonicalTable.shortest({value!r})", lambda v=value: shortest(v)


def main() -> None:
    count = 0
    for description, call in bad_calls():
        print(description, file=sys.stderr, flush=True)
        count += 1
        try:
            call()
        except (TypeError, ValueError, IndexError, OverflowError, MemoryError, KeyError):
            continue
        except RuntimeError as error:
            print(f"{description}: RuntimeError: {error}", flush=True)
            continue
        print(f"{description}: accepted", flush=True)
    print(f"{count} calls")


if __name__ == "__main__":
    main()
