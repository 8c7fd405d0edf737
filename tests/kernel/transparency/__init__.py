"""Applications only see the VIP, whatever they do with their sockets."""
