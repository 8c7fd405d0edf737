"""Options, the file and services."""
