"""TARGET with another batch."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from memfit.cli.target import TrainingCase
from memfit.errors import UsageError

__all__ = ["first_size", "resized_arguments", "resized_case"]


def resized_arguments(args: Namespace, batch: int) -> Namespace:
    """The command line with another batch, where it says what the batch is."""
    changed = dict(vars(args))
    if args.batch_arg is not None:
        others = [a for a in args.arg if a.partition("=")[0] != args.batch_arg]
        changed["arg"] = [*others, f"{args.batch_arg}={batch}"]
    elif args.input:
        first = first_size(args.input[0])
        changed["input"] = [_with_batch(text, first, batch) for text in args.input]
        if args.target is not None:
            changed["target"] = _with_batch(args.target, first, batch)
    return Namespace(**changed)


def first_size(text: str) -> int:
    """The first size of a tensor as written."""
    return int(text.strip().partition(":")[0].partition("x")[0])


def _with_batch(text: str, old: int, new: int) -> str:
    shape, colon, rest = text.strip().partition(":")
    size, cross, others = shape.partition("x")
    return f"{new if int(size) == old else size}{cross}{others}{colon}{rest}"


def resized_case(case: TrainingCase, batch: int) -> TrainingCase:
    """The case with another batch: inputs whose first size is that of the first one are resized.

    Rows are repeated or left out; a batch that the inputs have already changes nothing.
    """
    import torch

    from memfit.pytorch.compat.eager import tree_leaves, tree_map_only

    tensors = [t for t in tree_leaves(case.inputs) if isinstance(t, torch.Tensor) and t.ndim]
    if not tensors:
        raise UsageError(
            f"{case.name} is called without tensors, so its batch cannot be changed; name the "
            "argument of TARGET that is the batch with --batch-arg"
        )
    old = tensors[0].shape[0]
    if old == batch:
        return case

    def resize(t: torch.Tensor) -> torch.Tensor:
        if not t.ndim or t.shape[0] != old:
            return t
        rows = torch.arange(batch, device=t.device) % old
        return t.detach().index_select(0, rows).requires_grad_(t.requires_grad)

    return replace(case, inputs=tree_map_only(torch.Tensor, resize, case.inputs))
