"""kshot: models that learn a new task from k examples. Imports torch and nothing heavier."""

import gc as _gc

_collects = _gc.isenabled()
_gc.disable()  # torch's import makes a million objects and no garbage: looking for some would be a tenth of its time
try:
    from kshot.core import PADDING, UNLABELLED, Batch, Learner, Metrics, State, Task
finally:
    if _collects:
        _gc.enable()

__version__ = "0.1.0"
__all__ = ["PADDING", "UNLABELLED", "Batch", "Learner", "Metrics", "State", "Task", "__version__"]
