"""The command line itself: help, and errors of its arguments."""
