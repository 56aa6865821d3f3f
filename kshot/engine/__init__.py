"""Tasks x learner -> loss, metrics, meta-gradient; folds; plans; processes.

gradients = engine.meta_gradient(learner, tasks)
engine.set_population_statistics(learner, tasks)
"""

from kshot._moved import renamed
from kshot.engine.gradients import (
    ANSWERS,
    Outcome,
    OutOfMemory,
    Plan,
    Strategy,
    Trial,
    answers,
    assign,
    checked,
    choose,
    clock,
    draws_numbers,
    in_threads,
    meta_gradient,
    meta_loss,
    remedy,
    resolve,
    say,
    set_population_statistics,
    spread,
    unmappable,
)

__all__ = [
    "ANSWERS",
    "OutOfMemory",
    "Outcome",
    "Plan",
    "Strategy",
    "Trial",
    "answers",
    "assign",
    "checked",
    "choose",
    "clock",
    "draws_numbers",
    "in_threads",
    "meta_gradient",
    "meta_loss",
    "remedy",
    "resolve",
    "say",
    "set_population_statistics",
    "spread",
    "unmappable",
]

__getattr__ = renamed(__name__, {"calibrate": "set_population_statistics"})
