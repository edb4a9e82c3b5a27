"""Checkpoints at chosen ops, after Salimans and Bulatov 2018."""
