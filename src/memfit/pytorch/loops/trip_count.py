"""The trip count of a `while_loop`, where it depends on no data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from memfit.errors import CaptureError
from memfit.pytorch.compat.eager import plain_mode

__all__ = ["MAX_TRIPS", "trip_count"]

MAX_TRIPS = 1_000_000
_RANDOM = ("rand", "bernoulli", "normal", "multinomial", "dropout", "poisson", "exponential")
_FILLED: dict[str, Callable[..., torch.Tensor]] = {
    "new_zeros": torch.zeros,
    "new_ones": torch.ones,
    "zeros_like": torch.zeros,
    "ones_like": torch.ones,
}


class _Depends(Exception):
    """A value depends on the data; the message says on what."""


def trip_count(
    condition: fx.GraphModule,
    body: fx.GraphModule,
    carried: Sequence[Any],
    additional: Sequence[Any],
    name: str,
) -> int:
    """How often the body runs.

    The condition may read tensors whose values follow from constants alone: counters that start at
    `torch.zeros(())` and are added to. These are computed ahead, without the rest of the body.

    Args:
        condition, body: what the `while_loop` calls; both take `carried` and `additional`.
        carried, additional: nodes of the graph around it.
        name: for messages.

    Raises:
        CaptureError: the condition depends on data, or does not become false.
    """
    operands = [*carried, *additional]
    try:
        needed = _closure(condition, body, len(carried))
        values: list[Any] = [None] * len(operands)
        with plain_mode():
            for i in needed:
                values[i] = _value(operands[i], {})
            return _count(condition, body, values, sorted(i for i in needed if i < len(carried)))
    except _Depends as reason:
        raise CaptureError(
            f"the trip count of {name} is not fixed: its condition depends on {reason}, and a plan "
            "is for one number of steps; loop over a count that is known before the step (a "
            "counter that starts at torch.zeros(()) and is compared with a number), or use scan "
            "with torch.where for steps that shall do nothing"
        ) from None


def _closure(condition: fx.GraphModule, body: fx.GraphModule, carried: int) -> set[int]:
    """Positions of the operands that the condition depends on, over any number of steps."""
    needed = set(_read_by(condition, None))
    outputs = _outputs(body)
    while True:
        more = {p for i in needed if i < carried for p in _read_by(body, outputs[i])} - needed
        if not more:
            return needed
        needed |= more


def _outputs(module: fx.GraphModule) -> Sequence[Any]:
    (end,) = module.graph.find_nodes(op="output")
    made = end.args[0]
    return made if isinstance(made, (tuple, list)) else (made,)


def _read_by(module: fx.GraphModule, output: Any) -> list[int]:
    """Positions of the placeholders that an output (None: all of them) is computed from."""
    stack = [n for n in ([output] if output is not None else _outputs(module)) if n is not None]
    stack = [n for n in stack if isinstance(n, fx.Node)]
    seen: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    places = module.graph.find_nodes(op="placeholder")
    return [i for i, p in enumerate(places) if p in seen]


def _value(node: Any, known: dict[fx.Node, Any]) -> Any:
    """The value of a node of the outer graph that is computed from constants."""
    if not isinstance(node, fx.Node):
        return node
    if node in known:
        return known[node]
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op not in ("call_function", "call_method"):
        raise _Depends(f"{node.name}, an input of the model")
    if any(word in target for word in _RANDOM):
        raise _Depends(f"{node.name}, a random number")
    if target in _FILLED:
        like = node.meta["example_value"]
        made = _FILLED[target](tuple(like.shape), dtype=like.dtype)
    else:
        args = fx.node.map_arg(node.args, lambda n: _value(n, known))
        kwargs = dict(fx.node.map_arg(node.kwargs, lambda n: _value(n, known)))
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        if node.op == "call_method":
            made = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            made = node.target(*args, **kwargs)
    known[node] = made
    return made


def _part(module: fx.GraphModule, outputs: Sequence[int]) -> fx.GraphModule:
    """A module that computes some of the outputs, and nothing else."""
    made = fx.GraphModule(module, module.graph.__deepcopy__())
    (end,) = made.graph.find_nodes(op="output")
    found = end.args[0]
    found = found if isinstance(found, (tuple, list)) else (found,)
    end.args = (tuple(found[i] for i in outputs),)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def _count(
    condition: fx.GraphModule, body: fx.GraphModule, values: list[Any], followed: Sequence[int]
) -> int:
    test, step = _part(condition, [0]), _part(body, followed)
    trips = 0
    while bool(test(*values)[0]):
        if trips >= MAX_TRIPS:
            raise _Depends(f"counters that have not ended it after {MAX_TRIPS} steps")
        for i, value in zip(followed, step(*values), strict=True):
            values[i] = value
        trips += 1
    return trips
