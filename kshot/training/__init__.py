"""Training: the one outer loop and what it drives."""
