"""The planning algorithms in Python: what the native core is tested against, and its stand-in."""

from memfit._core.reference import canonical, chain, lower_sets, nested, stage_dp

__all__ = ["canonical", "chain", "lower_sets", "nested", "stage_dp"]
