"""Names of services in a hosts file: the content of the block, and the file."""
