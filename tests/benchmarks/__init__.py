"""How benchmarks evaluate their measurements; nothing here measures anything."""
