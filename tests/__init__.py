"""Tests, in packages of the same names as those of `clb_discovery`; `kernel` has the real data plane, end to end."""
