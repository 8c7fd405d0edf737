"""Records of sockets, closing sockets, and local listeners."""
