"""Control: a task is a goal or a body, its support set what a policy did in it."""
