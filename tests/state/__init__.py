"""What counts of answers: pure."""
