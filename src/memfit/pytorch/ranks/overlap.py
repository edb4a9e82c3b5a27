"""Gradients handed to their parameters while the backward pass still runs.

AOTAutograd makes one autograd node of a compiled step: it returns every gradient at its end. Here
that node only hands its arguments over to a chain of further nodes upstream of it, one for each
piece of the backward graph (`memfit.pytorch.ranks.pieces`):

    p1 -> stage 2 -> p1' --.
    p2 -> stage 1 -> p2' ---> compiled step -> loss
    p3 -> stage 0 -> p3' --'

A token leads from stage to stage, so that they run in their order. Each stage runs its piece and
returns the gradients that are then final, and autograd's engine accumulates gradients before it
runs anything else. So whatever waits for gradients (hooks, the reducer of DistributedDataParallel)
gets them as early as the plan has them, and plan and order of computations are what they were.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from memfit.errors import ExecutionError
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.missing import missing_now, while_missing
from memfit.pytorch.compat.distributed import boxed, is_subclass, without_autocast
from memfit.pytorch.compat.eager import saved_output_description
from memfit.pytorch.ranks.pieces import Piece, run_piece, split_backward

__all__ = ["Overlap"]

logger = logging.getLogger("memfit")
_TICKET = "memfit_ticket"


class _Run:
    """One call of a compiled step: what its backward pass has alive between two pieces."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self.wanted = {name for piece in pieces for name in piece.reads}
        self.live: dict[str, Any] | None = None
        self.missing: frozenset[int] = frozenset()

    def gradients(self, index: int) -> list[Any]:
        """Run the piece; the gradients that are final at its end."""
        if self.live is None:
            raise ExecutionError(
                "a stage of the backward pass was reached before the compiled step; "
                "please report this as a bug"
            )
        with without_autocast(), while_missing(self.missing):
            return run_piece(self.pieces[index], self.live)


_numbers = itertools.count(1)
_runs: weakref.WeakValueDictionary[int, _Run] = weakref.WeakValueDictionary()
_current = threading.local()


def _issue_ticket() -> torch.Tensor:
    """The number of the running call; saved for the backward pass, it leads back to its `_Run`."""
    return torch.tensor([_current.number], device="cpu")


class _Stage(torch.autograd.Function):
    """Identity of some inputs of the step; its backward runs one piece of the backward graph."""

    @staticmethod
    def forward(
        ctx: Any, run: _Run, index: int, token: torch.Tensor, *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.run, ctx.index = run, index
        return (torch.empty(0, device="cpu"), *(x.detach() for x in inputs))

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        return (None, None, None, *ctx.run.gradients(ctx.index))


class Overlap:
    """Compiles the backward graphs of one `StepBackend` into pieces.

    Args:
        least_bytes: see `split_backward`.
    """

    def __init__(self, least_bytes: int | None = None) -> None:
        self._least_bytes = least_bytes
        self._inputs: Sequence[Any] = ()
        self._pieces: list[Piece] = []

    def begin(self, example_inputs: Sequence[Any]) -> None:
        """A compilation begins."""
        self._inputs = example_inputs
        self._pieces = []

    def mark(
        self,
        forward: fx.GraphModule,
        backward: fx.GraphModule,
        forward_outputs: int,
        positions: Sequence[int | None],
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Let the forward graph save a ticket, by which the backward graph finds its call.

        The graphs stay as they are where their gradients are not those of the step's inputs one by
        one; the gradients then come together at the end, as without overlap.

        Args:
            forward: the lowered forward graph.
            backward: the lowered backward graph.
            forward_outputs: number of outputs of the step, tokens included.
            positions: which input of the step each gradient belongs to.
        """
        count = len(self._inputs)
        if list(positions) != list(range(count)) or any(map(is_subclass, self._inputs)):
            logger.info(
                "gradients come at the end of the backward pass: the graph has %d of them for %d "
                "inputs, or an input is a tensor of several",
                len(positions),
                count,
            )
            return forward, backward
        (output,) = forward.graph.find_nodes(op="output")
        with forward.graph.inserting_before(output):
            ticket = forward.graph.call_function(_issue_ticket)
        first = next(iter(backward.graph.nodes))
        with backward.graph.inserting_before(first):
            received = backward.graph.placeholder(_TICKET)
        value = _fake_ticket([*forward.graph.nodes, *backward.graph.nodes])
        ticket.meta["val"] = received.meta["val"] = value
        results = list(output.args[0])
        output.args = ((*results[:forward_outputs], ticket, *results[forward_outputs:]),)
        described = list(output.meta["desc"][:forward_outputs])
        saved = len(results) + 1 - forward_outputs
        output.meta["desc"] = [*described, *map(saved_output_description, range(saved))]
        forward.recompile()
        backward.recompile()
        self._pieces = split_backward(backward, count, least_bytes=self._least_bytes)
        return forward, backward

    def compile_backward(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """The boxed callable that AOTAutograd's node runs: it hands its arguments over.

        AOTAutograd asks for it when the first backward pass begins.
        """
        names = [n.name for n in module.graph.find_nodes(op="placeholder")]
        if not names or module.graph.find_nodes(op="placeholder")[0].target != _TICKET:
            return boxed(module, inputs)
        (end,) = module.graph.find_nodes(op="output")
        count = len(end.args[0])

        def hand_over(arguments: list[Any]) -> tuple[None, ...]:
            run = _runs[int(arguments[0])]
            run.missing = missing_now()
            run.live = {n: a for n, a in zip(names, arguments, strict=True) if n in run.wanted}
            arguments.clear()
            return (None,) * count

        hand_over._boxed_call = True  # type: ignore[attr-defined]
        return hand_over

    def wrap(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled step, called on inputs that lead through the stages."""
        pieces = list(self._pieces)
        if not pieces:
            return compiled

        @torch.compiler.disable
        def call(*args: Any) -> Any:
            run = _Run(pieces)
            number = next(_numbers)
            _runs[number] = run
            inputs = list(args)
            token = torch.empty(0, device="cpu")
            for index in range(len(pieces) - 1, -1, -1):
                places = pieces[index].gradients
                token, *given = _Stage.apply(run, index, token, *(inputs[i] for i in places))
                for i, x in zip(places, given, strict=True):
                    inputs[i] = x
            before = getattr(_current, "number", None)
            _current.number = number
            try:
                return compiled(*inputs)
            finally:
                _current.number = before

        return call


def _fake_ticket(nodes: Sequence[fx.Node]) -> torch.Tensor:
    for node in nodes:
        for tensor in J.tensors(node):
            mode = getattr(tensor, "fake_mode", None)
            if mode is not None:
                with mode:
                    return torch.empty(1, dtype=torch.int64, device="cpu")
    return torch.empty(1, dtype=torch.int64, device="cpu")
