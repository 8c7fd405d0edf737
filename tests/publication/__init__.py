"""Claims, desired state, plan: pure."""
