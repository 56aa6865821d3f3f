"""What a user hands over is refused where it would be misunderstood, at every public entry, with the fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kshot import engine
from kshot import nn as knn
from kshot.core import Batch, Learner, Task, to
from kshot.learners import build, names
from kshot.numerics import checks, losses, tree
from kshot.scoring.evaluate import evaluate
from kshot.tasks import Sinusoid
from kshot.testing import Clusters
from kshot.training.meta import meta_train

WAYS = 3
LEARNED = names("classes")
ALL = [*LEARNED, *names("classes", baselines=True)]
HEADED = [*names("classes", "head"), *names("classes", "head", baselines=True)]
FEW: dict[str, dict[str, Any]] = {
    "finetune": {"steps": 2},
    "imaml": {"inner_steps": 2, "cg_steps": 1},
    "reptile": {"inner_steps": 2},
    "mamlpp": {"inner_steps": 2},
}


class Given:
    """A distribution that hands out what it was given."""

    independent = True

    def __init__(self, made: Callable[[int], Any]):
        self.made = made

    def sample(self, generator: torch.Generator, num_tasks: int) -> Any:
        return self.made(num_tasks)


def learner(name: str, ways: int = WAYS, outputs: int | None = None, **settings: Any) -> Learner:
    torch.manual_seed(0)
    body = knn.MLP(8, 6, outputs or (ways if name in HEADED else 4), activation="tanh")
    return build(name, body, ways, **{**FEW.get(name, {}), **settings})


def classes(num_tasks: int = 2, ways: int = WAYS) -> Task:
    return Clusters(ways=ways, shots=2, queries=2).sample(torch.Generator().manual_seed(0), num_tasks)


def values(num_tasks: int = 2) -> Task:
    return Sinusoid(shots=5, queries=5).sample(torch.Generator().manual_seed(0), num_tasks)


def changed(task: Task, change: Callable[[Tensor], Any], leaf: str = "y") -> Task:
    return Task(*(part._replace(**{leaf: change(getattr(part, leaf))}) for part in task))


def regression() -> Learner:
    return build("maml", knn.MLP(1, 4, 1), 1, inner_lr=0.01)


def entries(own: Learner, made: Callable[[int], Any]) -> dict[str, Callable[[], Any]]:
    """Every public way of a batch of tasks into the library."""
    return {
        "meta_gradient, mapped": lambda: engine.meta_gradient(own, made(2), "vmap"),
        "meta_gradient, looped": lambda: engine.meta_gradient(own, made(2), "loop"),
        "meta_loss": lambda: engine.meta_loss(own, made(2)),
        "evaluate": lambda: evaluate(own, Given(made), num_tasks=4),
        "meta_train": lambda: list(meta_train(own, Given(made), steps=1, batch=2, val_every=0)),
    }


def refused(own: Learner, made: Callable[[int], Any], says: str, but: tuple[str, ...] = ()) -> None:
    for name, entry in entries(own, made).items():
        if name not in but:
            with pytest.raises(ValueError, match=says):
                entry()


# What is handed over -> the message. The first column makes a batch of so many tasks.
MISTAKEN: dict[str, tuple[Callable[[], Learner], Callable[[int], Any], str]] = {
    "targets [N]": (regression, lambda t: changed(values(t), lambda y: y[..., 0]), r"y\[\.\.\., None\]"),
    "targets of another size": (
        regression,
        lambda t: changed(values(t), lambda y: torch.cat([y, y], -1)),
        r"\[5, 1\].*y \[5, 2\].*equal shapes|prediction is \[5, 1\] and y \[5, 2\]",
    ),
    "sizes that differ": (
        regression,
        lambda t: values(t)._replace(query=Batch(values(t).query.x, values(t).query.y.repeat(1, 1, 2))),
        "different sizes",
    ),
    "float class ids": (lambda: learner("maml"), lambda t: changed(classes(t), Tensor.float), r"y\.long\(\)"),
    "float class ids in a column": (
        lambda: learner("maml"),
        lambda t: changed(classes(t), lambda y: y.float()[..., None]),
        r"y\.long\(\)",
    ),
    "class ids in a column": (
        lambda: learner("maml"),
        lambda t: changed(classes(t), lambda y: y[..., None]),
        r"y\[\.\.\., 0\]",
    ),
    "booleans": (lambda: learner("maml", 2), lambda t: changed(classes(t, 2), Tensor.bool), r"y\.long\(\)"),
    "class ids 1..W": (lambda: learner("maml"), lambda t: changed(classes(t), lambda y: y + 1), "pass y - 1"),
    "too many classes": (lambda: learner("maml"), lambda t: classes(t, 5), "5 classes.*ways=3: pass ways=5"),
    "below padding": (lambda: learner("maml"), lambda t: changed(classes(t), lambda y: y - 3), "class id of -3"),
    "a narrow head": (lambda: learner("maml", 5, 3), lambda t: classes(t, 5), "3 outputs but the learner has ways=5"),
    "a narrow head, no step": (
        lambda: learner("maml", 5, 3, inner_steps=0),
        lambda t: classes(t, 5),
        "3 outputs but the learner has ways=5",
    ),
    "no leading T": (lambda: learner("maml"), lambda t: tree.index(classes(1), 0), r"one task alone: x\[None\]"),
    "no leading T, values": (regression, lambda t: tree.index(values(1), 0), r"one task alone: x\[None\]"),
    "rows that do not fit": (lambda: learner("maml"), lambda t: changed(classes(t), lambda y: y[:, :-1]), "expected"),
    "queries of no known class": (
        lambda: learner("maml"),
        lambda t: classes(t)._replace(support=tree.map_(lambda leaf: leaf[:, :4], classes(t).support)),
        r"query.y has class 2, of which the support set has no example \(its classes: \[0, 1\]\)",
    ),
    "no task": (lambda: learner("maml"), lambda t: (classes(t).support, classes(t).query), "pass a kshot.core.Task"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKEN)
def test_tasks_that_would_be_misunderstood_are_refused_at_every_entry(kind):
    make, made, says = MISTAKEN[kind]
    refused(make(), made, says)


def test_as_many_tasks_as_were_asked_for():
    """The engine is given a batch of some size; a distribution was asked for a number."""
    own = learner("maml")
    alone = ("meta_gradient, mapped", "meta_gradient, looped", "meta_loss")
    refused(own, lambda t: classes(t - 1), "gave .* task.*, not", alone)
    refused(own, lambda t: classes(1), r"gave 1 task, not", alone)
    refused(own, lambda t: classes(t + 1), "gave .* tasks, not", alone)


@pytest.mark.parametrize("name", ALL)
def test_adapt_and_loss_of_one_task(name):
    own, task = learner(name), tree.index(classes(), 0)
    wrong: dict[str, tuple[Batch, str]] = {
        "batch": (classes().support, "a batch of tasks"),
        "float": (task.support._replace(y=task.support.y.float()), r"y\.long\(\)"),
        "from 1": (task.support._replace(y=task.support.y + 1), "pass y - 1"),
        "short": (task.support._replace(y=task.support.y[:-1]), "expected"),
    }
    for support, says in wrong.values():
        with pytest.raises(ValueError, match=says):
            own.adapt(own.init(), support)
        with pytest.raises(ValueError, match=says):
            own.loss(task._replace(support=support))
    with pytest.raises(ValueError, match="class 2, of which the support set has no example"):
        own.loss(task._replace(support=Batch(task.support.x[:4], task.support.y[:4])))


def test_criterion_is_not_broadcast():
    assert losses.mean_squared_error(torch.zeros(3, 2), torch.ones(3, 2)) == 1
    wrong = [((3, 1), (3,)), ((3, 1), (3, 2)), ((3,), (3, 1))]
    for one, other in wrong:
        with pytest.raises(ValueError, match="equal shapes are needed"):
            losses.mean_squared_error(torch.zeros(one), torch.ones(other))
    with pytest.raises(ValueError, match=r"scores \[M, W\] for class ids \[M\]"):
        losses.cross_entropy(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="class id of 2 and the prediction 2 outputs"):
        losses.cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 2]))


class Own(Learner):
    """A learner of somebody's, without `ways`: its outputs are found by asking."""

    closed_set = False

    def __init__(self) -> None:
        super().__init__()
        self.body = knn.MLP(8, 3)

    def init(self) -> dict[str, Tensor]:
        return dict(self.body.named_parameters())

    def adapt(self, state: Any, support: Batch) -> Any:
        return state

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return knn.call(self.body, state, x)


