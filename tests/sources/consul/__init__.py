"""The Consul source against a fake and against the real consul."""
