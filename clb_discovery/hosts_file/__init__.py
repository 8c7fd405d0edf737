"""Names of services in a hosts file."""
