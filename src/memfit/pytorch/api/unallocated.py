"""The graph of a training step whose model has no memory, for a device that need not be there.

The model is built from fake tensors, which have shapes, types and devices only; costs are analytic.
For a CUDA device that this machine lacks, the step is captured as the CPU would run it, and its
values then take what PyTorch's CUDA allocator would hand out for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from memfit.graph.training_graph import Value, ValueKind
from memfit.planners.base import Progress
from memfit.pytorch.api.entry import capture
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep, read_joint
from memfit.pytorch.capture.storage_sizes import block_bytes
from memfit.pytorch.compat.eager import tree_map, tree_map_only
from memfit.pytorch.compat.fake import FakeTensor, FakeTensorMode, fake_mode, said_to_be_on
from memfit.pytorch.cost.cost_step import cost_step
from memfit.pytorch.cost.likely_workspace import with_likely_workspace
from memfit.pytorch.execute.accumulate import hold_gradients

__all__ = [
    "Unallocated",
    "device_is_there",
    "holds_memory",
    "without_memory",
]


def device_is_there(device: torch.device) -> bool:
    """Whether tensors can live on a device."""
    if device.type != "cuda":
        return device.type == "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return (device.index or 0) < count


@dataclass(frozen=True)
class Unallocated:
    """What builds and captures steps without memory.

    Attributes:
        mode: the fake mode of all tensors.
        device: the device that the step is captured for.
    """

    mode: FakeTensorMode
    device: torch.device

    @property
    def building(self) -> AbstractContextManager[Any]:
        """Inside, models and inputs are made without memory."""
        mode: AbstractContextManager[Any] = self.mode
        return mode

    @property
    def built_on(self) -> torch.device:
        """The device to build model and inputs on: the CPU where the other is not there."""
        return self.device if device_is_there(self.device) else torch.device("cpu")

    def fake(self, tree: Any) -> Any:
        """A tree of tensors, those with memory replaced by fake ones."""
        return tree_map_only(torch.Tensor, self._fake_tensor, tree)

    def fake_module(self, model: nn.Module) -> None:
        """Replace parameters and buffers that have memory by fake ones on `built_on`, in place.

        `Module.to` cannot be used: it swaps fake tensors in place, which fails where anybody holds
        a weak reference to one.
        """
        made: dict[int, torch.Tensor] = {}  # by the tensor that it replaces: some are tied
        held_alive = [*model.parameters(), *model.buffers()]
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        if id(tensor) not in made:
                            made[id(tensor)] = self._placed(tensor)
                        held[name] = made[id(tensor)]
        del held_alive

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        fake = self._fake_tensor(tensor)
        if fake.device == self.built_on or fake.device.type == self.built_on.type == "cpu":
            return fake
        with self.mode:
            moved = fake.detach().to(self.built_on)
            if isinstance(tensor, nn.Parameter):
                return nn.Parameter(moved, requires_grad=tensor.requires_grad)
            return moved

    def _fake_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        made: torch.Tensor = self.mode.from_tensor(tensor)
        return made

    def capture(
        self,
        model: nn.Module,
        inputs: Sequence[Any],
        loss_fn: Callable[..., Any] | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        accumulate: bool = False,
        likely: bool = False,
        progress: Progress | None = None,
    ) -> CapturedStep:
        """The step as a graph with analytic costs; see `memfit.pytorch.api.entry.capture`.

        Args:
            model, inputs, loss_fn, optimizer, accumulate, progress: as for `capture`.
            likely: estimate workspaces as they most likely are (to predict a peak), not from above
                (to plan within a budget).

        Raises:
            CaptureError: the model cannot be captured.
        """
        self.fake_module(model)
        with self.mode:
            step = capture(
                model,
                self.fake(tuple(inputs)),
                loss_fn,
                cost="analytic",
                optimizer=optimizer,
                accumulate=accumulate,
                loops="unroll",
                progress=progress,
            )
            if not device_is_there(self.device):
                return _as_on(step, self.device)
            return with_likely_workspace(step) if likely else step


def without_memory(device: str | torch.device = "cpu") -> Unallocated:
    """What builds and captures steps for a device without memory, on any machine."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)
    return Unallocated(fake_mode(), device)


def holds_memory(model: nn.Module) -> bool:
    """Whether a parameter or buffer has memory."""
    tensors = [*model.parameters(), *model.buffers()]
    return any(not isinstance(t, FakeTensor) and t.device.type != "meta" for t in tensors)


def _as_on(step: CapturedStep, device: torch.device) -> CapturedStep:
    """A step captured on the CPU, its tensors said to be on another device."""
    values = step.graph.values
    kinds: dict[fx.Node, ValueKind] = {}
    for node in J.forward_inputs(step.joint):
        for storage in J.storages(node):
            kinds[node] = values[step.value_of[storage]].kind
    seen = set(step.value_of.values())
    extra = [
        Value(v.name, block_bytes(v.size_bytes, device), v.kind)
        for i, v in enumerate(values)
        if v.kind.resident and v.kind is not ValueKind.ACCUMULATED and i not in seen
    ]
    for node in step.joint.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = tree_map(lambda leaf: said_to_be_on(leaf, device), node.meta["val"])
    made = read_joint(step.joint, step.forward_outputs, kinds, extra, name=step.graph.name)
    held = [v.size_bytes for v in values if v.kind is ValueKind.ACCUMULATED]
    if held:
        parameters = {node for node, kind in kinds.items() if kind is ValueKind.PARAMETER}
        made = hold_gradients(made, parameters, held_bytes=sum(held))
    return cost_step(made, "analytic")
