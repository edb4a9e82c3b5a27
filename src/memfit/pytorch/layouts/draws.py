"""Numbers drawn into memory that is not in the order of its dimensions, or has gaps.

Eager fills a tensor in the order of memory, dropout an empty one laid out like its input. Tracing
makes of that an op that draws a new tensor, with other numbers or in other places. Here ops draw in
the order of memory again, through views; and normal numbers, of which kernels draw others where
there are gaps, into memory with the same gaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from memfit.pytorch.layouts import strides as S

__all__ = ["draw_in_place"]

aten = torch.ops.aten
_LIBRARY = torch.library.Library("memfit", "FRAGMENT")
_LIBRARY.define(
    "normal_with_gaps(Tensor x, float mean, float std, *, Generator? generator=None) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)


@torch.library.impl(_LIBRARY, "normal_with_gaps", "CompositeExplicitAutograd")
def _normal_with_gaps(
    x: torch.Tensor, mean: float, std: float, *, generator: torch.Generator | None = None
) -> torch.Tensor:
    gapped = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return gapped.normal_(mean, std, generator=generator).contiguous()


def _fake_normal_with_gaps(x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return x.new_empty(x.shape)


torch.library.register_fake("memfit::normal_with_gaps", _fake_normal_with_gaps, lib=_LIBRARY)
_NORMAL = torch.ops.memfit.normal_with_gaps.default


def draw_in_place(
    op: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Draw what eager draws where the traced op would not; whether that was so.

    Args:
        op: draws numbers into its first argument.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    x = args[0]
    if any(isinstance(n, torch.SymInt) for n in (*x.shape, *x.stride())):
        return False
    layout = tuple(x.shape), tuple(x.stride())
    if op is aten.normal_.default and not S.is_dense(layout):
        given = (*args[1:], *(0.0, 1.0)[len(args) - 1 :])
        x.copy_(_NORMAL(x, *given, **kwargs))
        return True
    order = sorted(range(x.ndim), key=lambda d: (-x.stride(d), d))  # from outermost to innermost
    if op is aten.bernoulli_.float and order != list(range(x.ndim)):
        op(x.permute(order), *args[1:], **kwargs)
        return True
    return False
