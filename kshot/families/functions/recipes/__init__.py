"""Named runs on functions."""
