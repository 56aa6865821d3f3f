"""Policies: learners whose data are rollouts, with what acts, pays and updates them."""
