"""What a graph goes through before it is read."""
