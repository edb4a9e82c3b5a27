"""A schedule as code: the lowered graphs, and gradients added where they are final."""
