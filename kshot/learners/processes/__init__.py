"""Neural processes and what stands beside them: learners of functions."""
