"""Tests of the pure parts of sockets."""
