"""Strides and numbers as real kernels give them, where tracing is told otherwise."""
