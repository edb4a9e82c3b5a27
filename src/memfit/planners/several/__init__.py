"""Steps of several graphs that share one budget."""
