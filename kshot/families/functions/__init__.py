"""Functions: a task is one of them, its support set some of its points."""
