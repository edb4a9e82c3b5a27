"""A zoo of public architectures: each one's training step, plain and within a budget."""
