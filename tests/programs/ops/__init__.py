"""Ops of random programs; each file registers its own."""
