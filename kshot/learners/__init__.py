"""One file per idea. `REGISTRY` lists the learners of all kinds, `build` makes one. A new learner is a file and a row.

build("protonet", Conv4(population=True), ways=5)
process("convcnp")                              # learners of functions with networks of their own
names("values", baselines=True)                 # who takes functions and learns nothing from other tasks
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import nn

from kshot.core import Learner

if TYPE_CHECKING:
    from collections.abc import Collection

    from kshot.learners.processes._process import Process

__all__ = ["REGISTRY", "WORDS", "Entry", "Payload", "Row", "build", "names", "options", "process", "row"]

Payload = str
"""What the tasks of a learner hold: "classes" (examples with ids), "values" (with numbers), "rollouts" (of a robot)."""
Network = Literal["head", "features", "own", "feedforward", "recurrent"]


class Row(NamedTuple):
    """How a learner is made for one kind of payload.

    Attributes:
        path: "module:Class".
        network: what it is given. "head": a network that ends in one output per way (or target dimension). "features":
            one that gives features. "own": none, its own settings say all. Of policies: "feedforward" or "recurrent".
        settings: preset keyword arguments of the class.
        sees_goal: a policy whose observations include the task's goal.
        by_method: its outer step may be of several kinds, and tables say which.
    """

    path: str
    network: Network
    settings: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default, never mutated
    sees_goal: bool = False
    by_method: bool = False

    @property
    def kind(self) -> Any:
        """The class."""
        module, _, attribute = self.path.partition(":")
        return getattr(importlib.import_module(module), attribute)


class Entry(NamedTuple):
    """A learner.

    Attributes:
        purpose: what it is for, in a line.
        paper: where it comes from.
        takes: the payloads that it can learn from.
        baseline: it learns nothing from other tasks; tables show it beside the learners.
        unlabelled: it learns from unlabelled rows too, for tasks that have some.
    """

    purpose: str
    paper: str
    takes: dict[Payload, Row]
    baseline: bool = False
    unlabelled: bool = False


def _gradient(
    purpose: str, paper: str, path: str, policy: Row | None = None, baseline: bool = False, **own: Any
) -> Entry:
    takes: dict[Payload, Row] = dict.fromkeys(("classes", "values"), Row(f"kshot.learners.{path}", "head", own))
    return Entry(purpose, paper, {**takes, "rollouts": policy} if policy is not None else takes, baseline)


def _metric(purpose: str, paper: str, path: str, **flags: bool) -> Entry:
    return Entry(purpose, paper, {"classes": Row(f"kshot.learners.{path}", "features")}, **flags)


def _process(purpose: str, paper: str, path: str, baseline: bool = False, **own: Any) -> Entry:
    return Entry(purpose, paper, {"values": Row(f"kshot.learners.{path}", "own", own)}, baseline)


def _policy(purpose: str, paper: str, own: Row) -> Entry:
    return Entry(purpose, paper, {"rollouts": own})


def _maml(kind: str = "PolicyMAML", sees_goal: bool = False, by_method: bool = True, **own: Any) -> Row:
    return Row(f"kshot.learners.policy.maml:{kind}", "feedforward", own, sees_goal, by_method)


_MAML, _SGD = "Finn et al. 2017, arXiv:1703.03400", "Li et al. 2017, arXiv:1707.09835"
_GNP = "Markou et al. 2022, arXiv:2203.08775"
REGISTRY: dict[str, Entry] = {
    # Gradient steps on the support set.
    "maml": _gradient("a start that a few gradient steps adapt", _MAML, "gradient.maml:MAML", _maml()),
    "fomaml": _gradient(
        "MAML with first-order gradients", _MAML, "gradient.maml:MAML", _maml(first_order=True), first_order=True
    ),
    "anil": _gradient(
        "MAML that adapts its last layer alone", "Raghu et al. 2020, arXiv:1909.09157", "gradient.anil:ANIL"
    ),
    "boil": _gradient(
        "MAML that adapts all but its last layer", "Oh et al. 2021, arXiv:2008.08882", "gradient.boil:BOIL"
    ),
    "metasgd": _gradient("MAML with learned inner rates", _SGD, "gradient.metasgd:MetaSGD", _maml(learn_rates=True)),
    "mamlpp": _gradient(
        "MAML with rates and norms of each step", "Antoniou et al. 2019, arXiv:1810.09502", "gradient.mamlpp:MAMLpp"
    ),
    "reptile": _gradient(
        "moves the start towards adapted weights", "Nichol et al. 2018, arXiv:1803.02999", "gradient.reptile:Reptile"
    ),
    "imaml": _gradient(
        "implicit meta-gradients, many steps", "Rajeswaran et al. 2019, arXiv:1909.04630", "gradient.imaml:IMAML"
    ),
    # Learned features and a closed form: any number of classes.
    "protonet": _metric("nearest class mean", "Snell et al. 2017, arXiv:1703.05175", "metric.protonet:ProtoNet"),
    "softkmeans": _metric(
        "class means, refined by unlabelled rows",
        "Ren et al. 2018, arXiv:1803.00676",
        "semi.softkmeans:SoftKMeans",
        unlabelled=True,
    ),
    "matching": _metric(
        "attention over the examples", "Vinyals et al. 2016, arXiv:1606.04080", "metric.matching:MatchingNet"
    ),
    "r2d2": _metric("ridge regression", "Bertinetto et al. 2019, arXiv:1805.08136", "metric.r2d2:R2D2"),
    "metaoptnet": _metric(
        "support vector machine", "Lee et al. 2019, arXiv:1904.03758", "metric.metaoptnet:MetaOptNet"
    ),
    "simpleshot": _metric(
        "nearest normalised class mean", "Wang et al. 2019, arXiv:1911.04623", "metric.simpleshot:SimpleShot"
    ),
    "plda": _metric("class means in the metric of what varies within classes", "Ioffe 2006", "metric.plda:PLDA"),
    "pixels": _metric("1-nearest neighbour", "on raw inputs", "metric.pixels:Pixels", baseline=True),
    "finetune": _gradient(
        "trains on the support set", "alone, or after pre-training", "gradient.finetune:FineTune", baseline=True
    ),
    # Neural processes: functions, with distributions as answers.
    "cnp": _process("mean of encoded points", "Garnelo et al. 2018, arXiv:1807.01613", "processes.cnp:CNP"),
    "np": _process("a latent variable", "Garnelo et al. 2018, arXiv:1807.01622", "processes.np:NP"),
    "acnp": _process("attention over points", "Kim et al. 2019, arXiv:1901.05761", "processes.acnp:ACNP"),
    "anp": _process("attention and a latent variable", "Kim et al. 2019, arXiv:1901.05761", "processes.anp:ANP"),
    "bnp": _process("bootstrapped support sets", "Lee et al. 2020, arXiv:2008.02956", "processes.bnp:BNP"),
    "convcnp": _process(
        "convolutions over a line", "Gordon et al. 2020, arXiv:1910.13556", "processes.convcnp:ConvCNP"
    ),
    "convcnp2d": _process(
        "convolutions over images", "Gordon et al. 2020, arXiv:1910.13556", "processes.convcnp2d:ConvCNP2d"
    ),
    "gnp": _process("attention, correlated answers", _GNP, "processes.acnp:ACNP", rank=32),
    "convgnp": _process("convolutions, correlated answers", _GNP, "processes.convcnp:ConvCNP", rank=32),
    "tnpd": _process("a transformer", "Nguyen and Grover 2022, arXiv:2207.04179", "processes.tnpd:TNPD"),
    "gp": _process("a Gaussian process", "fitted to each task", "processes.gp:FittedGP", baseline=True),
    "neighbours": _process("nearest neighbours", "on the points", "processes.neighbours:Neighbours", baseline=True),
    # Policies.
    "e-maml": _policy("MAML that is paid for exploring", "Stadie et al. 2018, arXiv:1803.01118", _maml("EMAML")),
    "promp": _policy(
        "MAML with proximal outer steps", "Rothfuss et al. 2019, arXiv:1810.06784", _maml("ProMP", by_method=False)
    ),
    "rl2": _policy(
        "a recurrent policy",
        "Duan et al. 2016, arXiv:1611.02779",
        Row("kshot.learners.policy.recurrent:RL2", "recurrent"),
    ),
    "pearl": _policy(
        "a context-based policy",
        "Rakelly et al. 2019, arXiv:1903.08254",
        Row("kshot.learners.policy.pearl:PEARL", "own"),
    ),
    "pretrained": _policy("one policy for all tasks", "a lower bound", _maml(by_method=False, adapts=False)),
    "oracle": _policy(
        "a policy that sees the goal", "an upper bound", _maml(sees_goal=True, by_method=False, adapts=False)
    ),
}


def names(payload: Payload, *networks: Network, baselines: bool = False) -> list[str]:
    """The learners that take a payload: all but the baselines, or the baselines alone.

    Args:
        payload: what the tasks hold.
        networks: of these kinds alone; none: of all.
        baselines: which of the two.

    >>> names("values", "own", baselines=True)
    ['gp', 'neighbours']
    """
    return [
        name
        for name, entry in REGISTRY.items()
        if payload in entry.takes
        and entry.baseline == baselines
        and (not networks or entry.takes[payload].network in networks)
    ]


def row(name: str, payload: Payload | None = None) -> Row:
    """How the learner of that name is made for a payload; None: for the first that it takes.

    Raises:
        ValueError: an unknown name (with the nearest), or a learner that takes other payloads.
    """
    known = [other for other, entry in REGISTRY.items() if payload is None or payload in entry.takes]
    if name in REGISTRY and name not in known:
        takes = " and ".join(WORDS[own] for own in REGISTRY[name].takes)
        raise ValueError(
            f"{name} learns {takes}, these tasks are {WORDS[payload or 'classes']}: choose from {', '.join(known)}"
        )
    if name not in REGISTRY:
        raise ValueError(f"unknown learner {name!r}{_nearest(name, known)}")
    takes = REGISTRY[name].takes
    return takes[payload] if payload is not None else next(iter(takes.values()))


WORDS: dict[Payload, str] = {"classes": "classes", "values": "functions", "rollouts": "control tasks"}


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 3, 0.4)
    return f": {'did you mean ' + ' or '.join(near) if near else 'choose from'} ({', '.join(known)})"


def build(name: str, body: nn.Module | None, ways: int, **settings: Any) -> Learner:
    """The learner of that name around `body`, for tasks of at most `ways` classes.

    Args:
        name: a key of `REGISTRY` that takes classes or values.
        body: maps inputs `[N, ...]` to one output per way (or target dimension) where the row's network is "head", to
            features `[N, D]` where it is "features"; None for a learner that needs none.
        ways: the largest number of classes of a task, W; unused by a regression.
        settings: keyword arguments of the learner's class, over the row's own `settings`.

    Raises:
        ValueError: an unknown name (the nearest are given), a setting that the learner does not have, or a network or
            a value that it refuses.
    """
    own = row(name)
    return made(name, own, settings if own.network == "own" else {"body": body, "ways": ways, **settings})


def process(name: str, **settings: Any) -> Process:
    """The learner of functions with a network of its own of that name.

    Args:
        name: a key of `REGISTRY` whose row for "values" has the network "own".
        settings: keyword arguments of its class, over the row's own: `inputs` and `outputs` (1 each), ...

    Raises:
        ValueError: an unknown name (the nearest are given), a setting or a value that it refuses.
    """
    known = [*names("values", "own"), *names("values", "own", baselines=True)]
    if name not in known:
        raise ValueError(f"unknown learner of functions {name!r}{_nearest(name, known)}")
    return made(name, row(name, "values"), settings)


def made(name: str, own: Row, settings: dict[str, Any]) -> Any:
    """The learner of a row.

    Raises:
        ValueError: a setting that it does not have, or a value that it refuses.
    """
    try:
        return own.kind(**{**own.settings, **settings})
    except TypeError as error:
        given = {key: value for key, value in settings.items() if not isinstance(value, nn.Module)}
        raise ValueError(f"learner {name!r} does not take these settings {given}: {error}") from error


def options(name: str, payload: Payload | None = None) -> dict[str, int | float | bool | str]:
    """The further settings of a learner that are numbers, truths or words, with their defaults; none where unknown.

    >>> options("imaml")["cg_steps"]
    5
    """
    if name not in REGISTRY or (payload is not None and payload not in REGISTRY[name].takes):
        return {}
    own = row(name, payload)
    defaults = {p.name: p.default for p in inspect.signature(own.kind).parameters.values()}
    return {key: v for key, v in {**defaults, **own.settings}.items() if isinstance(v, (int, float, bool, str))}
