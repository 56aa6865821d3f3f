"""For people who never heard of a meta-gradient, with scikit-learn's conventions. Needs `kshot[sklearn]`.

scikit-learn is loaded with the first of these names and no sooner: `kshot curve` uses `series.fitting` alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kshot.apps.classify.classifier import Answer, FewShotClassifier
    from kshot.apps.classify.files import FileError, FileLimits
    from kshot.apps.series.regressor import FewShotRegressor

__all__ = ["Answer", "FewShotClassifier", "FewShotRegressor", "FileError", "FileLimits"]

_FILES = {
    "Answer": "classify.classifier",
    "FewShotClassifier": "classify.classifier",
    "FewShotRegressor": "series.regressor",
    "FileError": "classify.files",
    "FileLimits": "classify.files",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
