"""Sockets, as far as it is pure."""
