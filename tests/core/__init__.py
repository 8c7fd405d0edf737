"""Pure tests: no I/O, hypothesis where there is an invariant."""
