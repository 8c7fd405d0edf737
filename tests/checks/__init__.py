"""Active checks: the pure part with a fake clock, the exchange with real sockets."""
