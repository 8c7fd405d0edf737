"""What benchmarks make of what they hear; nothing here measures anything."""
