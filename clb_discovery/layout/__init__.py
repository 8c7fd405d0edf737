"""The mirror of bpf/clb.h."""
