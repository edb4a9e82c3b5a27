"""memfit as a backend of torch.compile: several graphs of one step under one budget."""
