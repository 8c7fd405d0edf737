"""The JSON documents of status, plan and trace, and the facts that commands derive from them."""
