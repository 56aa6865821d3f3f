"""The contract on every registered learner, how many checks ran for each, and that every check can fail."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kshot import nn as knn
from kshot.core import Batch, Learner, Task
from kshot.engine import rematerialise
from kshot.learners import build, names
from kshot.numerics import losses
from kshot.tasks import Sinusoid
from kshot.testing import LEARNER_CHECKS, TASK_CHECKS, Clusters, ContractError, Report, check_learner, check_tasks

WAYS = 3
IMAGES = Clusters(ways=WAYS, shots=2, queries=4, shape=(1, 16, 16))
VECTORS = Clusters(ways=WAYS, shots=2, queries=4, shape=(8,))
WAVES = Sinusoid(shots=10, queries=10, amplitude=(1.0, 2.0), phase=(0.0, 1.0), x=(-2.0, 2.0))


class Row(NamedTuple):
    """How many of the 23 checks run on a machine without CUDA, with an MLP, a Conv4, and on sine waves (if it can)."""

    mlp: int
    conv: int
    waves: int | None
    settings: dict[str, Any] = {}  # noqa: RUF012  fewer steps than the paper's, for speed


# Not run, by design: device (no CUDA); class_permutation and folding where not claimed; finite_difference where the
# gradient is an estimator; queries_are_independent with batch norm where transductive; both gradient checks where
# everything is frozen; support_order where the support set is cut into batches; five checks of classes on sine waves.
# A learner that begins to claim more, or less, must be told here.
EXPECTED: dict[str, Row] = {
    "maml": Row(20, 19, 17),
    "fomaml": Row(19, 18, 16),
    "anil": Row(20, 19, 17),
    "boil": Row(20, 19, 17),
    "metasgd": Row(20, 19, 17),
    "mamlpp": Row(20, 19, 17, {"inner_steps": 2}),
    "reptile": Row(18, 17, 15, {"inner_steps": 3, "inner_lr": 0.05}),
    "imaml": Row(19, 18, 16, {"inner_steps": 3, "cg_steps": 2}),
    "protonet": Row(22, 22, None),
    "softkmeans": Row(21, 21, None),
    "matching": Row(22, 22, None),
    "r2d2": Row(21, 21, None),
    "metaoptnet": Row(21, 21, None),
    "simpleshot": Row(22, 22, None),
    "plda": Row(21, 21, None),
    "pixels": Row(20, 20, None),
    "finetune": Row(19, 19, 16, {"steps": 5, "lr": 0.1}),
}
WAVE_SETTINGS = {name: {"inner_lr": 0.05} for name in ("maml", "fomaml", "anil", "boil", "metasgd", "mamlpp")}
WAVE_SETTINGS["reptile"] = {"inner_steps": 5, "inner_lr": 0.01}
CLASSES = [*names("classes"), *names("classes", baselines=True)]
HEADED = [*names("classes", "head"), *names("classes", "head", baselines=True)]
VALUES = [*names("values", "head"), *names("values", "head", baselines=True)]
CUDA = int(torch.cuda.is_available())


def mlp(head: bool) -> nn.Module:
    return knn.MLP(8, 12, WAYS if head else 6, activation="tanh")


def conv(head: bool) -> nn.Module:
    return knn.Conv4(
        width=4,
        size=16,
        pool="stride",
        activation="softplus",
        population=not head,
        out=WAYS if head else None,
    )


def counted(report: Report, expected: int) -> None:
    assert len(report.ran) + len(report.skipped) == len(LEARNER_CHECKS) == 23
    assert len(report.ran) == expected + CUDA, f"{expected + CUDA} checks expected\n{report}"


def test_the_table_has_every_learner():
    assert set(EXPECTED) == set(CLASSES)
    assert {n for n, row in EXPECTED.items() if row.waves is not None} == {*VALUES}


@pytest.mark.parametrize("name", CLASSES)
def test_learner_with_a_perceptron(name: str):
    row = EXPECTED[name]
    counted(check_learner(lambda: build(name, mlp(name in HEADED), WAYS, **row.settings), VECTORS), row.mlp)


@pytest.mark.parametrize("name", CLASSES)
def test_learner_with_convolutions_and_batch_norm(name: str):
    row = EXPECTED[name]
    counted(check_learner(lambda: build(name, conv(name in HEADED), WAYS, **row.settings), IMAGES), row.conv)


@pytest.mark.parametrize("name", CLASSES)
def test_the_compiled_pooling_of_learners_with_max_pooling(name: str):
    """A loop takes `kshot.nn.kernels`, where they are available, and vmap torch's operations."""
    body = knn.Conv4(width=4, size=16, population=name not in HEADED, out=WAYS if name in HEADED else None)
    learner = build(name, body, WAYS, **EXPECTED[name].settings)
    report = check_learner(learner, IMAGES, only=["mapped_equals_loop", "threads_equal_loop", "frugal_equals_loop"])
    assert len(report.ran) == 3


