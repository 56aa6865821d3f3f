"""kshot: models that learn a new task from k examples.

`import kshot` is instant: torch, and nothing heavier, is loaded with the first name that is asked for.
"""

from typing import TYPE_CHECKING, Any

from kshot import _moved

if TYPE_CHECKING:
    from kshot.core import PADDING, UNLABELLED, Batch, Learner, Metrics, State, Task

__version__ = "0.1.0"
_moved.install()  # old paths of modules
__all__ = ["PADDING", "UNLABELLED", "Batch", "Learner", "Metrics", "State", "Task", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kshot' has no attribute {name!r}")
    from kshot import core

    return getattr(core, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
