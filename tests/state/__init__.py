"""Which part of an answer counts: pure."""
