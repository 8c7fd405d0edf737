"""Tests of layout: the mirror of bpf/clb.h."""
