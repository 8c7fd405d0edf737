"""The scenarios inside a machine, run by the Python and pytest of its own Debian."""
