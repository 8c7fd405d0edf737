"""The kernel: bpf(2), loading and attaching programs, and carrying out plans on the maps."""
