"""The block in a hosts file."""
