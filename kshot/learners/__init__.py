"""One file per idea. `REGISTRY` lists the learners, `build` makes one. A new learner is one file and one row."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from kshot.core import Learner

if TYPE_CHECKING:
    from kshot.learners._process import Process

__all__ = ["FUNCTION_FLOORS", "PROCESSES", "REGISTRY", "Entry", "build", "options", "process"]


class Entry(NamedTuple):
    """A row of the registry.

    Attributes:
        path: "module:Class".
        head: True: the body ends in one output per way (or target dimension); False: the body gives features.
        paper: where it comes from.
        settings: preset keyword arguments of the class.
        regression: it can also learn functions (float targets).
        unlabelled: it learns from unlabelled rows too, for tasks that have some.
        floor: it learns nothing from other tasks; every table shows it beside the learners.
    """

    path: str
    head: bool
    paper: str
    settings: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default, never mutated
    regression: bool = False
    unlabelled: bool = False
    floor: bool = False


_L = "kshot.learners."
REGISTRY: dict[str, Entry] = {
    "maml": Entry(_L + "maml:MAML", True, "Finn et al. 2017, arXiv:1703.03400", regression=True),
    "fomaml": Entry(_L + "maml:MAML", True, "Finn et al. 2017, section 5.2", {"first_order": True}, regression=True),
    "anil": Entry(_L + "anil:ANIL", True, "Raghu et al. 2020, arXiv:1909.09157", regression=True),
    "boil": Entry(_L + "boil:BOIL", True, "Oh et al. 2021, arXiv:2008.08882", regression=True),
    "metasgd": Entry(_L + "metasgd:MetaSGD", True, "Li et al. 2017, arXiv:1707.09835", regression=True),
    "mamlpp": Entry(_L + "mamlpp:MAMLpp", True, "Antoniou et al. 2019, arXiv:1810.09502", regression=True),
    "reptile": Entry(_L + "reptile:Reptile", True, "Nichol et al. 2018, arXiv:1803.02999", regression=True),
    "imaml": Entry(_L + "imaml:IMAML", True, "Rajeswaran et al. 2019, arXiv:1909.04630", regression=True),
    "protonet": Entry(_L + "protonet:ProtoNet", False, "Snell et al. 2017, arXiv:1703.05175"),
    "softkmeans": Entry(_L + "softkmeans:SoftKMeans", False, "Ren et al. 2018, arXiv:1803.00676", unlabelled=True),
    "matching": Entry(_L + "matching:MatchingNet", False, "Vinyals et al. 2016, arXiv:1606.04080"),
    "r2d2": Entry(_L + "r2d2:R2D2", False, "Bertinetto et al. 2019, arXiv:1805.08136"),
    "metaoptnet": Entry(_L + "metaoptnet:MetaOptNet", False, "Lee et al. 2019, arXiv:1904.03758"),
    "simpleshot": Entry(_L + "simpleshot:SimpleShot", False, "Wang et al. 2019, arXiv:1911.04623"),
    "pixels": Entry(_L + "pixels:Pixels", False, "1-nearest neighbour on raw inputs", floor=True),
    "finetune": Entry(_L + "finetune:FineTune", True, "train on the support set alone", floor=True, regression=True),
}

_GNP = "Markou et al. 2022, arXiv:2203.08775"
PROCESSES: dict[str, Entry] = {
    "cnp": Entry(_L + "cnp:CNP", False, "Garnelo et al. 2018, arXiv:1807.01613", regression=True),
    "np": Entry(_L + "np:NP", False, "Garnelo et al. 2018, arXiv:1807.01622", regression=True),
    "acnp": Entry(_L + "acnp:ACNP", False, "Kim et al. 2019, arXiv:1901.05761", regression=True),
    "anp": Entry(_L + "anp:ANP", False, "Kim et al. 2019, arXiv:1901.05761", regression=True),
    "bnp": Entry(_L + "bnp:BNP", False, "Lee et al. 2020, arXiv:2008.02956", regression=True),
    "convcnp": Entry(_L + "convcnp:ConvCNP", False, "Gordon et al. 2020, arXiv:1910.13556", regression=True),
    "convcnp2d": Entry(_L + "convcnp2d:ConvCNP2d", False, "Gordon et al. 2020, arXiv:1910.13556", regression=True),
    "gnp": Entry(_L + "acnp:ACNP", False, _GNP, {"rank": 32}, regression=True),
    "convgnp": Entry(_L + "convcnp:ConvCNP", False, _GNP, {"rank": 32}, regression=True),
    "tnpd": Entry(_L + "tnpd:TNPD", False, "Nguyen and Grover 2022, arXiv:2207.04179", regression=True),
}
"""Neural processes: they learn functions alone, have networks of their own, answer with distributions (`process`)."""
FUNCTION_FLOORS: dict[str, Entry] = {
    "gp": Entry(_L + "gp:FittedGP", False, "a Gaussian process fitted to each task", regression=True, floor=True),
    "neighbours": Entry(_L + "neighbours:Neighbours", False, "nearest neighbours", regression=True, floor=True),
}
"""What a neural process has to beat; made by `process` as they are."""


def build(name: str, body: nn.Module | None, ways: int, **settings: Any) -> Learner:
    """The learner of that name around `body`, for tasks of at most `ways` classes.

    Args:
        name: a key of `REGISTRY`; also of `PROCESSES`, whose learners take neither `body` nor `ways`.
        body: maps inputs `[N, ...]` to one output per way (or target dimension) where the entry's `head` is True, to
            features `[N, D]` where it is False; None for a learner that needs none ("pixels").
        ways: the largest number of classes of a task, W; unused by a regression.
        settings: keyword arguments of the learner's class, over the entry's own `settings`.

    Raises:
        ValueError: an unknown name (the nearest are told), a setting that the learner does not have, or a body or
            a value that it refuses.
    """
    if name in PROCESSES or name in FUNCTION_FLOORS:
        return process(name, **settings)
    return _made(name, {**REGISTRY, **PROCESSES, **FUNCTION_FLOORS}, {"body": body, "ways": ways}, settings)


def process(name: str, **settings: Any) -> Process:
    """The learner of functions of that name.

    Args:
        name: a key of `PROCESSES` or `FUNCTION_FLOORS`.
        settings: keyword arguments of its class, over the entry's own: `inputs` and `outputs` (1 each), ...

    Raises:
        ValueError: an unknown name (the nearest are told), a setting that it does not have, or a value that it refuses.
    """
    return _made(name, {**PROCESSES, **FUNCTION_FLOORS}, {}, settings)


def _made(name: str, known: dict[str, Entry], network: dict[str, Any], settings: dict[str, Any]) -> Any:
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.4)
        raise ValueError(
            f"unknown learner {name!r}: {'did you mean ' + ' or '.join(near) if near else 'choose from'}"
            f" ({', '.join(known)})"
        )
    entry = known[name]
    try:
        return _class(entry)(**network, **{**entry.settings, **settings})
    except TypeError as error:
        raise ValueError(f"learner {name!r} does not take these settings {settings}: {error}") from error


def options(name: str) -> dict[str, int | float | bool | str]:
    """The further settings of a learner that are numbers, truths or words, with their defaults; none where unknown.

    >>> options("imaml")["cg_steps"]
    5
    """
    known = {**REGISTRY, **PROCESSES}
    if name not in known:
        return {}
    entry = known[name]
    defaults = {p.name: p.default for p in inspect.signature(_class(entry)).parameters.values()}
    return {key: v for key, v in {**defaults, **entry.settings}.items() if isinstance(v, (int, float, bool, str))}


def _class(entry: Entry) -> Any:
    module, _, attribute = entry.path.partition(":")
    return getattr(importlib.import_module(module), attribute)