def test_class_ids_beyond_the_outputs_of_anybodys_learner():
    refused(Own(), lambda t: classes(t, 4), "3 outputs")
    few = classes()._replace(support=tree.map_(lambda leaf: leaf[:, :4], classes().support))
    assert engine.meta_loss(Own(), few).loss.isfinite().all()  # it knows classes without examples


@pytest.mark.parametrize("name", [*ALL, "cnp"])
def test_arrays_of_numpy_are_tensors(name):
    tasks = to(values() if name == "cnp" else classes(), dtype=torch.float64)
    own = build("cnp", None, 0, width=8) if name == "cnp" else learner(name)
    arrays: Any = Task(*(Batch(part.x.numpy(), part.y.numpy()) for part in tasks))
    wanted = engine.meta_loss(own, to(tasks, dtype=torch.float32)).loss
    torch.testing.assert_close(engine.meta_loss(own, arrays).loss, wanted)
    state = own.adapt(own.init(), Batch(arrays.support.x[0], arrays.support.y[0]))
    one = to(tree.index(tasks, 0), dtype=torch.float32)
    expected = own.predict(own.adapt(own.init(), one.support), one.query.x)
    for found, want in zip(tree.leaves(own.predict(state, arrays.query.x[0])), tree.leaves(expected), strict=True):
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("name", ["maml", "anil", "protonet"])
def test_one_input_alone_is_no_batch(name):
    own = build(name, Headed(), 3, **({"features": 3} if name == "protonet" else {}))
    state = own.adapt(own.init(), tree.index(classes().support, 0))
    with pytest.raises(ValueError, match=r"expected a row for each input, \[8, D\] \(one input alone is x\[None\]\)"):
        own.predict(state, torch.zeros(8))


