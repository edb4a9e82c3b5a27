"""Real training steps: peaks, times and overheads measured."""
