"""What runs inside a machine, with the Python and pytest of its own Debian."""
