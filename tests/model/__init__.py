"""Terms and addresses."""
