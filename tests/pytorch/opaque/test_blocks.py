"""What the blocks of an opaque module keep beside what enters them."""

from __future__ import annotations

import torch
from torch import nn

from memfit.pytorch.opaque.call import Taken
from memfit.pytorch.opaque.module_state import Versions
from memfit.pytorch.opaque.places import place_of_module
from memfit.pytorch.opaque.unit import Unit, Watch

WIDTH = 32


def test_random_states_of_blocks_are_counted_where_they_are_kept() -> None:
    def looked_at(chance: float) -> Taken:
        module = nn.Sequential(
            *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(chance)) for _ in range(4))
        )
        holder = nn.ModuleList([module])
        watch = Watch(Versions(holder), on=True)
        unit = Unit(place_of_module("blocks", module, "blocks"), watch, thrifty=True)
        unit.install()
        module(torch.randn(8, WIDTH))
        unit.remove()
        (_, call), *_ = unit.calls
        return call.taken

    state = torch.get_rng_state().nbytes
    assert looked_at(0.5).saved_bytes - looked_at(0.0).saved_bytes == 4 * state
