"""From answers to what counts of them."""
