"""End to end on the real kernel."""
