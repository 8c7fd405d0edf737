"""Which part of an answer counts: the guard, the state of each service, the catalog, last good sets."""
