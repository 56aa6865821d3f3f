"""Scores of learners on tasks, with intervals."""
