"""One plan for all ranks: rank 0 plans, the others check that their graph is the same and adopt it.

Costs are measured and differ from rank to rank, so plans made apart could differ too. Ranks talk
through the key-value store of the process group, not by collectives: reading it has a timeout, it
never pairs with a collective of somebody else, and a rank that fails can still say so.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from typing import Any

from torch import distributed as dist

from memfit.errors import (
    ExecutionError,
    InfeasibleBudgetError,
    PlanMismatchError,
    UsageError,
)
from memfit.graph.plan import Plan
from memfit.graph.training_graph import ValueKind
from memfit.pytorch.capture import joint as J
from memfit.pytorch.capture.captured_step import CapturedStep
from memfit.pytorch.compat.distributed import default_store, distributed_ready
from memfit.pytorch.planning.protocol import Draft, Occasion, PlannedStep, Planning

__all__ = [
    "LATER_TIMEOUT_S",
    "PLAN_TIMEOUT_S",
    "TIMEOUT_VARIABLE",
    "Shared",
    "plan_timeout_s",
]

PLAN_TIMEOUT_S = 600.0
"""Seconds that a rank waits for the others' first graphs, and for rank 0's plan."""

LATER_TIMEOUT_S = 120.0
"""Seconds that a rank waits for the graphs of the others once all have compiled a first one: from
then on gradients are reduced in every step, which keeps the ranks together."""

TIMEOUT_VARIABLE = "MEMFIT_PLAN_TIMEOUT_S"
"""Environment variable with other seconds for both."""

_TELL_S = 10.0
_POLL_S = 0.02
logger = logging.getLogger("memfit")
_counters: dict[str, itertools.count[int]] = {}


class Shared:
    """The ranks of one process group on which one module is fitted; a `Planning`.

    Compilations are counted: the n-th of a rank belongs to the n-th of every other.

    Args:
        inner: plans on rank 0.
        name: of the model, for messages.
        group: the process group; None for all ranks.

    Raises:
        UsageError: torch.distributed has no process group.
    """

    def __init__(self, inner: Planning, name: str, group: Any = None) -> None:
        if not distributed_ready():
            raise UsageError(
                "same_plan=True, but torch.distributed has no process group; call "
                "torch.distributed.init_process_group first, or leave same_plan out"
            )
        self._inner = inner
        self._name = name
        self._rank = dist.get_rank(group)
        self._size = dist.get_world_size(group)
        members = dist.get_process_group_ranks(group or dist.group.WORLD)
        scope = "memfit/" + "-".join(map(str, members))
        counter = _counters.setdefault(scope, itertools.count())
        self._scope = f"{scope}/{next(counter)}"
        self._store = default_store()
        self._compilation = 0

    def plan(self, draft: Draft[CapturedStep], occasion: Occasion) -> PlannedStep[CapturedStep]:
        """The step with rank 0's costs, and rank 0's plan; see `Planning`.

        Raises:
            PlanMismatchError: the ranks captured different graphs; raised on every rank.
            InfeasibleBudgetError: rank 0 found no plan; raised on every rank.
            ExecutionError: another rank failed, or was not heard of within the timeout.
        """
        step = draft.step
        number = self._compilation
        self._compilation += 1
        graph = step.graph
        shapes = _input_shapes(step)
        self._publish(
            number,
            {
                "fingerprint": graph.fingerprint,
                "text": f"graph {graph.fingerprint[:12]} of {self._name} ({graph.forward_count} "
                f"forward and {len(graph.ops) - graph.forward_count} backward ops, inputs "
                f"{shapes})",
            },
        )
        what = f"compilation {number + 1} of {self._name}, inputs {shapes}"
        self._check_graphs(number, what)
        key = f"{self._scope}/{number}/plan"
        if self._rank == 0:
            return self._lead(key, draft, occasion)
        (text,) = self._wait([key], f"rank 0's plan ({what})", plan_timeout_s())
        return _adopt(step, json.loads(text))

    def fail(self, error: Exception) -> None:
        """This rank's compilation ended before it had a graph: the others learn why."""
        self._publish(self._compilation, {"error": f"{type(error).__name__}: {error}"})
        self._compilation += 1

    def _publish(self, number: int, data: dict[str, Any]) -> None:
        self._store.set(f"{self._scope}/{number}/graph/{self._rank}", json.dumps(data))

    def _check_graphs(self, number: int, what: str) -> None:
        keys = [f"{self._scope}/{number}/graph/{rank}" for rank in range(self._size)]
        timeout = plan_timeout_s(later=number > 0)
        found = [json.loads(t) for t in self._wait(keys, f"every rank's graph ({what})", timeout)]
        for rank, data in enumerate(found):
            if "error" in data:
                raise ExecutionError(
                    f"rank {rank} could not capture its step, so no rank goes on; its error was "
                    f"{data['error']}"
                )
        others = [r for r, d in enumerate(found) if d["fingerprint"] != found[0]["fingerprint"]]
        if others:
            rank = others[0]
            raise PlanMismatchError(
                f"rank {rank} captured {found[rank]['text']}, rank 0 captured {found[0]['text']}; "
                f"{len(others)} of {self._size} ranks differ from rank 0, whose plan all of them "
                "would run; give every rank the same model, input shapes and loss (drop the last, "
                "smaller batch), or let each plan for itself with same_plan=False"
            )

    def _lead(
        self, key: str, draft: Draft[CapturedStep], occasion: Occasion
    ) -> PlannedStep[CapturedStep]:
        try:
            made = self._inner.plan(draft, occasion)
        except Exception as error:
            self._store.set(key, json.dumps(_failure(error)))
            raise
        pairs = [[op.cost, op.workspace_bytes] for op in made.step.graph.ops]
        self._store.set(key, json.dumps({"plan": made.plan.to_json(), "costs": pairs}))
        return made

    def _wait(self, keys: Sequence[str], what: str, timeout: float) -> list[str]:
        began = time.monotonic()
        told = False
        while not self._store.check(list(keys)):
            waited = time.monotonic() - began
            if waited > timeout:
                raise ExecutionError(
                    f"rank {self._rank} waited {timeout:g} s for {what}; missing: "
                    f"{self._missing(keys)}; every rank has to see new input shapes in the same "
                    "step: give all of them the same shapes (pad the batch, or drop the last, "
                    "smaller one), or let each plan for itself with same_plan=False; where ranks "
                    f"are apart for longer, set {TIMEOUT_VARIABLE} to more seconds"
                )
            if waited > _TELL_S and not told:
                told = True
                logger.warning(
                    "rank %d waits for %s; missing: %s; it gives up after %g s",
                    self._rank,
                    what,
                    self._missing(keys),
                    timeout,
                )
            time.sleep(_POLL_S)
        return [self._store.get(key).decode() for key in keys]

    def _missing(self, keys: Sequence[str]) -> str:
        names = [k.rsplit("/", 1)[1] for k in keys if not self._store.check([k])]
        return ", ".join(f"rank {n}" if n.isdigit() else n for n in names)


