"""Where real servers come from: one package per kind of discovery, each with a pure parser."""
