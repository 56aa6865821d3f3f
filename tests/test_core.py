"""The contract's small parts: losses, trees, seeds, the registry."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

import kshot
from kshot import core
from kshot import nn as knn
from kshot.core import PADDING, UNLABELLED, Batch, Experience, Learner, Stream, Task, num_tasks, to
from kshot.learners import REGISTRY, build, names, row
from kshot.numerics import losses, seeding, tree

SCORES = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 3, UNLABELLED, 2, PADDING, 1, 1])


# ------------------------------------------------------------------------------------------------------------ losses


def test_cross_entropy_ignores_negative_targets_as_torch_does():
    scores = SCORES.clone().requires_grad_()
    ours = losses.cross_entropy(scores, Y)
    (gradient,) = torch.autograd.grad(ours, scores)
    theirs = F.cross_entropy(scores, Y.where(Y >= 0, torch.tensor(-100)), ignore_index=-100)
    (wanted,) = torch.autograd.grad(theirs, scores)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, wanted)
    assert not gradient[Y < 0].any()


def test_cross_entropy_of_large_scores_is_finite():
    assert losses.cross_entropy(torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.tensor([1, 1])) == 1e4


def test_accuracy_ignores_negative_targets():
    kept = Y >= 0
    wanted = (SCORES.argmax(-1) == Y)[kept].double().mean()
    torch.testing.assert_close(losses.accuracy(SCORES, Y), wanted)


def test_nothing_to_score_is_zero():
    y = torch.full((7,), PADDING)
    assert losses.cross_entropy(SCORES, y) == 0
    assert losses.accuracy(SCORES, y) == 0


def test_one_hot_and_losses_under_vmap():
    y = torch.stack([Y, Y.flip(0)])
    scores = torch.stack([SCORES, SCORES * 2])
    hot = torch.vmap(lambda row: losses.one_hot(row, 4))(y)
    assert torch.equal(hot[0][Y >= 0], F.one_hot(Y[Y >= 0], 4).float())
    assert not hot[0][Y < 0].any()
    for function in (losses.cross_entropy, losses.accuracy):
        looped = torch.stack([function(s, t) for s, t in zip(scores, y, strict=True)])
        torch.testing.assert_close(torch.vmap(function)(scores, y), looped)


def test_default_goes_by_the_dtype_of_the_targets():
    values, y = torch.randn(5, 2), torch.randn(5, 2)
    assert torch.equal(losses.default(values, y), F.mse_loss(values, y))
    assert losses.metrics(values, y).keys() == {"mse"}
    assert torch.equal(losses.default(SCORES, Y), losses.cross_entropy(SCORES, Y))
    assert losses.metrics(SCORES, Y).keys() == {"accuracy"}


# ------------------------------------------------------------------------------------------------------------- trees


def test_axpy_dot_and_detach():
    a = {"w": torch.tensor([1.0, 2.0], requires_grad=True), "b": torch.tensor(3.0)}
    moved = tree.axpy(-0.5, {"w": torch.tensor([2.0, 2.0])}, a)
    assert moved["w"].tolist() == [0, 1]
    assert moved["b"] is a["b"]
    assert tree.dot(a, a).item() == 14
    assert tree.dot(a, {**a, "more": torch.ones(9)}).item() == 14
    cut = tree.detach(a)
    assert not cut["w"].requires_grad
    assert a["w"].requires_grad


def test_index_and_stack_are_inverse_and_keep_the_types():
    task = Task(Batch(torch.randn(3, 4, 2), torch.randint(2, (3, 4))), Batch(torch.randn(3, 5, 2), torch.zeros(3, 5)))
    one = tree.index(task, 1)
    assert isinstance(one, Task)
    assert isinstance(one.support, Batch)
    assert torch.equal(one.query.x, task.query.x[1])
    again = tree.stack([tree.index(task, i) for i in range(3)])
    assert all(torch.equal(a, b) for p, q in zip(task, again, strict=True) for a, b in zip(p, q, strict=True))
    assert torch.equal(tree.map_(torch.add, {"a": torch.ones(2)}, {"a": torch.ones(2)})["a"], torch.full((2,), 2.0))


def test_to_casts_floating_leaves_alone():
    task = Task(Batch(torch.zeros(2, 3), Y[:2]), Batch(torch.zeros(2, 3), torch.zeros(2, 1)))
    moved = core.to(task, "cpu", torch.float64)
    assert [leaf.dtype for part in moved for leaf in part] == [torch.float64, torch.int64, torch.float64, torch.float64]
    assert core.to(task).support.x.dtype == torch.float32
    assert core.to(task, "meta").query.x.device.type == "meta"


# ------------------------------------------------------------------------------------------------------------- seeds


def test_generators_depend_on_every_part_of_their_path():
    paths = [(0,), (1,), (0, "train"), (0, "val"), (0, "train", 1), (0, "train", 2), (0, "train", 1, 1), (10,), (0, 0)]
    seeds = [seeding.generator(*path).initial_seed() for path in paths]
    assert len(set(seeds)) == len(paths)
    assert seeds == [seeding.generator(*path).initial_seed() for path in paths]


def test_streams_are_independent():
    """Draws of two purposes, and of two steps, are uncorrelated (|r| < 4 / sqrt(n))."""
    draws = [torch.randn(20_000, generator=seeding.generator(0, *p)) for p in (("train", 0), ("train", 1), ("val", 0))]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(3)
    assert correlation.abs().max() < 4 / 20_000**0.5


def test_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    torch.rand(3, generator=seeding.generator(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_puts_the_global_generator_back():
    before = torch.get_rng_state()
    values = []
    for path in ((0, "weights"), (0, "weights"), (1, "weights")):
        with seeding.seeded(*path):
            values.append(torch.rand(4))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError), seeding.seeded(0):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------------------------------------- learners


class Mean(Learner):
    """Predicts the mean of what it has seen."""

    def init(self):
        return torch.zeros(1, 2)

    def adapt(self, state, support):
        return support.y.mean(0, keepdim=True)

    def predict(self, state, x):
        return state.expand(len(x), 2)


def test_defaults_of_the_contract():
    task = Task(Batch(torch.zeros(3, 1), torch.ones(3, 2)), Batch(torch.zeros(4, 1), torch.zeros(4, 2)))
    learner = Mean()
    loss, metrics = learner.loss(task)
    assert loss == 1
    assert metrics.keys() == {"mse"}
    path = learner.adapt_path(learner.init(), task.support)
    assert [state.mean().item() for state in path] == [0, 1]
    with pytest.raises(TypeError, match="abstract"):
        Learner()  # type: ignore[abstract]
    assert kshot.Learner is Learner


def test_an_unknown_learner_is_told_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"unknown learner 'protonets': did you mean protonet"):
        build("protonets", None, 5)
    with pytest.raises(ValueError, match=r"unknown learner '\?\?': choose from \(maml, fomaml, "):
        build("??", None, 5)


def test_an_unknown_setting_is_told():
    with pytest.raises(ValueError, match=r"learner 'maml' does not take these settings .*inner_rate"):
        build("maml", knn.MLP(8, 3), 3, inner_rate=0.1)


def test_a_setting_overrides_the_preset():
    assert build("fomaml", knn.MLP(8, 3), 3).first_order is True
    assert build("fomaml", knn.MLP(8, 3), 3, first_order=False).first_order is False


@pytest.mark.parametrize("name", [*names("classes"), *names("classes", baselines=True)])
def test_every_row_of_the_registry_can_be_built(name):
    own = row(name, "classes")
    learner = build(name, knn.MLP(8, 6, 3 if own.network == "head" else 5), 3)
    assert isinstance(learner, Learner)
    assert type(learner).__name__ == own.path.partition(":")[2]
    assert (type(learner).__doc__ or "").strip()
    assert REGISTRY[name].paper


# ------------------------------------------------------------------------------------------------------------- streams


def toy_stream(announces="boundary"):
    data = Batch(torch.arange(8.0)[:, None], torch.tensor([0, 2, 0, 2, 1, 3, 1, 3]))
    rows = torch.arange(8)
    return Stream(data, (Experience(rows[:2], rows[2:4]), Experience(rows[4:6], rows[6:])), announces)


def test_what_a_stream_announces_is_what_may_answer():
    first, second = [True, False, True, False], [False, True, False, True]
    own = toy_stream("task")
    assert own.ways == 4
    assert [own.open(i).tolist() for i in (0, 1)] == [first, second]
    assert [own.open(1, asked).tolist() for asked in (0, 1)] == [first, second]
    own = toy_stream("boundary")
    assert [own.open(i).tolist() for i in (0, 1)] == [first, [True] * 4]
    assert [own.open(0, asked).tolist() for asked in (0, 1)] == [first, first], (
        "a class that is still to come is closed"
    )
    assert toy_stream("nothing").open(0).tolist() == [True] * 4
    assert toy_stream().test(1).x[:, 0].tolist() == [6, 7]
    assert toy_stream().test(1).y.tolist() == [1, 3]


def test_a_stream_refuses_what_is_no_stream():
    data, rows = Batch(torch.zeros(4, 2), torch.tensor([0, 1, 0, -1])), torch.arange(4)
    good = Experience(rows[:2], rows[2:3])
    for parts, words in (
        ((), "0 experiences"),
        ((Experience(rows[:2], rows[1:3]),), "row 1 is in the test of experience 0 and is trained on"),
        ((good, Experience(rows[2:3], rows[:1])), "row 2 is in the test of experience 0 and is trained on"),
        ((Experience(rows[:0], rows[2:3]),), "train of experience 0 .*one at least"),
        ((Experience(rows[:1], rows[:1] + 4),), r"test of experience 0 is .*row numbers 0..3"),
        ((good, Experience(rows[3:], rows[2:3])), "experience 1 has rows without a class id"),
    ):
        with pytest.raises(ValueError, match=words):
            Stream(data, parts)
    with pytest.raises(ValueError, match="announces='tasks'"):
        Stream(data, (good,), "tasks")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="class ids"):
        Stream(Batch(torch.zeros(4, 2), torch.zeros(4, 1)), (good,))


# ------------------------------------------------------------------------------------------------- payloads and powers


class Pairs(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


def test_tasks_of_any_payload_are_counted_and_moved():
    task = Task(Pairs(torch.zeros(3, 2), torch.zeros(3, 4).long()), Pairs(torch.zeros(3, 1), torch.zeros(3, 1).long()))
    assert num_tasks(task) == num_tasks(task.support) == 3
    moved = to(task, dtype=torch.float64)
    assert (moved.support.left.dtype, moved.query.right.dtype) == (torch.float64, torch.int64)
    assert isinstance(moved, Task)
    assert isinstance(moved.support, Pairs)


def test_powers_of_task_distributions_are_what_they_have():
    from kshot.learners.policy.learner import Rollouts
    from kshot.tasks import GaussianProcess, Sinusoid, base
    from kshot.testing import Clusters

    process, waves, clusters = GaussianProcess("rbf"), Sinusoid(), Clusters()
    assert isinstance(process, base.WithOracle)
    assert isinstance(process, base.OfFunctions)
    assert not isinstance(clusters, base.WithOracle | base.OfFunctions | base.FromBank | base.ActsItself)
    assert issubclass(Rollouts, base.TaskDistribution)
    assert (base.of_classes(clusters), base.of_classes(waves), base.of_classes(object())) == (True, False, None)
    assert base.independent(clusters)
    assert not base.independent(object())


def test_rollouts_are_found_where_they_were():
    from kshot import core
    from kshot.learners.policy.rollouts import Trajectory

    assert core.Trajectory is Trajectory
    with pytest.raises(AttributeError, match="no attribute 'Trajectories'"):
        _ = core.Trajectories
