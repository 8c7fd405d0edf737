"""Active checks: what the sidecar finds out about real servers by asking them itself."""
