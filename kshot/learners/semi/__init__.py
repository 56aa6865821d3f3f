"""Learners that use unlabelled examples."""
