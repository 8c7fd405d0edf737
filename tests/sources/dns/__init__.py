"""The SRV source against a fake, Knot and Consul's own DNS."""
