"""For people who never heard of a meta-gradient, with scikit-learn's conventions. Needs `kshot[sklearn]`."""

from kshot.estimators.classifier import Answer, FewShotClassifier
from kshot.estimators.files import FileError, FileLimits

__all__ = ["Answer", "FewShotClassifier", "FileError", "FileLimits"]
