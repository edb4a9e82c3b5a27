"""Ops of random programs; each file registers its own."""

from __future__ import annotations

from importlib import import_module

# Their order is part of what a seed means.
for _name in ("conv", "index", "layers", "loss", "norm", "pointwise", "random", "state", "views"):
    import_module(f"programs.ops.{_name}")