class Headed(nn.Module):
    """Takes one input alone without a word, as linear layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


@pytest.mark.parametrize("name", names("values", "own"))
def test_processes_refuse_other_numbers_of_inputs_and_class_ids(name):
    own = build(name, None, 0, **({"width": 8} if name != "convcnp2d" else {}))
    inputs = own.inputs
    with pytest.raises(ValueError, match=rf"takes \[M, {inputs}\]"):
        own.predict(own.init(), torch.zeros(4, inputs + 1))
    with pytest.raises(ValueError, match=r"learns \[N, 1\] floating values"):
        own.adapt(own.init(), Batch(torch.zeros(4, inputs), torch.zeros(4, dtype=torch.int64)))


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1", {"a": 1}, None, True, [0.1]])
def test_rates_are_numbers(value):
    for name in HEADED:
        rate = "lr" if name == "finetune" else "inner_lr"
        with pytest.raises(ValueError, match=f"{rate}=.*pass a finite number >= 0"):
            learner(name, **{rate: value})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("maml", {"ways": 2.5}),
        ("maml", {"ways": "5"}),
        ("maml", {"inner_steps": -1}),
        ("maml", {"later_lr_factor": -1}),
        ("maml", {"first_order": "False"}),
        ("maml", {"transductive": None}),
        ("maml", {"adapts": "head"}),
        ("mamlpp", {"multi_step": 2}),
        ("mamlpp", {"first_order_share": -0.5}),
        ("imaml", {"lam": 0}),
        ("imaml", {"cg_steps": 1.5}),
        ("reptile", {"inner_batch": 0}),
        ("finetune", {"momentum": float("nan")}),
        ("protonet", {"scale": "1"}),
        ("matching", {"scale": float("inf")}),
        ("r2d2", {"penalty": -1}),
        ("metaoptnet", {"cost": 0}),
        ("simpleshot", {"scale": 0}),
        ("plda", {"penalty": 0}),
        ("plda", {"prior": -0.1}),
        ("protonet", {"features": 0}),
    ],
)
def test_other_settings(name, settings):
    ways = settings.pop("ways", WAYS)
    with pytest.raises(ValueError, match="pass"):
        learner(name, ways, 4, **settings)


def test_numbers_of_numpy_are_pythons():
    own = learner("maml", np.int64(3), inner_lr=np.float32(0.5), inner_steps=np.int64(2), first_order=np.bool_(True))
    assert (own.ways, own.inner_lr, own.inner_steps, own.first_order) == (3, 0.5, 2, True)
    assert {type(v) for v in (own.ways, own.inner_lr, own.inner_steps, own.first_order)} == {int, float, bool}
    assert learner("reptile", inner_batch=torch.tensor(4)).inner_batch == 4
    tasks = Clusters(ways=np.int64(3), shots=np.int64(1), queries=np.int64(2))
    assert type(tasks.ways) is int
    assert type(Sinusoid(shots=np.int64(3)).shots) is int
    assert checks.sizes("shots_range", np.array([1, 3]), 1) == (1, 3)
    assert build("cnp", None, 0, inputs=np.int64(2)).inputs == 2


# --------------------------------------------------------------------------------------------- classes without examples


@pytest.mark.parametrize("name", HEADED)
def test_outputs_without_an_example_are_closed(name):
    """A network of 20 outputs on tasks of 3 classes adapts and answers as the one that has these 3 alone."""
    wide = learner(name, 20).double()
    narrow = learner(name, 3).double()
    own = {n: p[:3] if p.shape[:1] == (20,) else p for n, p in wide.body.state_dict().items()}
    narrow.body.load_state_dict(own)
    tasks = to(classes(), dtype=torch.float64)
    task = tree.index(tasks, 0)
    state = wide.adapt(wide.init(), task.support)
    found = wide.predict(state, task.query.x)
    wanted = narrow.predict(narrow.adapt(narrow.init(), task.support), task.query.x)
    torch.testing.assert_close(found[:, :3], wanted)
    assert (found[:, 3:] == losses.absent(found)).all()
    torch.testing.assert_close(found.softmax(1)[:, :3], wanted.softmax(1))
    assert state.present.tolist() == [True] * 3 + [False] * 17
    torch.testing.assert_close(engine.meta_loss(wide, tasks).loss, engine.meta_loss(narrow, tasks).loss)
    before = wide.predict(wide.init(), task.query.x)
    assert (before > losses.absent(before)).all()  # nothing is known yet
    gradient, _ = engine.meta_gradient(wide, tasks, "loop")
    mapped, _ = engine.meta_gradient(wide, tasks, "vmap")
    for which, value in gradient.items():
        torch.testing.assert_close(mapped[which], value, rtol=1e-9, atol=1e-12)
        if value.shape[:1] == (20,) and which.startswith("body") and name != "reptile":
            assert not value[3:].any()
    more = wide.adapt(state, Batch(task.support.x[:1], torch.tensor([7])))
    assert more.present.nonzero().flatten().tolist() == [0, 1, 2, 7]  # a fold


@pytest.mark.parametrize("name", HEADED)
def test_gaps_among_class_ids(name):
    """Tasks of the classes 0 and 2 alone are tasks of two classes."""
    own = learner(name)
    tasks = changed(classes(ways=2), lambda y: 2 * y)
    state = own.adapt(own.init(), tree.index(tasks.support, 0))
    assert set(own.predict(state, tasks.query.x[0]).argmax(1).tolist()) <= {0, 2}
    assert engine.meta_loss(own, tasks).loss.isfinite().all()


# --------------------------------------------------------------------------------------------------- frozen parameters


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", [*HEADED, "fomaml, inner batch norm"])
def test_frozen_parts_are_not_adapted(name, when):
    name, norm = name.split(",")[0], "," in name
    layers = [nn.Linear(8, 6), *([knn.BatchNorm(6)] if norm else []), nn.Tanh(), nn.Linear(6, 6), nn.Tanh()]
    body = nn.Sequential(*layers)
    body.head = nn.Linear(6, 3)
    if when == "before":
        body[0].requires_grad_(False)
    own = build(name, body, 3, **FEW.get(name, {}))
    body[0].requires_grad_(False)
    tasks = classes()
    state = own.adapt(own.init(), tree.index(tasks.support, 0))
    for n, p in body.named_parameters():
        still = (
            n.startswith("0.")
            or (name == "anil" and not n.startswith("head"))
            or (name == "boil" and n.startswith("head"))
        )
        assert torch.equal(state.params[n], p) == still, n
    for strategy in ("loop", "vmap"):
        gradient, _ = engine.meta_gradient(own, tasks, strategy)
        assert not [n for n in gradient if n.startswith("body.0.")]
    own.requires_grad_(False)  # a learner that is used, and no more trained, adapts what it did
    after = own.adapt(own.init(), tree.index(tasks.support, 0))
    assert any(not torch.equal(after.params[n], p) for n, p in body.named_parameters())


def test_what_is_asked_for_by_name_adapts_frozen_or_not():
    body = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient"):
        build("maml", body, 3)
    own = build("maml", body, 3, adapts=("2",))
    state = own.adapt(own.init(), tree.index(classes().support, 0))
    assert not torch.equal(state.params["2.weight"], body[2].weight)
    assert torch.equal(state.params["0.weight"], body[0].weight)


@pytest.mark.parametrize("asked", ["first", "last"])
def test_tied_weights_go_by_either_name(asked):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
            self.last.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x)))

    own = build("maml", Tied(), 8, adapts=(f"{asked}.weight",), inner_lr=0.1).double()
    assert own.adapts == ["first.weight"]
    task = tree.index(to(classes(), dtype=torch.float64), 0)
    weight = own.body.first.weight
    score = losses.cross_entropy(own.predict(own.init(), task.support.x)[:, :3], task.support.y)
    by_hand = weight - 0.1 * torch.autograd.grad(score, weight)[0]
    torch.testing.assert_close(own.adapt(own.init(), task.support).params["first.weight"], by_hand)
