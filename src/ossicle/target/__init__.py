"""What to predict."""
