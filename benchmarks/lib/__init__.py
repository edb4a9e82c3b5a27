"""What several benchmarks share: networks, meters, and the harness."""
