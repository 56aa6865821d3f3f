"""Neural processes: the contract, rows that are not there, empty contexts, what moves with what."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from kshot import engine
from kshot.core import Batch, Task
from kshot.learners import build
from kshot.learners.processes.acnp import MANY, attend
from kshot.numerics import seeding
from kshot.tasks.functions.processes import GaussianProcess
from kshot.testing import LEARNER_CHECKS, check_learner

SMALL: dict[str, dict[str, Any]] = {
    "cnp": {"width": 16, "layers": 1},
    "acnp": {"width": 16, "layers": 1, "heads": 2},
    "np": {"width": 16, "latent": 8, "layers": 2, "samples": 8},
    "anp": {"width": 16, "latent": 8, "layers": 2, "heads": 2, "samples": 8},
    "bnp": {"width": 16, "layers": 2, "samples": 6},
    "gnp": {"width": 16, "layers": 1, "heads": 2, "rank": 4},
    "convgnp": {"width": 8, "levels": 2, "kernel": 5, "density": 8, "reach": 3.0, "rank": 4},
    "convcnp": {"width": 8, "levels": 2, "kernel": 5, "density": 8, "reach": 3.0},
    "tnpd": {"width": 16, "layers": 2, "heads": 2, "feed": 16},
}
CURVES = GaussianProcess(context=(8, 8), total=16, length=(0.8, 1.2), scale=(0.8, 1.2), noise=0.1)


def make(name: str) -> Any:
    with seeding.seeded(0, "weights"):
        return build(name, None, 1, **SMALL[name]).eval()  # the same noise in every call


@pytest.mark.parametrize("name", SMALL)
def test_the_contract(name: str) -> None:
    report = check_learner(lambda: make(name), CURVES, steps=300 if name in ("np", "bnp") else 60)
    assert len(report.ran) + len(report.skipped) == len(LEARNER_CHECKS)
    # Not run: five checks of classes, and the device's where there is no CUDA.
    assert len(report.ran) == 18 + int(torch.cuda.is_available()), report


@pytest.mark.parametrize("name", SMALL)
def test_rows_that_are_not_there_do_not_matter(name: str) -> None:
    learner, task = make(name).double(), GaussianProcess(context=(5, 5), total=12).sample(seeding.generator(0), 1)
    own = Task(*(Batch(b.x[0].double(), b.y[0].double()) for b in task))
    garbage, nothing = torch.full((4, 1), 0.3).double(), torch.full((4, 1), torch.nan).double()
    padded = Task(*(Batch(torch.cat([b.x, garbage]), torch.cat([b.y, nothing])) for b in own))
    gradients = []
    for some in (own, padded):
        learner.zero_grad()
        loss, metrics = learner.loss(some)
        loss.backward()
        gradients.append([float(loss.detach()), float(metrics["log_likelihood"]), float(metrics["mse"])]
                         + [float(p.grad.norm()) for p in learner.parameters()])  # fmt: skip
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-9)
    if name in ("cnp", "acnp", "convcnp", "tnpd"):
        assert gradients[0][0] == pytest.approx(-gradients[0][1])


@pytest.mark.parametrize("name", SMALL)
def test_an_empty_context_is_a_valid_one(name: str) -> None:
    learner = make(name)
    x = torch.linspace(-1, 1, 5)[:, None]
    nothing = learner.adapt(learner.init(), Batch(torch.zeros(3, 1), torch.full((3, 1), torch.nan)))
    for state in (learner.init(), nothing):
        answer = learner.predict(state, x)
        assert torch.isfinite(answer.mean).all()
        assert (answer.std > 0).all()
    torch.testing.assert_close(learner.predict(learner.init(), x).mean, learner.predict(nothing, x).mean)


@pytest.mark.parametrize("name", SMALL)
def test_ragged_batches_give_the_gradient_of_single_tasks(name: str) -> None:
    learner, tasks = make(name).double(), GaussianProcess(context=(0, 6), total=12, ragged=True)
    task = tasks.sample(seeding.generator(3), 6)
    batch = Task(*(Batch(b.x.double(), b.y.double()) for b in task))
    together, _ = engine.meta_gradient(learner, batch, "vmap")
    alone: dict[str, torch.Tensor] = {}
    for t in range(6):
        here = [~b.y[t, :, 0].isnan() for b in batch]
        one = Task(*(Batch(b.x[t][h], b.y[t][h]) for b, h in zip(batch, here, strict=True)))
        own = torch.autograd.grad(learner.loss(one)[0], list(learner.parameters()), allow_unused=True)
        for (key, _), g in zip(learner.named_parameters(), own, strict=True):
            alone[key] = alone.get(key, torch.zeros(())) + (0 if g is None else g / 6)
    for key, value in together.items():
        torch.testing.assert_close(value, alone[key] + torch.zeros_like(value), rtol=1e-8, atol=1e-10)


def test_a_convolutional_one_moves_with_its_points() -> None:
    learner = make("convcnp").double()
    task = GaussianProcess(context=(6, 6), total=12, x=(-1.0, 1.0)).sample(seeding.generator(0), 1)
    (x, y), (q, _) = ((b.x[0].double(), b.y[0].double()) for b in task)
    still = learner.predict(learner.adapt(learner.init(), Batch(x, y)), q)
    for shift in (3.0, -10.125):  # multiples of the grid's step, 1/8
        moved = learner.predict(learner.adapt(learner.init(), Batch(x + shift, y)), q + shift)
        torch.testing.assert_close(moved.mean, still.mean)
        torch.testing.assert_close(moved.std, still.std)
    other = make("cnp").double()  # that this can fail
    still = other.predict(other.adapt(other.init(), Batch(x, y)), q)
    moved = other.predict(other.adapt(other.init(), Batch(x + 3, y)), q + 3)
    assert not torch.allclose(moved.mean, still.mean)


def test_pictures() -> None:
    """The contract on a grid, whole pictures, and pixels that are told twice."""
    places = torch.cartesian_prod(torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 5))

    class Pictures:
        classification, input_shape = False, (2,)

        def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
            order = torch.rand(num_tasks, 30, generator=generator).argsort(1)
            tilt = torch.randn(num_tasks, 2, 1, generator=generator)
            x = places[order]
            y = torch.sin(x @ tilt)
            return Task(Batch(x[:, :12], y[:, :12]), Batch(x[:, 12:], y[:, 12:]))

    def new() -> Any:
        with seeding.seeded(0, "weights"):
            return build("convcnp2d", None, 1, height=6, width=5, channels=8, levels=1)

    report = check_learner(new, Pictures())
    assert len(report.ran) == 18 + int(torch.cuda.is_available()), report
    learner, task = new(), Pictures().sample(seeding.generator(0), 1)
    x, y = task.support.x[0], task.support.y[0]
    once = learner.adapt(learner.init(), Batch(x, y))
    twice = learner.adapt(learner.adapt(once, Batch(x, y)), Batch(x[:3], torch.full((3, 1), torch.nan)))
    torch.testing.assert_close(learner.predict(twice, places).mean, learner.predict(once, places).mean)
    picture = (once.total / once.points.clamp_min(1)).flatten()
    torch.testing.assert_close(picture[learner._pixel(x)], y[:, 0])
    assert learner._pixel(places).tolist() == list(range(30))


@pytest.mark.parametrize("name", ["np", "anp"])
def test_the_bounds_of_a_latent_variable(name: str) -> None:
    """ELBO <= importance-weighted bound <= likelihood, here by many draws (Burda et al. 2016, theorem 1)."""
    task = Task(*(Batch(b.x[0].double(), b.y[0].double()) for b in CURVES.sample(seeding.generator(5), 1)))
    bounds: dict[str, float] = {}
    for objective in ("elbo", "iwae", "ml"):
        with seeding.seeded(0, "weights"):
            learner = build(name, None, 1, **{**SMALL[name], "samples": 4096, "objective": objective}).double().eval()
        bounds[objective] = -float(learner.loss(task)[0].detach())
    assert bounds["elbo"] < bounds["iwae"]
    assert bounds["iwae"] == pytest.approx(bounds["ml"], abs=2e-3)  # both estimate the likelihood itself


def test_the_elbo_by_hand() -> None:
    """With one value, a linear decoder would be needed for a closed form: the parts are compared with torch's own."""
    learner, task = make("np").double(), CURVES.sample(seeding.generator(6), 1)
    task = Task(*(Batch(b.x[0].double(), b.y[0].double()) for b in task))
    before = learner.distribution(learner.adapt(learner.init(), task.support))
    both = Batch(*(torch.cat(pair) for pair in zip(*task, strict=True)))
    after = learner.distribution(learner.adapt(learner.init(), both))
    normal = torch.distributions.Normal
    z = after.mean + after.std * learner.noise()
    answer = learner.decode(None, z, task.query.x)
    inside = normal(answer.means, answer.stds).log_prob(task.query.y[..., None]).sum((0, 1)).mean()
    apart = torch.distributions.kl_divergence(normal(*after), normal(*before)).sum()
    wanted = -(inside - apart) / len(task.query.y)
    torch.testing.assert_close(learner.loss(task)[0], wanted)


