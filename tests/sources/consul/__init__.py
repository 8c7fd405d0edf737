"""The Consul source with a fake and with the real Consul."""
