"""Episodes of classes: a task is some classes of a bank, its support set some examples of each."""
