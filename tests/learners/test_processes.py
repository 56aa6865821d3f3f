"""Neural processes: the contract, rows that are not there, empty contexts, what moves with what."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kshot import engine, seeding
from kshot.core import Batch, Task
from kshot.learners import PROCESSES, build
from kshot.tasks.processes import GaussianProcess
from kshot.testing import LEARNER_CHECKS, check_learner

SMALL: dict[str, dict[str, Any]] = {
    "cnp": {"width": 16, "layers": 1},
    "acnp": {"width": 16, "layers": 1, "heads": 2},
    "convcnp": {"width": 8, "layers": 2, "kernel": 5, "density": 8, "span": 4.0},
    "tnpd": {"width": 16, "layers": 2, "heads": 2, "feed": 16},
}
CURVES = GaussianProcess(context=(8, 8), total=16, length=(0.8, 1.2), scale=(0.8, 1.2), noise=0.1)


def make(name: str) -> Any:
    with seeding.seeded(0, "weights"):
        return build(name, None, 1, **SMALL[name])


@pytest.mark.parametrize("name", PROCESSES)
def test_the_contract(name: str) -> None:
    report = check_learner(lambda: make(name), CURVES)
    assert len(report.ran) + len(report.skipped) == len(LEARNER_CHECKS)
    # Not run: five checks of classes, and the device's where there is no CUDA.
    assert len(report.ran) == 17 + int(torch.cuda.is_available()), report


@pytest.mark.parametrize("name", PROCESSES)
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
    assert gradients[0][0] == pytest.approx(-gradients[0][1])


@pytest.mark.parametrize("name", PROCESSES)
def test_an_empty_context_is_a_valid_one(name: str) -> None:
    learner = make(name)
    x = torch.linspace(-1, 1, 5)[:, None]
    nothing = learner.adapt(learner.init(), Batch(torch.zeros(3, 1), torch.full((3, 1), torch.nan)))
    for state in (learner.init(), nothing):
        answer = learner.predict(state, x)
        assert torch.isfinite(answer.mean).all()
        assert (answer.std > 0).all()
    torch.testing.assert_close(learner.predict(learner.init(), x).mean, learner.predict(nothing, x).mean)


@pytest.mark.parametrize("name", PROCESSES)
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
            alone[key] = alone.get(key, 0) + (0 if g is None else g / 6)
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


def test_the_likelihood_is_scipys() -> None:
    from scipy.stats import norm

    from kshot.learners._process import Gaussian, log_likelihood

    mean, std, y = torch.randn(7, 2), torch.rand(7, 2) + 0.1, torch.randn(7, 2)
    y[2] = torch.nan
    here = [k for k in range(7) if k != 2]
    wanted = norm(mean[here].numpy(), std[here].numpy()).logpdf(y[here].numpy()).mean()
    assert float(log_likelihood(Gaussian(mean, std), y)) == pytest.approx(wanted, rel=1e-5)
