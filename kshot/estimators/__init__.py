"""For people who never heard of a meta-gradient, with scikit-learn's conventions. Needs `kshot[sklearn]`.

scikit-learn is loaded with the first of these names and no sooner: `kshot curve` uses `fitting` alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kshot.estimators.classifier import Answer, FewShotClassifier
    from kshot.estimators.files import FileError, FileLimits
    from kshot.estimators.regressor import FewShotRegressor

__all__ = ["Answer", "FewShotClassifier", "FewShotRegressor", "FileError", "FileLimits"]

_FILES = {
    "Answer": "classifier",
    "FewShotClassifier": "classifier",
    "FewShotRegressor": "regressor",
    "FileError": "files",
    "FileLimits": "files",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
