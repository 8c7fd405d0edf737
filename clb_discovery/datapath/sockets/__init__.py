"""Records of sockets, and closing sockets."""
