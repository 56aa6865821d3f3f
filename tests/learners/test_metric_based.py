"""The metric-based and closed-form learners against independent references, theorems and finite differences."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kshot import engine
from kshot.core import PADDING, UNLABELLED, Batch, Learner, Task
from kshot.learners import build
from kshot.learners.gradient.finetune import FineTune, init_seeded
from kshot.learners.metric.matching import MatchingNet
from kshot.learners.metric.metaoptnet import MetaOptNet, solve_dual
from kshot.learners.metric.pixels import Pixels
from kshot.learners.metric.plda import PLDA, left_out
from kshot.learners.metric.protonet import ProtoNet
from kshot.learners.metric.r2d2 import R2D2, ridge
from kshot.learners.metric.simpleshot import SimpleShot
from kshot.nn import MLP, Conv4
from kshot.numerics import losses, tree

WAYS, SHOTS, QUERIES = 4, 3, 5
LEARNED = ["protonet", "softkmeans", "matching", "r2d2", "metaoptnet", "simpleshot", "plda"]
FOLDING = ["protonet", "matching", "simpleshot", "pixels"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def mlp(out: int = 8) -> MLP:
    return MLP(6, 12, out, activation="tanh").double()


def conv(population: bool = True) -> Conv4:
    return Conv4(1, 4, "stride", 16, features="mean", population=population, activation="softplus").double()


def make(name: str, body: nn.Module | None = None, ways: int = WAYS, **settings) -> Any:
    return build(name, mlp() if body is None else body, ways, **settings).double()


def with_free_rows(count: int = 6) -> Batch:
    """A support set of which the last `count` rows are unlabelled."""
    x, y = batch()
    return Batch(torch.cat([x, torch.randn(count, 6, dtype=torch.float64)]), torch.cat([y, y.new_full((count,), -1)]))


def batch(shots: int = SHOTS, shape: tuple[int, ...] = (6,), ways: int = WAYS) -> Batch:
    y = torch.arange(ways).repeat(shots)
    return Batch(torch.randn(len(y), *shape, dtype=torch.float64), y)


def tasks(count: int = 3, shape: tuple[int, ...] = (6,)) -> Task:
    return tree.stack([Task(batch(SHOTS, shape), batch(QUERIES, shape)) for _ in range(count)])


def scores(learner: Learner, support: Batch, x: Tensor) -> Tensor:
    return learner.predict(learner.adapt(learner.init(), support), x)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- what all of them do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDING)
def test_folds(name):
    learner, whole, query = make(name), batch(), batch()
    assert learner.folds
    state = learner.adapt(learner.init(), Batch(whole.x[:5], whole.y[:5]))
    state = learner.adapt(state, Batch(whole.x[5:], whole.y[5:]))
    close(learner.predict(state, query.x), scores(learner, whole, query.x))


@pytest.mark.parametrize("name", [*LEARNED, "pixels"])
def test_permutations(name):
    learner, support, query = make(name), batch(), batch()
    expected = scores(learner, support, query.x)
    renamed = torch.tensor([2, 0, 3, 1])  # class c becomes renamed[c]
    assert learner.permutation_equivariant
    close(scores(learner, Batch(support.x, renamed[support.y]), query.x)[:, renamed], expected, 1e-8)
    order = torch.randperm(len(support.y))
    close(scores(learner, Batch(support.x[order], support.y[order]), query.x), expected, 1e-8)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("body", [mlp, conv, lambda: conv(population=False)], ids=["mlp", "population", "batch"])
@pytest.mark.parametrize("name", [*(n for n in LEARNED if n != "softkmeans"), "pixels", "finetune"])
def test_rows_without_a_label_change_nothing(name, body, training):
    shape = (6,) if body is mlp else (1, 16, 16)
    settings = {"steps": 3, "fresh_head": True} if name == "finetune" else {}
    network = body()
    if name == "finetune" and body is not mlp:
        network.head = nn.Linear(4, WAYS).double()
    learner = make(name, network, **settings).train(training)
    support, query = batch(shape=shape), batch(QUERIES, shape)
    extra = 10 * torch.randn(5, *shape, dtype=torch.float64)
    y = torch.tensor([UNLABELLED, PADDING, PADDING, UNLABELLED, PADDING])
    more = Batch(torch.cat([extra[:2], support.x, extra[2:]]), torch.cat([y[:2], support.y, y[2:]]))
    close(scores(learner, more, query.x), scores(learner, support, query.x))
    padded = Batch(torch.cat([query.x, extra]), torch.cat([query.y, y]))
    if not (learner.transductive and not training):  # a body with batch statistics sees all queries it is given
        close(learner.loss(Task(more, padded))[0], learner.loss(Task(support, query))[0])


@pytest.mark.parametrize("name", [*LEARNED, "pixels"])
def test_absent_classes(name):
    learner, support, query = make(name, ways=WAYS + 3), batch(), batch()
    expected = scores(make(name, learner.body if name != "pixels" else None), support, query.x)
    found = scores(learner, support, query.x)
    assert found.shape == (len(query.y), WAYS + 3)
    assert found.isfinite().all()
    close(found[:, :WAYS], expected, 1e-8)
    assert (found.argmax(-1) < WAYS).all()
    gradient, outcome = engine.meta_gradient(learner, tasks())
    assert outcome.loss.isfinite().all()
    assert all(g.isfinite().all() for g in gradient.values())
    empty = learner.predict(learner.init(), query.x)
    assert empty.shape == found.shape
    assert empty.isfinite().all()


@pytest.mark.parametrize("name", LEARNED)
def test_ways_may_change_after_training(name):
    learner, support, query = make(name, ways=60), batch(), batch()
    learner.ways = WAYS
    close(scores(learner, support, query.x), scores(make(name, learner.body), support, query.x))


@pytest.mark.parametrize("body", [mlp, conv], ids=["mlp", "conv"])
@pytest.mark.parametrize("name", LEARNED)
def test_meta_gradient(name, body):
    settings = {"learn_scale": True} if name in ("protonet", "matching") else {}
    learner = make(name, body(), **settings)
    data = tasks(2, (6,) if body is mlp else (1, 16, 16))
    looped, a = engine.meta_gradient(learner, data, "loop")
    mapped, b = engine.meta_gradient(learner, data, "vmap")
    close(a.loss, b.loss, 1e-8)
    for key in looped:
        close(looped[key], mapped[key], 1e-8)
        assert looped[key].abs().sum() > 0
    # Along a random direction: the finite difference.
    direction = {key: torch.randn_like(p) for key, p in learner.named_parameters()}
    start = {key: p.detach().clone() for key, p in learner.named_parameters()}
    step = 1e-5

    @torch.no_grad()
    def at(distance: float) -> Tensor:
        for key, p in learner.named_parameters():
            p.copy_(start[key] + distance * direction[key])
        return engine.meta_loss(learner, data, "loop").loss.mean()

    difference = (at(step) - at(-step)) / (2 * step)
    torch.testing.assert_close(tree.dot(looped, direction), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", LEARNED)
def test_joint_batch_in_training_and_inductive_in_eval(name):
    learner = make(name, conv())
    task = tree.index(tasks(1, (1, 16, 16)), 0)
    default = Learner.loss(learner, task)[0]
    assert (learner.loss(task)[0] - default).abs() > 1e-6  # joint statistics differ from those of each part
    engine.set_population_statistics(learner, tasks(2, (1, 16, 16)))
    learner.eval()
    assert not learner.transductive
    close(learner.loss(task)[0], Learner.loss(learner, task)[0])
    state = learner.adapt(learner.init(), task.support)
    alone = torch.cat([learner.predict(state, x[None]) for x in task.query.x])
    close(learner.predict(state, task.query.x), alone)
    assert make(name, conv(population=False)).transductive


@pytest.mark.parametrize("name", LEARNED)
def test_float32_state_and_learning(name):
    learner = build(name, MLP(6, 32, 16), WAYS)
    assert all(leaf.dtype == torch.float32 for leaf in tree.map_(lambda leaf: leaf, learner.init()))
    mean = 1.5 * torch.randn(40, 3)  # classes differ in three of six dimensions, the others are noise

    def sample() -> Task:
        chosen = torch.stack([torch.randperm(40)[:WAYS] for _ in range(8)])  # [T, W]
        y = torch.arange(WAYS).repeat(6)
        x = torch.cat([mean[chosen][:, y] + 0.3 * torch.randn(8, len(y), 3), 3 * torch.randn(8, len(y), 3)], -1)
        y = y.expand(8, -1)
        return Task(Batch(x[:, :WAYS], y[:, :WAYS]), Batch(x[:, WAYS:], y[:, WAYS:]))

    test = tree.map_(lambda *leaves: torch.cat(leaves), *[sample() for _ in range(10)])
    before = engine.meta_loss(learner, test).metrics["accuracy"].mean()
    optimizer = torch.optim.Adam(learner.parameters(), 0.01)
    for _ in range(60):
        gradient, _ = engine.meta_gradient(learner, sample())
        for key, p in learner.named_parameters():
            p.grad = gradient[key]
        optimizer.step()
    after = engine.meta_loss(learner, test).metrics["accuracy"].mean()
    assert after > max(before + 0.1, 0.6), before


@pytest.mark.parametrize("name", LEARNED)
def test_errors(name):
    with pytest.raises(ValueError, match="needs a body"):
        build(name, None, WAYS)
    with pytest.raises(ValueError, match="features=D"):
        build(name, nn.Flatten(), WAYS)
    with pytest.raises(ValueError, match="running statistics"):
        build(name, nn.Sequential(nn.BatchNorm1d(3)), WAYS, features=3)
    assert scores(make(name, nn.Flatten(), features=6), batch(), batch().x.clone()).isfinite().all()


class Counts(MLP):
    """A network that counts its calls, or keeps a running average, in a buffer."""

    def __init__(self, average: bool):
        super().__init__(6, 8)
        self.average = average
        self.register_buffer("count", torch.zeros(8))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        features = super().forward(x)
        self.count += features.mean(0) if self.average else 1
        return features


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("name", LEARNED)
def test_a_body_that_keeps_state_is_refused(name, average):
    task = tree.index(tasks(), 0)
    for training in (True, False):
        learner = make(name, Counts(average)).train(training)
        for run in (
            lambda learner=learner: learner.adapt(learner.init(), task.support),
            lambda learner=learner: learner.loss(task),
            lambda learner=learner: engine.meta_gradient(learner, tasks(), "vmap"),
        ):
            with pytest.raises(ValueError, match=r"Counts change.*count.*Keep no state.*kshot\.nn\.convert"):
                run()


# --- against independent references ----------------------------------------------------------------------------------


def test_protonet_is_the_nearest_neighbour_in_one_shot():
    learner, support, query = make("protonet"), batch(1), batch()
    distance = torch.cdist(learner.body(query.x), learner.body(support.x))
    close(scores(learner, support, query.x), -distance.square())
    plain = ProtoNet(nn.Flatten(), ways=WAYS, features=6)
    close(scores(Pixels(ways=WAYS, distance="euclidean"), support, query.x), scores(plain.double(), support, query.x))


def test_protonet_is_the_nearest_centroid():
    centroid = pytest.importorskip("sklearn.neighbors").NearestCentroid()
    learner, support, query = make("protonet"), batch(), batch(50)
    with torch.no_grad():
        centroid.fit(learner.body(support.x).numpy(), support.y.numpy())
        expected = torch.from_numpy(centroid.predict(learner.body(query.x).numpy()))
        assert torch.equal(scores(learner, support, query.x).argmax(1), expected)


def test_protonet_cosine():
    learner, support, query = make("protonet", distance="cosine"), batch(), batch()
    prototypes = torch.stack([learner.body(support.x)[support.y == c].mean(0) for c in range(WAYS)])
    cosine = torch.cosine_similarity(learner.body(query.x)[:, None], prototypes[None], -1)
    close(scores(learner, support, query.x), 10 * cosine, 1e-6)
    with pytest.raises(ValueError, match="unknown distance"):
        make("protonet", distance="manhattan")


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_pixels_is_the_nearest_neighbour(distance):
    neighbors = pytest.importorskip("sklearn.neighbors").KNeighborsClassifier(1, metric=distance)
    support, query = batch(shape=(2, 3)), batch(50, (2, 3))
    neighbors.fit(support.x.flatten(1).numpy(), support.y.numpy())
    found = scores(Pixels(ways=WAYS, distance=distance), support, query.x).argmax(1)
    assert (neighbors.predict(query.x.flatten(1).numpy()) == found.numpy()).all()
    if distance == "cosine":  # the default; how strong the ink of a picture is does not count
        stronger = support._replace(x=support.x * torch.linspace(0.1, 9, len(support.y))[:, None, None])
        assert torch.equal(scores(Pixels(ways=WAYS), stronger, query.x).argmax(1), found)
    with pytest.raises(ValueError, match="unknown distance 'manhattan'"):
        Pixels(ways=WAYS, distance="manhattan")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_matching_is_attention(scale):
    learner, support, query = make("matching", scale=scale), batch(), batch()
    assert isinstance(learner, MatchingNet)
    cosine = torch.cosine_similarity(learner.body(query.x)[:, None], learner.body(support.x)[None], -1)
    probability = torch.softmax(scale * cosine, -1) @ losses.one_hot(support.y, WAYS, torch.float64)
    found = scores(learner, support, query.x)
    close(found.exp(), probability, 1e-6)  # 1e-6: log(scale) was rounded to float32
    likelihood = probability[torch.arange(len(query.y)), query.y].log()
    close(learner.criterion(found, query.y), -likelihood.mean(), 1e-6)


def test_simpleshot_is_the_nearest_centroid_of_cl2n():
    learner, support, query = make("simpleshot"), batch(), batch()
    assert isinstance(learner, SimpleShot)
    mean = torch.randn(8, dtype=torch.float64)
    learner.set_mean(mean)
    a, b = (torch.nn.functional.normalize(learner.body(x) - mean) for x in (support.x, query.x))
    prototypes = torch.stack([a[support.y == c].mean(0) for c in range(WAYS)])
    close(scores(learner, support, query.x), -10 * torch.cdist(b, prototypes).square(), 1e-8)
    with pytest.raises(ValueError, match="shape"):
        learner.set_mean(torch.zeros(3))


@pytest.mark.parametrize("count", [5, 40])  # fewer and more examples than features
def test_ridge(count):
    x, y = torch.randn(count, 8, dtype=torch.float64), torch.randn(count, 3, dtype=torch.float64)
    penalty, eye = torch.tensor(0.7, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    found = ridge(x, y, penalty)
    close(found, torch.linalg.solve(x.T @ x + penalty * eye, x.T @ y))
    # Least squares with one more row per feature.
    rows = torch.cat([x, penalty.sqrt() * eye])
    close(found, torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(8, 3, dtype=torch.float64)])).solution)
    linear = pytest.importorskip("sklearn.linear_model").Ridge(alpha=0.7, fit_intercept=False, solver="cholesky")
    close(found, torch.from_numpy(linear.fit(x.numpy(), y.numpy()).coef_.T))


def test_r2d2_has_a_bias_and_a_scale():
    learner, support, query = make("r2d2", penalty=2.0, scale=3.0), batch(), batch()
    assert isinstance(learner, R2D2)
    a, b = (torch.cat([learner.body(x), torch.ones(len(x), 1)], 1) for x in (support.x, query.x))
    weights = torch.linalg.solve(a.T @ a + 2 * torch.eye(9), a.T @ losses.one_hot(support.y, WAYS, torch.float64))
    close(scores(learner, support, query.x), 3 * b @ weights, 1e-6)  # 1e-6: log(2) was rounded to float32


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cost", [0.1, 1.0])
@pytest.mark.parametrize(("count", "ways", "features"), [(5, 5, 8), (25, 5, 64), (25, 5, 4), (60, 20, 16)])
def test_svm(count, ways, features, cost):
    svm = pytest.importorskip("sklearn.svm").LinearSVC
    x, y = torch.randn(count, features, dtype=torch.float64), torch.arange(count) % ways
    labels = losses.one_hot(y, ways, torch.float64)
    dual = solve_dual(x @ x.T + 1e-9 * torch.eye(count), labels, cost, 1e-8, 25)
    close(dual.sum(1), torch.zeros(count, dtype=torch.float64))
    assert (dual <= cost * labels + 1e-9).all()
    machine = svm(multi_class="crammer_singer", fit_intercept=False, C=cost, tol=1e-10, max_iter=1_000_000)
    reference = torch.from_numpy(machine.fit(x.numpy(), y.numpy()).coef_.T)  # [D, W]
    close(x.T @ dual, reference, 1e-4)
    # No gap between the objectives of the primal and the dual: both are optimal.
    weights = x.T @ dual
    margins = x @ weights - (x @ weights * labels).sum(1, keepdim=True) + 1 - labels
    primal = weights.square().sum() / 2 + cost * margins.amax(1).sum()
    close(primal, (dual * labels).sum() - weights.square().sum() / 2, 1e-5)


def test_svm_has_converged_in_float32_with_the_default_settings():
    learner = MetaOptNet(nn.Flatten(), ways=5, features=16)
    for size, spread in ((1, 1.0), (5, 1.0), (15, 5.0), (5, 0.1)):
        x, y = spread * torch.randn(5 * size, 16), torch.arange(5).repeat(size)
        found = learner.adapt(learner.init(), Batch(x, y)).weights
        labels = losses.one_hot(y, 5, torch.float64)
        gram = x.double() @ x.double().T + 0.01 * torch.eye(len(x))
        expected = x.double().T @ solve_dual(gram, labels, 0.1, 1e-6, 60)
        assert (found - expected).norm() < 1e-3 * expected.norm()
        ideal = x.double().T @ solve_dual(gram, labels, 0.1, 1e-10, 60)
        assert (found - ideal).norm() < 0.01 * ideal.norm()


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_finetune_is_torch_optim():
    support, query = batch(), batch()
    for optimizer, mode in (("sgd", "all"), ("adam", "all"), ("sgd", "head")):
        body = mlp(WAYS)
        learner = make("finetune", body, steps=10, lr=0.1, optimizer=optimizer, mode=mode)
        assert isinstance(learner, FineTune)
        found = scores(learner, support, query.x)
        params = list((body if mode == "all" else body.head).parameters())
        reference = torch.optim.SGD(params, 0.1, 0.9) if optimizer == "sgd" else torch.optim.Adam(params, 0.1)
        for _ in range(10):
            reference.zero_grad()
            losses.cross_entropy(body(support.x), support.y).backward()
            reference.step()
        close(found, body(query.x))


def test_finetune_learns_nothing_from_other_tasks():
    learner = make("finetune", mlp(WAYS), steps=5, lr=0.1, seed=3)
    gradient, outcome = engine.meta_gradient(learner, tasks(), "vmap")
    assert all((g == 0).all() for g in gradient.values())
    assert learner.frozen == ("",)
    assert outcome.loss.isfinite().all()
    same = tasks()
    close(engine.meta_loss(learner, same, "vmap").loss, engine.meta_loss(learner, same, "loop").loss)
    regression = batch()
    targets = Batch(regression.x, torch.randn(len(regression.y), 1, dtype=torch.float64))
    fitted = scores(make("finetune", mlp(1), ways=1, steps=200, lr=0.05), targets, targets.x)
    assert losses.mean_squared_error(fitted, targets.y) < 0.3 * targets.y.var()


def test_finetune_starts():
    body = mlp(64)  # pre-trained on 64 classes
    fresh = make("finetune", body, fresh_head=True, mode="head", steps=50, lr=0.1)
    support = batch()
    start = fresh.init()
    assert fresh.predict(start, support.x).shape == (len(support.y), WAYS)
    assert (fresh.predict(start, support.x) == 0).all()
    assert fresh.permutation_equivariant
    state = fresh.adapt(start, support)
    assert torch.equal(state.params["layers.0.weight"], start.params["layers.0.weight"])
    assert losses.accuracy(fresh.predict(state, support.x), support.y) > 0.5
    a, b, c = init_seeded(body, 1), init_seeded(body, 1), init_seeded(body, 2)
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    other = [torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True)]
    assert all(same)
    assert not any(other)
    with pytest.raises(ValueError, match="unknown mode"):
        make("finetune", body, mode="tail")
    with pytest.raises(ValueError, match="unknown optimizer"):
        make("finetune", body, optimizer="lion")


def test_finetune_normalises_queries_by_the_support_set():
    body = Conv4(1, 4, "stride", 16, WAYS, "mean", activation="softplus").double()
    learner = make("finetune", body, steps=2)
    support, query = batch(shape=(1, 16, 16)), batch(shape=(1, 16, 16))
    state = learner.adapt(learner.init(), support)
    together = learner.predict(state, query.x)
    close(together, torch.cat([learner.predict(state, x[None]) for x in query.x]))
    assert not learner.transductive
    assert make("finetune", body, transductive=True).transductive


@pytest.mark.parametrize("kind", ["r2d2", "metaoptnet"])
def test_many_examples_with_several_threads(kind: str) -> None:
    """MKL's batched LU breaks or hangs there (torch 2.13 for CPUs): a process of its own, which can be given up."""
    code = """
import sys, torch
from torch import nn
from kshot.core import Batch
from kshot.learners.metric.metaoptnet import MetaOptNet
from kshot.learners.metric.r2d2 import R2D2
torch.set_num_threads(2)
torch.manual_seed(0)
learner = {"r2d2": R2D2, "metaoptnet": MetaOptNet}[sys.argv[1]](nn.Flatten(), ways=4, features=64)
y = torch.arange(256) % 4
x = torch.randn(2, 256, 64) + 2 * torch.randn(4, 64)[y]
state = torch.func.vmap(lambda x: learner.adapt(learner.init(), Batch(x, y)))(x)
scores = torch.func.vmap(learner.predict)(state, x)
print(float((scores.argmax(-1) == y).float().mean()))
"""
    done = subprocess.run([sys.executable, "-c", code, kind], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.95


def test_what_float32_cannot_solve_is_nan() -> None:
    """A ridge below the rounding of the entries: no numbers rather than wrong ones."""
    x = torch.randn(25, 3, generator=torch.Generator().manual_seed(0)) * 1e4
    y = torch.eye(5).repeat(5, 1)
    assert ridge(x, y, torch.tensor(1e-3)).isnan().all()
    assert ridge(x.double(), y.double(), torch.tensor(1e-3, dtype=torch.float64)).isfinite().all()


# --- soft k-means ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_soft_k_means_is_that_of_the_paper(steps):
    """Ren et al. 2018, equations 1 to 4, written with loops over classes and rows."""
    learner, (x, y), asked = make("softkmeans", steps=steps), with_free_rows(), batch().x
    eye = torch.eye(WAYS, dtype=torch.float64)
    with torch.no_grad():
        seen, queries = learner.body(x), learner.body(asked)
        prototypes = torch.stack([seen[y == c].mean(0) for c in range(WAYS)])
        for _ in range(steps):
            total, weight = torch.zeros_like(prototypes), torch.zeros(WAYS, dtype=torch.float64)
            for f, k in zip(seen, y.tolist(), strict=True):
                near = torch.stack([(-(f - p).square().sum()).exp() for p in prototypes])
                z = near / near.sum() if k == -1 else eye[k]
                total, weight = total + z[:, None] * f, weight + z
            prototypes = total / weight[:, None]
        close(scores(learner, Batch(x, y), asked), -(queries[:, None] - prototypes).square().sum(-1))


def test_soft_k_means_without_unlabelled_rows_is_protonet():
    learner, plain, support, query = make("softkmeans", steps=2), make("protonet"), batch(), batch()
    plain.load_state_dict(learner.state_dict())
    assert torch.equal(scores(learner, support, query.x), scores(plain, support, query.x))


def test_soft_k_means_gives_nothing_to_classes_without_an_example_nor_to_padding():
    learner, (x, y) = make("softkmeans", ways=WAYS + 2), with_free_rows()
    state = learner.adapt(learner.init(), Batch(x, y))
    assert not state.counts[WAYS:].any()
    assert float(state.counts.detach().sum()) == pytest.approx(len(y))
    hidden = Batch(x, torch.where(y == -1, -2, y))
    assert float(learner.adapt(learner.init(), hidden).counts.detach().sum()) == WAYS * SHOTS


def test_meta_training_soft_k_means_uses_the_unlabelled_rows():
    """In `train()` mode too, where support and query are embedded as one batch."""
    learner, support = make("softkmeans").train(), with_free_rows()
    task = Task(support, batch(QUERIES))
    with_rows = learner.loss(task)[0]
    without = learner.loss(task._replace(support=Batch(*(leaf[: WAYS * SHOTS] for leaf in support))))[0]
    assert abs(float((with_rows - without).detach())) > 1e-6


def test_plda_is_fishers_discriminant_where_the_penalty_is_small_and_class_means_where_it_is_large():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 25)
    x = rng.standard_normal((75, 6)) @ rng.standard_normal((6, 6)) + rng.standard_normal((3, 6))[y]
    q = rng.standard_normal((50, 6)) * 2
    support, queries = Batch(torch.from_numpy(x), torch.from_numpy(y)), torch.from_numpy(q)

    def scores(penalty: float) -> np.ndarray:
        learner = PLDA(nn.Identity(), ways=3, features=6, penalty=penalty, prior=0.0, scale=1.0).double()
        with torch.no_grad():
            return learner.predict(learner.adapt(learner.init(), support), queries).numpy()

    def centred(z: np.ndarray) -> np.ndarray:
        return z - z.mean(1, keepdims=True)

    theirs = LinearDiscriminantAnalysis("lsqr").fit(x, y).decision_function(q)
    means = np.stack([x[y == c].mean(0) for c in range(3)])
    unit = ((means - means.mean(0)) ** 2).sum(1).mean()
    np.testing.assert_allclose(centred(scores(1e-7)) * 75 / (1e-7 * unit), centred(theirs), rtol=1e-4, atol=1e-6)
    far = -((q[:, None] - means) ** 2).sum(2) / 2
    np.testing.assert_allclose(centred(scores(1e9)), centred(far), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [4, 30])
