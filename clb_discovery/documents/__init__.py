"""The JSON documents of status, instances, plan and trace, and the facts that commands derive from them."""
