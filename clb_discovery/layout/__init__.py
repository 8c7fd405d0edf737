"""The mirror of bpf/clb.h: the elements of the maps as Python values."""
