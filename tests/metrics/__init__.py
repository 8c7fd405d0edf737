"""Metrics and the page server."""
