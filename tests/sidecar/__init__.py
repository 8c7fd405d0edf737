"""Parts of the daemon."""
