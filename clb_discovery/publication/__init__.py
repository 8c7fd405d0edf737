"""From what counts to the steps that bring the kernel there."""
