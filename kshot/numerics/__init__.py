"""Small numerics: trees of tensors, masked losses, distributions, random numbers, checks of what users hand over."""
