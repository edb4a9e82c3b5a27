"""What needs PyTorch: capture, costs, execution, measuring. No other folder imports torch."""

from memfit.pytorch.compat.versions import check_torch_version

# Before anything here asks for private names, which other versions lack.
check_torch_version()
