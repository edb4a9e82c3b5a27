"""What ops return in tracing, beside what kernels return."""