@pytest.mark.parametrize("name", VALUES)
def test_learner_of_functions(name: str):
    row = EXPECTED[name]
    settings = {**row.settings, **WAVE_SETTINGS.get(name, {})}
    assert row.waves is not None
    report = check_learner(lambda: build(name, knn.MLP(1, 16, 16, 1, activation="tanh"), 1, **settings), WAVES)
    counted(report, row.waves)


@pytest.mark.parametrize("name", names("classes", "head"))
def test_inductive_mode_of_learners_with_batch_norm(name: str):
    learner = build(name, conv(True), WAYS, **{**EXPECTED[name].settings, "transductive": False})
    checks = [
        "mapped_equals_loop",
        "finite_difference",
        "padding_is_ignored",
        "unlabelled_rows",
        "unscored_queries",
        "queries_are_independent",
    ]
    report = check_learner(learner, IMAGES, only=checks)
    assert report.skipped.keys() <= ({"finite_difference"} if learner.surrogate else set())


# ------------------------------------------------------------------------------------------- checks that can fail


class Good(Learner):
    """Nearest class mean; it keeps the contract. What follows breaks it in one place each."""

    permutation_equivariant = True
    folds = True

    def __init__(self, body: nn.Module | None = None):
        super().__init__()
        self.body = body or mlp(False)

    def embed(self, x, mask=None):
        return knn.call(self.body, None, x, mask)

    def init(self):
        like = next(self.parameters())
        return {"sums": like.new_zeros(WAYS, 6), "counts": like.new_zeros(WAYS)}

    def labels(self, y, dtype):
        return losses.one_hot(y, WAYS, dtype)

    def adapt(self, state, support):
        features = self.embed(support.x, support.y >= 0)
        labels = self.labels(support.y, features.dtype)
        return {"sums": state["sums"] + labels.T @ features, "counts": state["counts"] + labels.sum(0)}

    def predict(self, state, x):
        means = state["sums"] / state["counts"].clamp_min(1)[:, None]
        return -(self.embed(x)[:, None] - means).square().sum(-1)


class Transposed(Good):
    def predict(self, state, x):
        return super().predict(state, x).T


class NumberInState(Good):
    def init(self):
        return {**super().init(), "steps": 0}

    def adapt(self, state, support):
        return {**super().adapt(state, support), "steps": 1}


class StateInPlace(Good):
    def adapt(self, state, support):
        new = super().adapt(state, support)
        state["counts"].copy_(new["counts"].detach())
        return new


class SupportInPlace(Good):
    def adapt(self, state, support):
        support.x.mul_(2)
        return super().adapt(state, support)


class Remembers(Good):
    def __init__(self):
        super().__init__()
        self.seen: list[int] = []

    def predict(self, state, x):
        self.seen.append(1)
        return super().predict(state, x) * (1 + 0.1 * len(self.seen))


class HalfGradient(Good):
    def embed(self, x, mask=None):
        features = super().embed(x, mask)
        return (features + features.detach()) / 2


class Unused(Good):
    def __init__(self):
        super().__init__()
        self.extra = nn.Parameter(torch.ones(3))


class NotFrozen(Good):
    frozen = ("body.layers.0",)


class ZeroGradient(Good):
    def loss(self, task):
        loss, metrics = super().loss(task)
        return loss * 0, metrics


class PrefersClassTwo(Good):
    def predict(self, state, x):
        return super().predict(state, x) + torch.arange(WAYS, device=x.device)


class PositionCounts(Good):
    def labels(self, y, dtype):
        return super().labels(y, dtype) * torch.arange(1, len(y) + 1, device=y.device)[:, None]


class NegativeIsZero(Good):
    def labels(self, y, dtype):
        return super().labels(y.clamp_min(0), dtype)