def plan_timeout_s(*, later: bool = False) -> float:
    """Seconds to wait for other ranks; `later`: in a compilation after the first.

    Raises:
        UsageError: the environment variable is not a positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE)
    if text is None:
        return LATER_TIMEOUT_S if later else PLAN_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise UsageError(
            f"{TIMEOUT_VARIABLE} is {text!r}; give seconds, more than 0, or leave it unset for "
            f"{PLAN_TIMEOUT_S:g} at first and {LATER_TIMEOUT_S:g} later"
        )
    return seconds


def _input_shapes(step: CapturedStep) -> str:
    """The shapes of a step's inputs, parameters and buffers left aside: `(8, 3), (8,)`."""
    shapes = []
    for node in step.joint.graph.find_nodes(op="placeholder"):
        kinds = {step.graph.values[step.value_of[s]].kind for s in J.storages(node)}
        if not J.is_tangent(node) and kinds == {ValueKind.INPUT}:
            shapes += [str(tuple(t.shape)) for t in J.tensors(node)]
    return ", ".join(shapes) or "none"


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, InfeasibleBudgetError):
        return {
            "infeasible": {
                "budget_bytes": error.budget_bytes,
                "minimum_bytes": error.minimum_bytes,
                "binding_op": error.binding_op,
                "detail": f"on rank 0; {error.detail}" if error.detail else "on rank 0",
                "remedy": error.remedy,
            }
        }
    return {"error": f"{type(error).__name__}: {error}"}


def _adopt(step: CapturedStep, data: dict[str, Any]) -> PlannedStep[CapturedStep]:
    if "infeasible" in data:
        raise InfeasibleBudgetError(**data["infeasible"])
    if "error" in data:
        raise ExecutionError(f"rank 0 could not plan: {data['error']}")
    plan = Plan.from_json(data["plan"], where="rank 0's plan")
    plan.check_graph(step.graph)
    costs = [(cost, workspace) for cost, workspace in data["costs"]]
    return PlannedStep(step.with_costs(costs), plan)
