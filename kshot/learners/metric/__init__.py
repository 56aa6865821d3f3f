"""Learners that compare features, or solve a head in closed form."""
