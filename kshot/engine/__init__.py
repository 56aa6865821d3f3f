"""Tasks x learner -> loss, metrics, meta-gradient; folds; plans; processes.

gradients = engine.meta_gradient(learner, tasks)
engine.calibrate(learner, tasks)
"""

from kshot.engine.gradients import (
    ANSWERS,
    Outcome,
    OutOfMemory,
    Plan,
    Strategy,
    Trial,
    answers,
    assign,
    calibrate,
    checked,
    choose,
    clock,
    draws_numbers,
    in_threads,
    mend,
    meta_gradient,
    meta_loss,
    resolve,
    say,
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
    "calibrate",
    "checked",
    "choose",
    "clock",
    "draws_numbers",
    "in_threads",
    "mend",
    "meta_gradient",
    "meta_loss",
    "resolve",
    "say",
    "spread",
    "unmappable",
]
