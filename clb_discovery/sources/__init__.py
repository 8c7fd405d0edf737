"""Where real servers come from: one module per kind of discovery, each with a pure parser beside it."""