@pytest.mark.parametrize("prior", [0.0, 0.25, 2.0])
def test_plda_leaves_examples_out_as_a_loop_does(size, prior):
    rng = np.random.default_rng(size)
    y = torch.from_numpy(np.repeat(np.arange(4), (1, 2, 3, 6)))
    x = torch.from_numpy(rng.standard_normal((12, size)) + rng.standard_normal((4, size))[y])
    penalties = torch.tensor([0.01, 0.5, 30.0], dtype=torch.float64)
    found = left_out(x, y, 4, penalties, prior)
    assert found.shape == (3, 12, 4)
    assert found[:, 0].isnan().all()
    assert not found[:, 1:].isnan().any()
    means = torch.stack([x[y == c].mean(0) for c in range(4)])
    size_of_all = (means - means.mean(0)).square().sum(1).mean()
    for k, penalty in enumerate(penalties.tolist()):
        for i in range(1, 12):
            rest = torch.arange(12) != i
            m = torch.stack([x[rest][y[rest] == c].mean(0) for c in range(4)])
            r = x[rest] - m[y[rest]]
            metric = torch.linalg.inv(torch.eye(size, dtype=x.dtype) + r.T @ r / (penalty * size_of_all))
            n = y[rest].bincount(minlength=4)
            shrunk = (n / (n + prior))[:, None] * (m - m.mean(0)) + m.mean(0)
            wanted = -((x[i] - shrunk) @ metric * (x[i] - shrunk)).sum(1) / 2
            torch.testing.assert_close(found[k, i], wanted, rtol=1e-4, atol=1e-8)
