"""kshot: models that learn a new task from k examples.

    import kshot

    train = kshot.episodes("glyphs", "train", ways=20, shots=1)
    learner = kshot.ProtoNet(kshot.nn.Conv4(population=True), ways=20)
    kshot.train(learner, train, steps=600)                                  # or: for record in kshot.meta_train(...)
    print(kshot.evaluate(learner, kshot.episodes("glyphs", "test", ways=5, shots=1), num_tasks=600))

    kshot.FewShotClassifier().fit(images, names).predict(others)            # needs kshot[sklearn]

`import kshot` is instant: torch, and nothing heavier, is loaded with the first name that is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kshot import _moved

if TYPE_CHECKING:
    from kshot import data, engine, learners, nn, tasks, testing
    from kshot.api import episodes, evaluate, load, train
    from kshot.apps.classify.classifier import FewShotClassifier
    from kshot.apps.series.regressor import FewShotRegressor
    from kshot.core import PADDING, UNLABELLED, Batch, Learner, Metrics, State, Stream, Task
    from kshot.data.bank import Bank
    from kshot.learners.gradient.anil import ANIL
    from kshot.learners.gradient.boil import BOIL
    from kshot.learners.gradient.finetune import FineTune
    from kshot.learners.gradient.imaml import IMAML
    from kshot.learners.gradient.maml import MAML
    from kshot.learners.gradient.mamlpp import MAMLpp
    from kshot.learners.gradient.metasgd import MetaSGD
    from kshot.learners.gradient.reptile import Reptile
    from kshot.learners.metric.matching import MatchingNet
    from kshot.learners.metric.metaoptnet import MetaOptNet
    from kshot.learners.metric.pixels import Pixels
    from kshot.learners.metric.plda import PLDA
    from kshot.learners.metric.protonet import ProtoNet
    from kshot.learners.metric.r2d2 import R2D2
    from kshot.learners.metric.simpleshot import SimpleShot
    from kshot.learners.processes.acnp import ACNP
    from kshot.learners.processes.anp import ANP
    from kshot.learners.processes.bnp import BNP
    from kshot.learners.processes.cnp import CNP
    from kshot.learners.processes.convcnp import ConvCNP
    from kshot.learners.processes.convcnp2d import ConvCNP2d
    from kshot.learners.processes.gp import FittedGP
    from kshot.learners.processes.neighbours import Neighbours
    from kshot.learners.processes.np import NP
    from kshot.learners.processes.tnpd import TNPD
    from kshot.learners.semi.softkmeans import SoftKMeans
    from kshot.scoring.scores import Scores
    from kshot.training.meta import meta_train
    from kshot.training.settings import Outer, Run

__version__ = "0.1.0"
_moved.install()  # old paths of modules

_MODULES = ("data", "engine", "learners", "nn", "tasks", "testing")
_FROM = {  # module -> the names that it gives; the imports above are for editors and type checkers
    "api": "episodes evaluate load train",
    "apps.classify.classifier": "FewShotClassifier",
    "apps.series.regressor": "FewShotRegressor",
    "core": "PADDING UNLABELLED Batch Learner Metrics State Stream Task",
    "data.bank": "Bank",
    **{f"learners.gradient.{name.lower()}": name for name in ("ANIL", "BOIL", "FineTune", "IMAML", "MAML", "MAMLpp")},
    **{f"learners.gradient.{name.lower()}": name for name in ("MetaSGD", "Reptile")},
    **{
        f"learners.metric.{name.lower()}": name
        for name in ("MetaOptNet", "Pixels", "PLDA", "ProtoNet", "R2D2", "SimpleShot")
    },
    "learners.metric.matching": "MatchingNet",
    **{f"learners.processes.{name.lower()}": name for name in ("ACNP", "ANP", "BNP", "CNP", "ConvCNP", "ConvCNP2d")},
    **{f"learners.processes.{name.lower()}": name for name in ("NP", "Neighbours", "TNPD")},
    "learners.processes.gp": "FittedGP",
    "learners.semi.softkmeans": "SoftKMeans",
    "scoring.scores": "Scores",
    "training.meta": "meta_train",
    "training.settings": "Outer Run",
}
_WHERE = {name: module for module, names in _FROM.items() for name in names.split()}

__all__ = [
    "ACNP",
    "ANIL",
    "ANP",
    "BNP",
    "BOIL",
    "CNP",
    "IMAML",
    "MAML",
    "NP",
    "PADDING",
    "PLDA",
    "R2D2",
    "TNPD",
    "UNLABELLED",
    "Bank",
    "Batch",
    "ConvCNP",
    "ConvCNP2d",
    "FewShotClassifier",
    "FewShotRegressor",
    "FineTune",
    "FittedGP",
    "Learner",
    "MAMLpp",
    "MatchingNet",
    "MetaOptNet",
    "MetaSGD",
    "Metrics",
    "Neighbours",
    "Outer",
    "Pixels",
    "ProtoNet",
    "Reptile",
    "Run",
    "Scores",
    "SimpleShot",
    "SoftKMeans",
    "State",
    "Stream",
    "Task",
    "__version__",
    "data",
    "engine",
    "episodes",
    "evaluate",
    "learners",
    "load",
    "meta_train",
    "nn",
    "tasks",
    "testing",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kshot.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'kshot' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"kshot.{_WHERE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
