"""Old module paths -> new ones: importing an old one gives the new module, with a DeprecationWarning.

    from kshot.tree import map_          # kshot.numerics.tree, and a warning, once

A module whose names went to several files is a view of them. Nothing is loaded before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

__all__ = ["FUNCTIONS", "MOVED", "install", "renamed"]

MOVED: dict[str, tuple[str, ...]] = {
    "kshot.checkpoint": ("kshot.storage.checkpoint",),
    "kshot.checks": ("kshot.numerics.checks",),
    "kshot.data.download": ("kshot.storage.download",),
    "kshot.distributions": ("kshot.numerics.distributions",),
    "kshot.estimators": ("kshot.apps",),
    "kshot.estimators.classifier": ("kshot.apps.classify.classifier",),
    "kshot.estimators.familiar": ("kshot.apps.series.familiar",),
    "kshot.estimators.files": ("kshot.apps.classify.files",),
    "kshot.estimators.fitting": ("kshot.apps.series.fitting",),
    "kshot.estimators.regressor": ("kshot.apps.series.regressor",),
    "kshot.evaluate": ("kshot.scoring.evaluate", "kshot.scoring.classes"),
    "kshot.fold": ("kshot.engine.fold",),
    "kshot.folding": ("kshot.training.folding",),
    "kshot.functions": ("kshot.tasks.functions.registry",),
    "kshot.intervals": ("kshot.scoring.intervals",),
    "kshot.joint": ("kshot.scoring.autoregressive",),
    "kshot.kernels": ("kshot.nn.kernels",),
    "kshot.keys": ("kshot.numerics.keys",),
    "kshot.learners.acnp": ("kshot.learners.processes.acnp",),
    "kshot.learners.anil": ("kshot.learners.gradient.anil",),
    "kshot.learners.anp": ("kshot.learners.processes.anp",),
    "kshot.learners.bnp": ("kshot.learners.processes.bnp",),
    "kshot.learners.boil": ("kshot.learners.gradient.boil",),
    "kshot.learners.cnp": ("kshot.learners.processes.cnp",),
    "kshot.learners.convcnp": ("kshot.learners.processes.convcnp",),
    "kshot.learners.convcnp2d": ("kshot.learners.processes.convcnp2d",),
    "kshot.learners.finetune": ("kshot.learners.gradient.finetune",),
    "kshot.learners.gp": ("kshot.learners.processes.gp",),
    "kshot.learners.imaml": ("kshot.learners.gradient.imaml",),
    "kshot.learners.maml": ("kshot.learners.gradient.maml",),
    "kshot.learners.mamlpp": ("kshot.learners.gradient.mamlpp",),
    "kshot.learners.matching": ("kshot.learners.metric.matching",),
    "kshot.learners.metaoptnet": ("kshot.learners.metric.metaoptnet",),
    "kshot.learners.metasgd": ("kshot.learners.gradient.metasgd",),
    "kshot.learners.neighbours": ("kshot.learners.processes.neighbours",),
    "kshot.learners.np": ("kshot.learners.processes.np",),
    "kshot.learners.pixels": ("kshot.learners.metric.pixels",),
    "kshot.learners.protonet": ("kshot.learners.metric.protonet",),
    "kshot.learners.r2d2": ("kshot.learners.metric.r2d2",),
    "kshot.learners.reptile": ("kshot.learners.gradient.reptile",),
    "kshot.learners.simpleshot": ("kshot.learners.metric.simpleshot",),
    "kshot.learners.softkmeans": ("kshot.learners.semi.softkmeans",),
    "kshot.learners.tnpd": ("kshot.learners.processes.tnpd",),
    "kshot.likelihood": ("kshot.scoring.density",),
    "kshot.loop": ("kshot.training.loop",),
    "kshot.losses": ("kshot.numerics.losses",),
    "kshot.memory": ("kshot.engine.rematerialise",),
    "kshot.models": ("kshot.apps.classify.models",),
    "kshot.models.hub": ("kshot.apps.classify.models.hub",),
    "kshot.parallel": ("kshot.engine.processes",),
    "kshot.places": ("kshot.storage.places",),
    "kshot.planning": ("kshot.engine.planning",),
    "kshot.pretrain": ("kshot.training.pretrain",),
    "kshot.report": ("kshot.apps.classify.report",),
    "kshot.rl": ("kshot.tasks.control",),
    "kshot.rl.bodies": ("kshot.tasks.control.bodies",),
    "kshot.rl.control": (
        "kshot.tasks.control.control",
        "kshot.tasks.control.mujoco",
        "kshot.tasks.control.sim",
        "kshot.tasks.control.registry",
        "kshot.tasks.control.observed",
    ),
    "kshot.rl.gym": ("kshot.tasks.control.gym",),
    "kshot.rl.learner": ("kshot.learners.policy.learner", "kshot.learners.policy.actor"),
    "kshot.rl.maml": ("kshot.learners.policy.maml",),
    "kshot.rl.pearl": ("kshot.learners.policy.pearl", "kshot.learners.policy.policy"),
    "kshot.rl.policy": ("kshot.learners.policy.policy",),
    "kshot.rl.recurrent": ("kshot.learners.policy.recurrent",),
    "kshot.rl.replay": ("kshot.learners.policy.replay",),
    "kshot.rl.rollouts": ("kshot.learners.policy.rollouts",),
    "kshot.rl.score": ("kshot.scoring.returns",),
    "kshot.rl.sim": (
        "kshot.tasks.control.sim",
        "kshot.tasks.control.control",
        "kshot.tasks.control.paper",
        "kshot.tasks.control.bodies",
        "kshot.tasks.control.observed",
    ),
    "kshot.rl.train": ("kshot.families.control.step",),
    "kshot.rl.trust": ("kshot.learners.policy.trust",),
    "kshot.rl.video": ("kshot.families.control.video", "kshot.tasks.control.camera"),
    "kshot.scores": ("kshot.scoring.scores",),
    "kshot.seeding": ("kshot.numerics.seeding",),
    "kshot.serve": ("kshot.apps.classify.serve",),
    "kshot.serve.session": ("kshot.apps.classify.serve.session",),
    "kshot.settings": ("kshot.training.settings",),
    "kshot.tasks.augment": ("kshot.tasks.images.augment",),
    "kshot.tasks.curves": ("kshot.tasks.functions.curves", "kshot.data.csv"),
    "kshot.tasks.episodes": ("kshot.tasks.images.episodes",),
    "kshot.tasks.pixels": ("kshot.tasks.functions.pixels",),
    "kshot.tasks.predprey": ("kshot.tasks.functions.predprey",),
    "kshot.tasks.processes": ("kshot.tasks.functions.processes",),
    "kshot.tasks.published": ("kshot.tasks.functions.published",),
    "kshot.tasks.standardised": ("kshot.tasks.functions.standardised",),
    "kshot.tasks.varied": ("kshot.tasks.functions.varied",),
    "kshot.train": ("kshot.training.meta",),
    "kshot.tree": ("kshot.numerics.tree",),
}
"""Old path -> where its names are now, the first of them its own module; see CHANGELOG.md."""
FUNCTIONS = ("kshot.evaluate", "kshot.train")
"""Old modules whose names are those of functions now."""


class _View(ModuleType):
    """A module whose names are in several others. Where kshot now has a function of its name it is called as that."""

    def __init__(self, name: str, parts: list[ModuleType]):
        super().__init__(name, f"Moved: see {', '.join(part.__name__ for part in parts)}.")
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        for part in self._parts:
            if hasattr(part, name):
                return getattr(part, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __call__(self, *args: Any, **options: Any) -> Any:
        return sys.modules["kshot"].__getattr__(self.__name__.rpartition(".")[2])(*args, **options)

    def __dir__(self) -> list[str]:
        return sorted({name for part in self._parts for name in dir(part)})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, MOVED[module.__name__]
        # stacklevel 2 is who imports: Python leaves the frames of its import system out.
        warnings.warn(f"{old} has moved: import {' or '.join(new)}", DeprecationWarning, stacklevel=2)
        parts = [importlib.import_module(name) for name in new]
        # The import system takes what stands in sys.modules when this returns.
        sys.modules[old] = parts[0] if len(parts) == 1 and old not in FUNCTIONS else _View(old, parts)


def install() -> None:
    """Let old paths be imported; once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that knows its old names: each gives what has the new name, with a DeprecationWarning.

    Args:
        module: its `__name__`.
        names: old -> new.
    """

    def found(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now called {names[name]}", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return found
