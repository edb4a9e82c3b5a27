"""Data-parallel training: one plan for all ranks, gradients handed over in time."""
