"""What applications see: whatever they do with their sockets, they have to do with the VIP."""
