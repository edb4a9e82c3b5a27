"""PyTorch's private and experimental names, and what differs between its releases."""
