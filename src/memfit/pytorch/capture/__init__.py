"""A training step as traced, read into a graph: what it computes, reads, writes and is given."""
