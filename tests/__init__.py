"""Tests, in packages named as those of `clb_discovery`; `kernel` tests the real data plane, end to end."""
