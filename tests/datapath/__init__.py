"""The edge to the kernel, as far as it is pure."""
