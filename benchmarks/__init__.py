"""The benchmarks; each is a module, run from the repository root."""
