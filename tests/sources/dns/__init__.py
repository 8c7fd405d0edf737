"""The SRV source with a fake, with Knot and with Consul's own DNS."""
