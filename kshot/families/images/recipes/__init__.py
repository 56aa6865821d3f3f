"""Named settings of runs: one file per family of published results.

Two budgets: "paper", the settings of the paper as far as they are known, with their source; "quick", the same learner
and tasks in at most 30 minutes on two CPU cores.
"""
