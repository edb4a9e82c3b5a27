"""Long chains: an LSTM that is trained, and what reversing a chain costs."""
