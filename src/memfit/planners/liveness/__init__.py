"""Stages over a topological order, with liveness inside the dynamic program."""
