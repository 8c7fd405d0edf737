"""The pure core: no I/O, no clock, no randomness. Everything it needs is passed in; a test enforces it."""
