"""The kernel: bpf(2), loading, attaching, and carrying out plans on the maps."""