class LeakyNorm(Good):
    """A batch norm that takes no mask: rows of padding are in its statistics."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(8, 6), knn.BatchNorm(6, population=True), nn.Tanh()))


class UnlabelledIsZero(Good):
    def labels(self, y, dtype):
        return super().labels(torch.where(y == -1, 0, y), dtype)


class ClaimsUnlabelled(Good):
    uses_unlabelled = True


class ScoresAll(Good):
    def criterion(self, prediction, y):
        return F.cross_entropy(prediction, y.clamp_min(0))


class FoldsMeans(Good):
    def adapt(self, state, support):
        new = super().adapt(super().init(), support)
        return {"sums": new["sums"] / new["counts"].clamp_min(1)[:, None], "counts": new["counts"].clamp_max(1)}


class QueriesTalk(Good):
    def predict(self, state, x):
        return super().predict(state, x - x.mean(0))


class PathStandsStill(Good):
    def adapt_path(self, state, support, steps=None):
        return [state, state]


class PathWithoutSteps(Good):
    def adapt_path(self, state, support):
        return [state, self.adapt(state, support)]


class ClaimsSteps(Good):
    stepwise = True


class ManySteps(Good):
    inner_steps = 3
    stepwise = True

    def adapt_path(self, state, support, steps=None):
        after, steps = self.adapt(state, support), 3 if steps is None else steps
        return [state, *(self.between(state, after, (k + 1) / steps, k) for k in range(steps))]

    def between(self, state, after, share, k):  # the state after k + 1 steps
        return after


class HeedsSteps(ManySteps):
    stepwise = False


class MiscountsSteps(ManySteps):
    inner_steps = 2


class LooksAhead(ManySteps):
    """Its second step is another one where a third is to come."""

    def between(self, state, after, share, k):
        return {**after, "sums": share * after["sums"]}


class Anneals(Good):
    weight = 1.0

    def set_progress(self, fraction):
        self.weight = fraction

    def predict(self, state, x):
        return super().predict(state, x) * self.weight


class AnnealsFromTheStart(Anneals):
    anneals = True
    weight = 0.0


class ClaimsToAnneal(Good):
    anneals = True


class PlainTensor(Good):
    def __init__(self):
        super().__init__()
        self.offset = torch.zeros(())

    def predict(self, state, x):
        return super().predict(state, x) * (1 + self.offset.to(x))


class SinglePrecision(Good):
    def predict(self, state, x):
        return super().predict(state, x).float()


class OwnDice(Good):
    def embed(self, x, mask=None):
        noise = int.from_bytes(os.urandom(2)) / 65536 if self.training else 0.0
        return super().embed(x, mask) * (1 + noise)


class Upside(Good):
    def predict(self, state, x):
        return -super().predict(state, x)


class Untrained(Upside):
    frozen = ("",)

    def embed(self, x, mask=None):
        return super().embed(x, mask).detach()


class Mentions(Good):
    """Its function of `recomputed` mentions a parameter that is no argument of it."""

    def predict(self, state, x):
        means = state["sums"] / state["counts"].clamp_min(1)[:, None]

        def distances(means: torch.Tensor) -> torch.Tensor:
            return -(self.embed(x)[:, None] - means).square().sum(-1)

        return rematerialise.recomputed(distances, means)


class Raises(Good):
    def predict(self, state, x):
        raise KeyError("no such thing")


def running() -> Good:
    return Good(nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)))


# A `.item()` reaches vmap: an error of torch's, told as one of the contract's.
class Item(Good):
    def predict(self, state, x):
        return super().predict(state, x) * (1 if x.sum().item() < 1e9 else 2)


BROKEN = [
    ("shapes", Transposed, r"shape \[3, 12\] for 12 queries.*one row per query"),
    ("shapes", Raises, "raised KeyError: 'no such thing'"),
    ("state_is_tensors", NumberInState, "not tensors: .*steps.*int.*NamedTuple or dict"),
    ("pure", StateInPlace, "adapt changed the state that it was given: .*counts.*in-place"),
    ("pure", SupportInPlace, r"adapt in eval\(\) mode changed the task: \.support\.x"),
    ("pure", running, r"adapt in train\(\) mode changed the module: .*running_mean.*kshot.nn.convert"),
    ("repeatable", Remembers, "twice on the same task .* two answers"),
    ("mapped_equals_loop", Remembers, "another meta-gradient where it is mapped over tasks than in a loop"),
    ("threads_equal_loop", Remembers, "shared among threads differs from a loop"),
    ("frugal_equals_loop", Mentions, "with the inner loop recomputed differs.*must be an argument of it"),
    ("mapped_equals_loop", Item, "cannot be mapped over tasks.*item"),
    ("finite_difference", HalfGradient, "the meta-gradient is .* and a finite difference .*detach"),
    ("gradient_reaches_parameters", Unused, "no meta-gradient reaches extra.*frozen"),
    ("gradient_reaches_parameters", NotFrozen, "layers.0.weight, .* are declared frozen .* and get a meta-gradient"),
    ("gradient_reaches_parameters", ZeroGradient, "zero everywhere"),
    ("class_permutation", PrefersClassTwo, "predictions' columns are not renamed"),
    ("support_order", PositionCounts, "in another order changed the predictions"),
    ("padding_is_ignored", NegativeIsZero, r"y = -2 \(padding\) changed the predictions"),
    ("padding_is_ignored", LeakyNorm, r"y = -2 .* in train\(\) mode.*mask"),
    ("unlabelled_rows", UnlabelledIsZero, r"y = -1 \(unlabelled\) changed the predictions"),
    ("unlabelled_rows", ClaimsUnlabelled, "changed nothing .* uses_unlabelled is claimed"),
    ("unscored_queries", ScoresAll, "criterion counts query rows with y < 0"),
    ("folding", FoldsMeans, "two halves in turn differs .*sums and counts"),
    ("queries_are_independent", QueriesTalk, "with other queries beside it gets another prediction"),
    ("path_ends_at_adapt", PathStandsStill, "last state of adapt_path predicts otherwise"),
    ("path_ends_at_adapt", PathWithoutSteps, r"adapt_path\(state, support\) does not take `steps`.*add the argument"),
    (
        "path_ends_at_adapt",
        ClaimsSteps,
        r"adapt_path\(state, support, steps=2\) gave 2 states. Expected: 3, .*stepwise",
    ),
    ("path_ends_at_adapt", HeedsSteps, r"gave 4 states. Expected: 2, because stepwise is False"),
    ("path_ends_at_adapt", MiscountsSteps, r"gave 4 states. Expected: 3, .* inner_steps 2"),
    ("path_ends_at_adapt", LooksAhead, "the state after 2 steps of 3 predicts otherwise than that after 2 of 2"),
    ("progress", Anneals, "set_progress changed .*the loss.*anneals is not claimed"),
    ("progress", AnnealsFromTheStart, "before set_progress is called, .*the loss.* are others than at its end"),
    ("progress", ClaimsToAnneal, "changed neither the loss nor its gradient"),
    (
        "checkpoint_round_trip",
        PlainTensor,
        "predicts otherwise from the saved state.*plain tensor attributes here: offset",
    ),
    ("dtype_is_respected", SinglePrecision, "parameters and inputs of torch.float64 .*the prediction.*float32"),
    ("equal_seeds", OwnDice, "two runs from equal seeds differ"),
    ("better_than_chance", Upside, "after 10 meta-updates its accuracy on 96 tasks is .* from chance"),
    ("better_than_chance", Untrained, "with nothing to meta-train its accuracy"),
]


@pytest.mark.parametrize(("check", "make", "words"), BROKEN, ids=[f"{c}-{m.__name__}" for c, m, _ in BROKEN])
def test_a_broken_learner_is_caught(check: str, make: Any, words: str):
    with pytest.raises(ContractError, match="(?s)" + words) as caught:
        check_learner(make(), VECTORS, only=[check], steps=10)
    assert caught.value.check == check
    assert f"fails the check '{check}'" in str(caught.value)
    with pytest.raises(ContractError):  # and the whole contract does not let it pass
        check_learner(make(), VECTORS, steps=10)


def test_every_check_can_fail():
    caught = {check for check, _, _ in BROKEN}
    assert caught == LEARNER_CHECKS.keys() - {"device_is_respected"}  # which needs a CUDA device to fail


def test_a_good_learner_passes_and_is_left_alone():
    learner = Good().train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    report = check_learner(learner, VECTORS)
    counted(report, 22)
    assert str(report).startswith("Good keeps the contract: ")
    assert report.skipped.keys() <= {"device_is_respected"}
    assert learner.training
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in learner.parameters())


def test_claims_that_are_not_made_are_reported():
    class Modest(Good):
        permutation_equivariant = order_invariant = folds = False
        transductive = True

    skipped = check_learner(Modest(), VECTORS).skipped
    names = {"class_permutation", "support_order", "folding", "queries_are_independent"}
    assert skipped.keys() - {"device_is_respected"} == names
    assert {skipped[name] for name in names - {"queries_are_independent"}} == {"not claimed"}


def test_a_factory_must_build_equal_weights_from_equal_seeds():
    def factory():
        learner = Good()
        with torch.no_grad():
            next(learner.parameters()).add_(int.from_bytes(os.urandom(2)) / 65536)
        return learner

    with pytest.raises(ContractError, match=r"equal seeds differ in .*layers.0.weight"):
        check_learner(factory, VECTORS, only=["equal_seeds"])


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"got a Linear: pass a kshot.core.Learner"):
        check_learner(lambda: nn.Linear(1, 1), VECTORS)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match=r"pass a distribution with sample\(generator, num_tasks\)"):
        check_learner(Good(), [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown checks \['purity'\]: choose from shapes"):
        check_learner(Good(), VECTORS, only=["purity"])
    with pytest.raises(ValueError, match="ways=1"):
        Clusters(ways=1)
    with pytest.raises(TypeError, match="got a list"):
        check_tasks([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_tasks=0"):
        check_tasks(VECTORS, 0)


# ------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("tasks", [VECTORS, IMAGES])
def test_clusters_keep_the_contract_of_tasks(tasks):
    assert check_tasks(tasks).ran == tuple(TASK_CHECKS)


def test_waves_keep_the_contract_of_tasks():
    report = check_tasks(WAVES)
    assert len(report.ran) == 6
    assert report.skipped.keys() == {"labels", "support_and_query_differ"}


class _Changed(Clusters):
    """Clusters with one thing wrong."""

    def __init__(self, change):
        super().__init__(ways=3, shots=2, queries=2)
        self.change = change

    def sample(self, generator, num_tasks):
        return self.change(super().sample(generator, num_tasks), generator)


def _on(part: str, leaf: str, function):
    """A change of one leaf of a task."""

    def change(task: Task, generator) -> Task:
        batch: Batch = getattr(task, part)
        new = function(getattr(batch, leaf), task)
        return task._replace(**{part: batch._replace(**{leaf: new})})

    return change


def _ragged(task: Task, generator) -> Task:
    keep = 1 + int(torch.randint(5, (), generator=generator))
    return task._replace(query=Batch(task.query.x[:, :keep], task.query.y[:, :keep]))


def _one_task(task: Task, generator) -> Task:
    return Task(*(Batch(*(leaf[:1].expand_as(leaf) for leaf in part)) for part in task))


BROKEN_TASKS = [
    ("leading_axis", lambda task, _: tuple(task), "sample gave a tuple"),
    ("leading_axis", lambda task, _: Task(*(Batch(p.x[0], p.y[0]) for p in task)), r"support x \[4, N, ...\]"),
    ("leading_axis", _ragged, "the same shapes in every call"),
    ("dtypes", _on("query", "y", lambda y, _: y.int()), "query.y is torch.int32"),
    ("dtypes", _on("support", "x", lambda x, _: (x * 9).long()), "support.x is torch.int64"),
    ("finite", _on("support", "x", lambda x, _: x / 0), r"\.support\.x have infinite values"),
    ("equal_generators", _on("support", "x", lambda x, _: x + torch.rand(())), "equal generators differ in .support.x"),
    ("equal_generators", lambda task, _: Clusters(2).sample(torch.Generator(), 4), "gave the same tasks"),
    ("equal_generators", _one_task, "the same task"),
    ("global_randomness", _on("support", "x", lambda x, _: x + 0 * torch.rand(())), "global generator of torch"),
    ("labels", _on("support", "y", lambda y, _: y + 1), r"support classes \[1, 2, 3\]"),
    ("labels", _on("query", "y", lambda y, _: y + 1), r"asks for the classes \[1, 2, 3\] and taught \[0, 1, 2\]"),
    ("labels", _on("query", "y", lambda y, _: y.clamp_max(1)), r"never asks for the classes \[2\]"),
    ("labels", _on("query", "y", lambda y, _: y - 3), "has y = -3"),
    ("support_and_query_differ", _on("query", "x", lambda x, task: task.support.x), "query row 0 .* is support row 0"),
    ("follows_the_generator", _on("query", "x", lambda x, _: x.to("meta")), "on the cpu these are elsewhere: .*meta"),
]


@pytest.mark.parametrize(
    ("check", "change", "words"), BROKEN_TASKS, ids=[f"{i}-{b[0]}" for i, b in enumerate(BROKEN_TASKS)]
)
def test_broken_tasks_are_caught(check: str, change: Any, words: str):
    with pytest.raises(ContractError, match="(?s)" + words) as caught:
        check_tasks(_Changed(change), only=[check])
    assert caught.value.check == check


def test_every_check_of_tasks_can_fail():
    assert {check for check, _, _ in BROKEN_TASKS} == TASK_CHECKS.keys()
