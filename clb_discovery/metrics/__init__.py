"""Metrics, the page, and the server of both."""
