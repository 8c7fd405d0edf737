"""What comes from outside, thrown at whoever reads it: `make fuzz`, and a few examples in `make test`."""
