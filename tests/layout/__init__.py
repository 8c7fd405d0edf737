"""The mirror of the maps."""
