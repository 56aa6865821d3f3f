"""Evaluation against closed forms: interval, calibration, equal tasks for all, modes; nothing kept, nothing changed."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner, Task
from kshot.data.bank import Bank
from kshot.learners.metric.matching import MatchingNet
from kshot.nn import MLP, BatchNorm, call
from kshot.numerics import losses, seeding, tree
from kshot.scoring.classes import calibration_error
from kshot.scoring.evaluate import (
    Result,
    evaluate,
    evaluate_modes,
    interval95,
    is_transductive,
    paired_difference,
    proportion95,
    table,
)
from kshot.tasks import Episodes, Sinusoid


class Weights(NamedTuple):
    params: dict[str, Tensor]
    support_x: Tensor


class Gradient(Learner):
    """MAML in ten lines: `steps` gradient steps; `transductive` normalises by the queries, else by the support set."""

    stepwise = True

    def __init__(self, body: nn.Module, steps: int = 2, transductive: bool = True, inner_lr: float = 0.1):
        super().__init__()
        self.body = body
        self.inner_steps = steps
        self.inner_lr = inner_lr
        self.transductive = transductive
        self.graphs = 0

    def init(self) -> Weights:
        params = dict(self.body.named_parameters())
        device = next(iter(params.values())).device
        return Weights(params, torch.zeros(0, device=device))

    def adapt_path(self, state: Weights, support: Batch, steps: int | None = None) -> list[Weights]:
        path = [state._replace(support_x=support.x)]
        for _ in range(self.inner_steps if steps is None else steps):
            gradient = torch.func.grad(lambda p: self.criterion(call(self.body, p, support.x), support.y))(
                path[-1].params
            )
            path.append(Weights(tree.axpy(-self.inner_lr, gradient, path[-1].params), support.x))
        return path

    def adapt(self, state: Weights, support: Batch) -> Weights:
        return self.adapt_path(state, support)[-1]

    def predict(self, state: Weights, x: Tensor) -> Tensor:
        if self.transductive:
            prediction = call(self.body, state.params, x)
        else:
            n = len(state.support_x)
            mask = torch.arange(n + len(x), device=x.device) < n
            prediction = call(self.body, state.params, torch.cat([state.support_x, x]), mask)[n:]
        self.graphs += prediction.requires_grad
        return prediction


class Normed(nn.Module):
    def __init__(self, inputs: int, out: int):
        super().__init__()
        self.first = nn.Linear(inputs, 16)
        self.norm = BatchNorm(16)
        self.dropout = nn.Dropout(0.5)  # silent in eval mode
        self.head = nn.Linear(16, out)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.dropout(torch.tanh(self.norm(self.first(x.flatten(1)), mask))))


class Means(Learner):
    """Nearest class mean of the inputs: no parameters, one pass."""

    def init(self) -> Tensor:
        return torch.zeros(5, 64)

    def adapt(self, state: Tensor, support: Batch) -> Tensor:
        onto = losses.one_hot(support.y, 5)
        return onto.T @ support.x.flatten(1) / onto.sum(0)[:, None]

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return -(x.flatten(1)[:, None] - state).square().sum(-1)


class Scripted(Learner):
    """Says what it is told: query x holds the scores."""

    def init(self) -> Tensor:
        return torch.zeros(())

    def adapt(self, state: Tensor, support: Batch) -> Tensor:
        return state + 1

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return x * state


def episodes(**options: Any) -> Episodes:
    g = torch.Generator().manual_seed(0)
    centres = torch.randint(60, 196, (12, 1, 1, 8, 8), generator=g)
    images = (centres + torch.randint(-60, 60, (12, 20, 1, 8, 8), generator=g)).clamp(0, 255).flatten(0, 1)
    bank = Bank(images.byte(), torch.arange(12).repeat_interleave(20), tuple("abcdefghijkl"), "noise", "test")
    return Episodes(bank, ways=5, **{"shots": 1, "queries": 5, **options})


def maml(**options: Any) -> Gradient:
    torch.manual_seed(0)
    return Gradient(Normed(64, 5), **options)


class Fixed:
    """Repeats one task."""

    def __init__(self, task: Task):
        self.task = task

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        return tree.map_(lambda leaf: leaf.expand(num_tasks, *leaf.shape), self.task)


def test_interval_is_student_t():
    values = [0.1, 0.5, 0.9]
    assert interval95(values) == pytest.approx(4.3027 * 0.4 / math.sqrt(3), rel=1e-4)  # std = 0.4
    many = torch.rand(600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    n = len(many)
    std = math.sqrt(float((many - many.mean()).square().sum()) / (n - 1))
    assert interval95(many) == pytest.approx(1.9639 * std / math.sqrt(n), rel=1e-4)
    with pytest.raises(ValueError, match="at least 2"):
        interval95([1.0])


@pytest.mark.parametrize("freedom", [1, 2, 5, 9, 10, 11, 20, 50, 599, 10_000])
def test_quantiles(freedom: int):
    stats = pytest.importorskip("scipy.stats")
    from kshot.scoring.intervals import student975

    assert student975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=2e-4)


def test_interval_covers():
    """In 95 of 100 experiments of 5 normal values, the interval holds the true mean."""
    draws = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside = sum(abs(float(row.mean())) <= interval95(row) for row in draws) / len(draws)
    assert 0.935 < inside < 0.965


def test_calibration_by_hand():
    # Bins of 1/5: (0.2, 0.4] holds 0.3 (wrong) and 0.4 (right); (0.8, 1] holds 0.9 (right), 0.9 (right), 1.0 (wrong).
    confidence = torch.tensor([0.3, 0.4, 0.9, 0.9, 1.0], dtype=torch.float64)
    correct = torch.tensor([False, True, True, True, False])
    expected = 2 / 5 * abs(1 / 2 - 0.35) + 3 / 5 * abs(2 / 3 - 2.8 / 3)
    assert calibration_error(confidence, correct, bins=5) == pytest.approx(expected)
    assert calibration_error(torch.ones(4), torch.ones(4, dtype=torch.bool)) == 0
    assert calibration_error(torch.ones(4), torch.zeros(4, dtype=torch.bool)) == 1


def test_scripted_scores_and_unscored_queries():
    logit = math.log(0.8 / 0.2)  # softmax (0.8, 0.2)
    x = torch.tensor([[logit, 0], [logit, 0], [0, logit], [99.0, 0]])
    task = Task(Batch(torch.zeros(2, 2), torch.tensor([0, 1])), Batch(x, torch.tensor([0, 0, 0, -2])))
    result = evaluate(Scripted(), Fixed(task), 20)
    assert result.mean == pytest.approx(2 / 3)
    assert result.interval95 == pytest.approx(0, abs=1e-9)
    assert result.ece == pytest.approx(0.8 - 2 / 3, abs=1e-6)
    assert result.mode == "inductive"
    assert result.per_step[0][:2] == (0, 1.0)  # all scores 0 before adaptation: argmax says class 0
    assert result.per_step[-1] == (1, result.mean, result.interval95)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_gradient_learner(strategy):
    learner = maml()
    learner.train()
    learner.body.get_submodule("dropout").eval()  # flags are restored one by one
    before = {name: p.clone() for name, p in learner.named_parameters()}
    result = evaluate(learner, episodes(), 20, strategy=strategy, name="mine", settings={"data": "other"})
    assert learner.training
    assert learner.body.training
    assert not learner.body.get_submodule("dropout").training
    assert learner.graphs == 0  # no prediction had a graph
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in learner.named_parameters())
    assert result.name == "mine"
    assert result.settings == {"ways": 5, "shots": 1, "queries": 5, "data": "other", "split": "test"}
    assert result.mode == "transductive"
    assert [step for step, _, _ in result.per_step] == [0, 1, 2]
    assert result.per_step[-1] == (2, result.mean, result.interval95)
    assert result.mean == pytest.approx(sum(result.per_task) / 20)
    assert result.mean > 0.3 > result.per_step[0][1]
    assert len(result.per_task) == 20
    assert 0 <= result.ece <= 1
    assert result.seconds_per_task > 0
    assert set(result.versions) == {"torch", "kshot", "python"}


def test_strategies_and_batches_agree():
    tasks, learner = episodes(), maml()
    one = evaluate(learner, tasks, 37, batch=16, strategy="vmap")
    for options in ({"batch": 5}, {"batch": 100}, {"batch": 16, "strategy": "loop"}):
        other = evaluate(learner, tasks, 37, **options)
        assert other.per_task == pytest.approx(one.per_task, abs=1e-6)
        assert other.ece == pytest.approx(one.ece, abs=1e-5)
        assert other.questions == one.questions
    assert evaluate(learner, tasks, 20).per_task == pytest.approx(one.per_task[:20], abs=1e-6)  # a prefix
    assert evaluate(learner, tasks, 37, seed=1).per_task != pytest.approx(one.per_task, abs=1e-6)


def test_steps():
    learner = maml(steps=2)
    long = evaluate(learner, episodes(), 20, steps=5)
    assert [step for step, _, _ in long.per_step] == [0, 1, 2, 3, 4, 5]
    own = evaluate(learner, episodes(), 20)
    assert torch.tensor(own.per_step).allclose(torch.tensor(long.per_step[:3]))
    last = evaluate(learner, episodes(), 20, per_step=False)
    assert last.per_step == [(2, pytest.approx(own.mean), pytest.approx(own.interval95))]
    assert evaluate(learner, episodes(), 20, per_step=False, steps=5).per_step[0][0] == 5
    assert len(evaluate(Means(), episodes(), 20, steps=5).per_step) == 2  # takes no steps


def test_memory_is_flat():
    """Tasks are drawn a block at a time, and none is alive when the next one is drawn but the batch at hand."""
    import gc
    import weakref

    tasks, alive, most = episodes(), [], 0

    class Watched:
        independent = True  # blocks of 16

        def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
            nonlocal most
            gc.collect()
            alive[:] = [ref for ref in alive if ref() is not None]
            most = max(most, len(alive))
            task = tasks.sample(generator, num_tasks)
            alive.append(weakref.ref(task.query.x))
            return task

    evaluate(Means(), Watched(), 160)
    assert most <= 2


def test_modes():
    learner = maml(transductive=True).train()
    results = evaluate_modes(learner, episodes(), 40, name="maml")
    assert list(results) == ["inductive", "transductive"]
    assert all(r.mode == mode for mode, r in results.items())
    assert results["inductive"].questions == results["transductive"].questions
    assert results["inductive"].per_task != results["transductive"].per_task
    assert learner.transductive is True
    assert learner.training
    learner.transductive = False
    evaluate_modes(learner, episodes(), 2)
    assert learner.transductive is False


def test_modes_where_there_is_one():
    assert list(evaluate_modes(Means(), episodes(), 4)) == ["inductive"]
    plain = Gradient(MLP(1, 8, 1), transductive=False)
    results = evaluate_modes(plain, Sinusoid(), 4)
    assert list(results) == ["inductive"]  # nothing in this body depends on the other queries
    plain.transductive = True
    assert list(evaluate_modes(plain, Sinusoid(), 4)) == ["inductive"]
    stuck = MatchingNet(Normed(64, 8), ways=5, features=8)  # it says that it is transductive, and cannot be switched
    assert list(evaluate_modes(stuck, episodes(), 4)) == ["transductive"]


def test_modes_restore_after_an_error():
    learner = maml()

    def fail(done: int, total: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        evaluate_modes(learner.train(), episodes(), 4, progress=fail)
    assert learner.transductive is True
    assert learner.training


def test_is_transductive_is_measured():
    task = tree.index(episodes().sample(torch.Generator().manual_seed(0), 1), 0)
    assert is_transductive(maml(), task)
    assert not is_transductive(maml(transductive=False), task)
    assert not is_transductive(Means(), task)


def test_regression():
    tasks = Sinusoid(shots=10, queries=10)
    torch.manual_seed(0)
    result = evaluate(Gradient(MLP(1, 20, 1), inner_lr=0.01), tasks, 64, steps=3)
    assert result.metric == "mse"
    assert result.ece is None
    assert result.per_step[3][1] < result.per_step[0][1]
    assert result.settings == {"shots": 10, "queries": 10}


def test_float64_learner_gets_float64_tasks():
    assert evaluate(maml().double(), episodes(), 2).num_tasks == 2


def test_progress_and_guards():
    seen = []
    evaluate(Means(), episodes(), 20, batch=8, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(8, 20), (16, 20), (20, 20)]
    with pytest.raises(ValueError, match="at least 2 tasks"):
        evaluate(Means(), episodes(), 1)
    with pytest.raises(ValueError, match="batch=0"):
        evaluate(Means(), episodes(), 4, batch=0)
    empty = Task(Batch(torch.zeros(2, 2), torch.tensor([0, 1])), Batch(torch.zeros(0, 2), torch.zeros(0).long()))
    with pytest.raises(ValueError, match="no queries"):
        evaluate(Scripted(), Fixed(empty), 4)


def test_json_round_trip(tmp_path):
    result = evaluate(Means(), episodes(), 4, settings={"command": "kshot evaluate"}, baseline=True)
    assert Result.from_json(result.to_json()) == result
    assert result.baseline


def test_json_of_a_diverged_learner():
    x = torch.tensor([[math.nan], [1.0]])
    task = Task(Batch(torch.zeros(2, 1), torch.zeros(2, 1)), Batch(x, torch.zeros(2, 1)))
    result = evaluate(Scripted(), Fixed(task), 4)
    assert math.isnan(result.mean)
    assert json.loads(result.to_json())["columns"]["mse"]["mean"] is None  # NaN is not JSON
    assert math.isnan(Result.from_json(result.to_json()).mean)


def test_paired_difference():
    tasks = episodes()
    a, b = evaluate(Means(), tasks, 40), evaluate(maml(), tasks, 40)
    mean, half = paired_difference(a, b)
    difference = torch.tensor(a.per_task, dtype=torch.float64) - torch.tensor(b.per_task, dtype=torch.float64)
    assert mean == pytest.approx(a.mean - b.mean)
    assert half == pytest.approx(2.0227 * float(difference.std()) / math.sqrt(40), rel=1e-4)
    assert paired_difference(a, a) == (0, 0)
    for other in (
        evaluate(Means(), tasks, 40, seed=1),
        evaluate(Means(), tasks, 41),
        evaluate(Means(), episodes(queries=4), 40),
        evaluate(Gradient(MLP(1, 8, 1)), Sinusoid(), 40),
    ):
        with pytest.raises(ValueError, match="not tested on the same tasks"):
            paired_difference(a, other)


def test_table():
    from rich.console import Console

    tasks = episodes()
    floor = evaluate(Means(), tasks, 4, name="baseline: means", baseline=True)
    results = [floor, *evaluate_modes(maml(), tasks, 4, name="maml").values()]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table(results, title="noise, 5-way 1-shot"))
    text = capture.get()
    for word in (
        "noise, 5-way",
        "accuracy",
        "ECE",
        "ms/task",
        "inductive",
        "transductive",
        f"{100 * floor.mean:.2f} ±",
    ):
        assert word in text
    assert text.index("maml") < text.index("baseline: means")
    assert "accuracy" in str(floor)
    console.print(table([]))


def test_the_interval_of_a_share_is_wilsons():
    from scipy.stats import binomtest

    for right, of in ((0, 3), (1, 1), (7, 20), (25, 25), (99, 100)):
        theirs = binomtest(right, of).proportion_ci(0.95, method="wilson")
        assert proportion95(right, of) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert proportion95(0, 0) == (0.0, 1.0)


class Pair(NamedTuple):
    """What a task shows: no x, no y."""

    numbers: Tensor


class Pairs:
    """The middle of some numbers."""

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        return Task(*(Pair(torch.rand(num_tasks, 4, generator=generator)) for _ in range(2)))


class Middle(Learner):
    def init(self) -> Tensor:
        return torch.zeros(())

    def adapt(self, state: Tensor, support: Any) -> Tensor:
        return support.numbers.mean()

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return state

    def loss(self, task: Any) -> Any:
        distance = (self.adapt(self.init(), task.support) - task.query.numbers.mean()).abs()
        return distance, {"near": (distance < 0.1).float()}


def test_tasks_of_any_payload():
    """Nothing is known of them but the learner's own loss and metrics."""
    result = evaluate(Middle(), Pairs(), 20, batch=8)
    tasks = [Pairs().sample(seeding.generator(0, "evaluate", k), 1) for k in range(20)]
    wanted = [float((a.numbers.mean() - b.numbers.mean()).abs()) for a, b in tasks]
    assert result.per_task == pytest.approx(wanted, rel=1e-5)
    assert (result.metric, result["loss"].better, result.mode) == ("loss", "less", "")
    assert result["near"].mean == pytest.approx(sum(w < 0.1 for w in wanted) / 20)
    assert result.questions == evaluate(Middle(), Pairs(), 20).questions
    with pytest.raises(TypeError, match="does not know rollouts: Pairs has no test of its own"):
        evaluate(Middle(), Pairs(), 20, rollouts=3)


