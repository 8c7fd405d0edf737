"""The output for people."""
