"""Small programs that tests run as processes."""
