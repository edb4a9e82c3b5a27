"""Tensors that `forward` stores and does not return: planned without a gradient until one comes.

`torch.nn.utils.weight_norm` sets `module.weight`, models keep their attention maps, hooks collect
features. All of these are outputs of the captured graph, although nobody may ever differentiate
them. AOTAutograd would take a gradient of each and be given zeros: memory and time that plain
PyTorch does not take.

So the graph returns them detached, and the tensor that is stored leads, in autograd's graph, to a
node of its own. Where the loss reads it after all, that node runs the step once more, as plain
PyTorch, and differentiates it; from the next step on the plan has its gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx

from memfit.errors import ExecutionError
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.effects import is_harmless, may_have_effect
from memfit.pytorch.capture.rng import read_state, write_state
from memfit.pytorch.compat.descriptions import input_position, output_position, with_effects
from memfit.pytorch.failures.second_use import refuse_second_use

__all__ = ["StoredOutputs", "stored_in", "take_apart"]

logger = logging.getLogger("memfit")
_KEY = "memfit_stored"
_REMEDY = "return it from forward, or read it in loss_fn"
aten = torch.ops.aten


def take_apart(module: fx.GraphModule, names: Mapping[int, str]) -> None:
    """Detach the outputs of a Dynamo graph that are stored and may have a gradient.

    Scalars are left alone: a stored scalar is likely a part of the loss, and its gradient is small.

    Args:
        module: the graph; changed in place.
        names: what is stored (`compat_dynamo.stored_outputs`).
    """
    (end,) = module.graph.find_nodes(op="output")
    outputs = list(end.args[0])
    apart = {i: name for i, name in names.items() if _may_have_gradient(outputs[i])}
    if apart:
        module.meta[_KEY] = StoredOutputs(module, apart)


def stored_in(module: fx.GraphModule) -> StoredOutputs | None:
    """What `take_apart` found in a graph."""
    found: StoredOutputs | None = module.meta.get(_KEY)
    return found


def _may_have_gradient(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.op == "placeholder":
        return False
    value = node.meta.get("example_value")
    return isinstance(value, torch.Tensor) and value.requires_grad and value.dim() > 0


class StoredOutputs:
    """The outputs of one graph that are stored.

    Attributes:
        names: attributes that they are stored as, by their position among the outputs.
        used: whether one of them was differentiated.
        exact: those that running the graph again would give again; known when the joint graph has
            been read.
        harmless: whether the graph may run again at all.
    """

    def __init__(self, module: fx.GraphModule, names: Mapping[int, str]) -> None:
        self.names = dict(names)
        self.used = False
        self.exact: frozenset[int] = frozenset()
        self.harmless = False
        self._written: frozenset[int] = frozenset()
        self._draws = False
        self._module = module
        (end,) = module.graph.find_nodes(op="output")
        self._outputs = tuple(end.args[0])
        outputs = list(self._outputs)
        for i in names:
            with module.graph.inserting_before(end):
                outputs[i] = module.graph.call_method("detach", (outputs[i],))
            value = self._outputs[i].meta["example_value"]
            outputs[i].meta = {**self._outputs[i].meta, "example_value": value.detach()}
        end.args = (tuple(outputs),)
        module.recompile()

    def put_together(self) -> None:
        """Give the graph its outputs back as they were."""
        (end,) = self._module.graph.find_nodes(op="output")
        end.args = (self._outputs,)
        self._module.recompile()
        del self._module.meta[_KEY]

    def read(self, joint: fx.GraphModule, forward_outputs: int) -> None:
        """Find out whether the graph can be run again, from what AOTAutograd made of it."""
        outputs, _ = J.joint_outputs(joint, forward_outputs)
        (end,) = joint.graph.find_nodes(op="output")
        described = zip(outputs, end.meta.get("desc") or (), strict=False)
        stored = {output_position(d): n for n, d in described}
        forward = J.forward_nodes(joint, forward_outputs)
        written = J.written_inputs(joint, forward_outputs)
        self._draws = any(J.is_random(n) for n in forward)
        self._written = frozenset(i for p in written if (i := input_position(p)) is not None)
        self.harmless = all(not may_have_effect(n.target) or _is_harmless(n) for n in forward)
        self.exact = frozenset(
            i
            for i in self.names
            if isinstance(node := stored.get(i), fx.Node) and not J.read_by([node]) & written
        )

    def begin(self, args: Sequence[Any]) -> Again:
        """A call begins."""
        devices = {x.device for x in args if isinstance(x, torch.Tensor)} if self._draws else set()
        return Again(self, args, devices)

    def run_again(self, args: Sequence[Any]) -> list[torch.Tensor]:
        """What is stored, computed by plain PyTorch, for autograd to differentiate."""
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self._module.graph, copied)
        graph.output(tuple(copied[self._outputs[i]] for i in self.names))
        given = [
            x.clone() if i in self._written and isinstance(x, torch.Tensor) else x
            for i, x in enumerate(args)
        ]
        return list(fx.GraphModule(self._module, graph)(*given))


def _is_harmless(node: fx.Node) -> bool:
    """Whether an op may run once more although it has an effect: a write to an input, a check."""
    if node.target is aten.copy_.default:
        return True
    return is_harmless(node.args[1] if node.target is with_effects else node.target)


class Again:
    """What it takes to run one call of a step again; held until its backward pass begins."""

    def __init__(
        self, stored: StoredOutputs, args: Sequence[Any], devices: set[torch.device]
    ) -> None:
        self._stored = stored
        self._args: list[Any] | None = list(args)
        kinds = {x.device.type for x in args if isinstance(x, torch.Tensor)} | {"cpu"}
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted(kinds)
        ]
        # As bytes: the allocator would count tensors among the step's.
        self._states = {d: read_state(d).numpy().tobytes() for d in devices}
        self._versions: list[int] = []

    def attach(self, results: Sequence[Any]) -> list[Any]:
        """The results, with what is stored made differentiable."""
        made = list(results)
        args = self._args
        assert args is not None
        given = [x for x in args if isinstance(x, torch.Tensor) and x.requires_grad]
        self._versions = _versions(args)
        nodes = {t.grad_fn for t in made if isinstance(t, torch.Tensor) and t.grad_fn is not None}
        own = nodes - {x.grad_fn for x in given}
        for node in own:
            node.register_prehook(self._release)
        places = list(self._stored.names)
        for i, tensor in zip(
            places, _Later.apply(self, [made[i] for i in places], *given), strict=True
        ):
            made[i] = tensor
        return made

    def _release(self, _: Any) -> None:
        self._args = None

    def gradients(self, tangents: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Gradients of what requires them among the inputs of the call."""
        stored, args = self._stored, self._args
        read = [i for i, t in zip(stored.names, tangents, strict=True) if t is not None]
        name = stored.names[read[0]]
        what = f"{name!r}, an attribute" if name else "a tensor"
        if args is None:
            raise ExecutionError(
                f"{what} that forward stores is differentiated after the backward pass of its step "
                "has begun, which frees what it uses; add the losses and call backward() once"
            )
        stored.used = True
        changed = self._versions != _versions(args)
        if changed or not stored.harmless or not stored.exact.issuperset(read):
            why = "what it is computed from is changed in place"
            if not changed and not stored.harmless:
                why = "ops with effects would run twice"
            raise ExecutionError(
                f"the loss reads {what} that forward stores, which cannot be computed again: "
                f"{why}; {_REMEDY}, where its gradient is planned"
            )
        logger.warning(
            "the loss reads %s that forward stores: this step computes it again, outside of its "
            "plan, perhaps over the budget; later steps plan its gradient; %s, to have it planned "
            "at once",
            what,
            _REMEDY,
        )
        leaves = [
            x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x
            for x in args
        ]
        wanted = [x for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
        with torch.enable_grad(), self._as_it_was():
            outputs = stored.run_again(leaves)
        pairs = [(o, t) for o, t in zip(outputs, tangents, strict=True) if t is not None]
        return list(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [t for _, t in pairs], allow_unused=True
            )
        )

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Autocast and random generators as they were when the call began."""
        now = {device: read_state(device) for device in self._states}
        with ExitStack() as stack:
            for kind, dtype, enabled in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            for device, state in self._states.items():
                write_state(torch.frombuffer(bytearray(state), dtype=torch.uint8), device)
            try:
                yield
            finally:
                for device, before in now.items():
                    write_state(before, device)


def _versions(args: Sequence[Any]) -> list[int]:
    return [x._version for x in args if isinstance(x, torch.Tensor)]


class _Later(torch.autograd.Function):
    """The stored tensors as they are; their backward computes them again."""

    @staticmethod
    def forward(
        ctx: Any, again: Again, stored: Sequence[torch.Tensor], *_: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.again = again
        return tuple(t.detach() for t in stored)

    @staticmethod
    def backward(ctx: Any, *tangents: torch.Tensor | None) -> tuple[Any, ...]:
        refuse_second_use()
        return (None, None, *ctx.again.gradients(tangents))
