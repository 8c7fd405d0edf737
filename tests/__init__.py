"""Tests: `core` is pure, `sources` has real Consul and DNS servers, `kernel` the real data plane."""
