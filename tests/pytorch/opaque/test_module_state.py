"""What a step that begins again finds of what modules hold, and what is copied for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from memfit.errors import ExecutionError
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.opaque.module_state import ModuleState, Versions


def _holder() -> nn.Module:
    module = nn.Module()
    module.register_buffer("table", torch.zeros(1 << 16))
    module.register_buffer("count", torch.zeros(2))
    return module


def _in_place(x: torch.Tensor) -> None:
    x.add_(1)


def _data(x: torch.Tensor) -> None:
    x.data.add_(1)


@pytest.mark.parametrize("write", [_in_place, _data])
def test_what_was_seen_to_be_written_is_put_back(write: Callable[[torch.Tensor], None]) -> None:
    module = _holder()
    versions = Versions(module)
    first = ModuleState(module)
    write(module.count)
    versions.note(first.changed())
    first.put_back()
    state = ModuleState(module, versions)
    write(module.count)
    state.put_back()
    assert torch.equal(module.count, torch.zeros(2))


def test_what_is_never_written_to_is_not_copied() -> None:
    module = _holder()
    versions, states = Versions(module), []
    peak = measure_step(lambda: states.append(ModuleState(module, versions)), warmup=0).peak_bytes
    assert peak < 1024
    assert measure_step(lambda: states.append(ModuleState(module)), warmup=0).peak_bytes > 1 << 18


def test_a_first_write_in_a_step_that_begins_again_is_told() -> None:
    module = _holder()
    versions = Versions(module)
    state = ModuleState(module, versions)
    module.count.add_(1)
    with pytest.raises(ExecutionError, match=r"shape \(2,\).*no step wrote to before"):
        state.put_back()
    module.count.fill_(3)
    later = ModuleState(module, versions)
    module.count.add_(1)
    later.put_back()
    assert torch.equal(module.count, torch.full([2], 3.0))
