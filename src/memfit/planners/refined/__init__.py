"""Local search from the best plan of the others."""
