"""What needs PyTorch: capture, costs, execution, measuring. No other folder imports torch."""
