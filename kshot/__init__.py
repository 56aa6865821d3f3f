"""kshot: models that learn a new task from k examples. Imports torch and nothing heavier."""

from kshot.core import PADDING, UNLABELLED, Batch, Learner, Metrics, State, Task

__version__ = "0.1.0"
__all__ = ["PADDING", "UNLABELLED", "Batch", "Learner", "Metrics", "State", "Task", "__version__"]
