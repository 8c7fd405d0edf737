"""Fuzzing of every parser of untrusted input: `make fuzz`, and a few examples in `make test`."""
