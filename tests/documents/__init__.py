"""Status, plan and trace as documents: pure."""
