"""Shape and type of what each op of a captured step writes, as text for people."""

from __future__ import annotations

from typing import Any

import torch

from memfit.pytorch.capture.captured_step import CapturedStep

__all__ = ["op_shapes"]


def op_shapes(step: CapturedStep) -> tuple[str | None, ...]:
    """For each op, such as `4x64x112x112 float32`; None where it writes no tensor."""
    return tuple(_text(node.meta.get("val")) for node in step.node_of)


def _text(value: Any) -> str | None:
    tensors = value if isinstance(value, (tuple, list)) else (value,)
    return ", ".join(_one(t) for t in tensors if isinstance(t, torch.Tensor)) or None


def _one(tensor: torch.Tensor) -> str:
    shape = "x".join(str(size) for size in tensor.shape) or "scalar"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"
