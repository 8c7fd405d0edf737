"""Slow tests of discovery, against real servers: `make test-discovery`."""
