"""Addresses and the basic terms."""
