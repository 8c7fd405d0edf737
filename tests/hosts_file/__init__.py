"""Tests of the block in a hosts file."""
