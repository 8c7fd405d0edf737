"""Consul's health endpoint, followed by blocking queries."""
