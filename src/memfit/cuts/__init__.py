"""Where a graph may be cut: lower sets, and which of them are worth a look."""