def test_a_task_without_scored_queries_is_no_task_of_the_test():
    class Gaps:
        def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
            y = torch.where(torch.rand(1, 1, generator=generator) < 0.5, -2, torch.zeros(1, 3, dtype=torch.long))
            x = torch.rand(1, 3, 2, generator=generator)
            return Task(Batch(torch.zeros(1, 2, 2), torch.tensor([[0, 1]])), Batch(x, y))

    result = evaluate(Scripted(), Gaps(), 40)
    asked = [k for k in range(40) if (Gaps().sample(seeding.generator(0, "evaluate", k), 1).query.y >= 0).any()]
    assert result.cluster == asked
    assert result.num_tasks == len(result.per_task) == len(asked) < 30
    empty = Task(Batch(torch.zeros(2, 2), torch.tensor([0, 1])), Batch(torch.zeros(1, 2), torch.tensor([-2])))
    with pytest.raises(ValueError, match="no task has a query that is scored"):
        evaluate(Scripted(), Fixed(empty), 4)


def test_calibration_is_of_all_queries_and_its_interval_of_tasks():
    """Two tasks in three are right, all with confidence 0.8; scored are one or two queries."""
    logit = math.log(0.8 / 0.2)

    class Told:
        def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
            right = bool(torch.rand((), generator=generator) < 2 / 3)
            x = torch.tensor([[[logit, 0.0], [logit, 0.0], [99.0, 0.0]]])
            y = torch.tensor([[0 if right else 1, 0 if right else -1, -2]])
            return Task(Batch(torch.zeros(1, 2, 2), torch.tensor([[0, 1]])), Batch(x, y))

    result = evaluate(Scripted(), Told(), 30)
    right = [round(r) for r in result.per_task]
    assert 10 < sum(right) < 30
    weights = [2 if r else 1 for r in right]
    share = sum(w * r for w, r in zip(weights, right, strict=True)) / sum(weights)
    assert result.ece == pytest.approx(abs(share - 0.8), abs=1e-6)
    assert result["ece"].interval95 == pytest.approx(interval95(right, None, weights), rel=1e-6)