def test_noise_is_new_in_training_and_the_same_afterwards() -> None:
    learner, task = make("np"), CURVES.sample(seeding.generator(0), 1)
    x, y = task.support.x[0], task.support.y[0]
    state = learner.adapt(learner.init(), Batch(x, y))
    torch.testing.assert_close(learner.predict(state, x).mean, learner.predict(state, x).mean, rtol=0, atol=0)
    learner.train()
    assert not torch.equal(learner.predict(state, x).mean, learner.predict(state, x).mean)
    assert learner.predict(state, x).means.shape == (8, 1, 4)  # draws in training, samples afterwards


@pytest.mark.parametrize("points", [5, MANY, 3 * MANY])
def test_attention_by_hand_with_gradients_and_without(points: int) -> None:
    """Of three tasks, one of which has no point: softmax over the points that are there and one of nought."""
    generator = torch.Generator().manual_seed(points)
    q, k, v = (torch.randn(3, n, 8, generator=generator, dtype=torch.float64) for n in (7, points, points))
    here = (torch.rand(3, points, generator=generator) < 0.6).double()
    here[1] = 0
    with torch.no_grad():
        fused = torch.vmap(lambda *t: attend(*t, 2))(q, k, v, here)
        nested = torch.vmap(torch.vmap(lambda *t: attend(*t, 2)))(*(t[None] for t in (q, k, v, here)))[0]
    kept = torch.vmap(lambda *t: attend(*t, 2))(q.requires_grad_(), k, v, here)
    kept.sum().backward()
    assert float(fused[1].abs().max()) == 0
    assert q.grad is not None
    assert bool(q.grad[0].any())
    for t, head, m in itertools.product(range(3), range(2), range(7)):
        own = slice(4 * head, 4 * head + 4)
        seen = here[t] > 0
        weights = (k[t, seen, own] @ q[t, m, own] / 2).exp()
        wanted = (weights @ v[t, seen, own]) / (1 + weights.sum())
        for found in (fused, nested, kept, attend(q[t], k[t], v[t], here[t], 2)[None].expand(3, -1, -1)):
            assert torch.allclose(found[t, m, own], wanted, rtol=1e-10, atol=1e-12)
