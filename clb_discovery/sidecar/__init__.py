"""The daemon and its parts."""
