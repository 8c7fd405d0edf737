"""What status, plan and trace report, as JSON."""
