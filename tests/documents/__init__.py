"""The documents of status, plan and trace, built without a kernel."""
