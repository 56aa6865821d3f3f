"""Policies, returns, the inner step and the trust region against closed forms, torch's distributions, dense algebra."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from kshot.core import Task
from kshot.learners.policy.learner import surrogate_loss
from kshot.learners.policy.maml import EMAML, PolicyMAML, ProMP
from kshot.learners.policy.policy import DiagonalGaussian, GaussianMLP
from kshot.learners.policy.returns import Steps, advantages, baseline, digest, discounted, features, standardised
from kshot.learners.policy.rollouts import Trajectory
from kshot.learners.policy.trust import Curvature, Region, _few, improve
from kshot.numerics import seeding, tree

D, A = 3, 2


def steps(tasks: int, rows: int, seed: int = 0) -> Steps:
    """Random steps in float64, acted by a policy of its own; the last two rows of each task only fill up."""
    g = seeding.generator(seed, "steps")

    def normal(*shape: int) -> Tensor:
        return torch.randn(tasks, *shape, generator=g, dtype=torch.float64)

    weights = torch.full((tasks, rows), 1 / (rows - 2), dtype=torch.float64)
    weights[:, -2:] = 0
    mean, log_std = 0.1 * normal(rows, A), 0.1 * normal(1, A)
    return Steps(normal(rows, D), normal(rows, A), normal(rows), weights, mean, log_std, normal())


def learner(
    hidden: tuple[int, ...] = (4,), first_order: bool = False, adapts: bool = True, rates: bool = False
) -> PolicyMAML:
    with seeding.seeded(0, "weights"):
        policy = GaussianMLP(D, A, hidden)
        for p in policy.parameters():  # biases and deviations too
            torch.nn.init.normal_(p, std=0.4)
    own = PolicyMAML(policy, 0.3, first_order, adapts, learn_rates=rates).double()
    with torch.no_grad():
        for k, factor in enumerate(own.factors):  # of both signs
            factor.fill_((-1.5, 0.5, 2.0)[k % 3])
    return own


def acting(own: PolicyMAML, count: int, rows: int) -> Task:
    """Support and query as they come in training: each acted in by the policy that it is used for."""
    found = []
    for t in range(count):
        support, query = (tree.index(steps(1, rows, seed), 0) for seed in (2 * t, 2 * t + 1))
        before = own.predict(own.init(), support.x)
        support = support._replace(mean=before.mean.detach(), log_std=before.log_std.detach())
        after = own.predict(own.adapt(own.init(), support) if own.adapts else own.init(), query.x)
        found.append(Task(support, query._replace(mean=after.mean.detach(), log_std=after.log_std.detach())))
    return tree.stack(found)


# ------------------------------------------------------------------------------------------------------- distributions


def test_gaussian_agrees_with_torchs() -> None:
    g = seeding.generator(0)
    a, b = (DiagonalGaussian(torch.randn(4, 5, A, generator=g), torch.randn(4, 1, A, generator=g)) for _ in range(2))
    theirs = [Normal(d.mean, d.log_std.exp().expand_as(d.mean)) for d in (a, b)]
    actions = torch.randn(4, 5, A, generator=g)
    torch.testing.assert_close(a.log_prob(actions), theirs[0].log_prob(actions).sum(-1))
    torch.testing.assert_close(a.kl(b), kl_divergence(*theirs).sum(-1))
    torch.testing.assert_close(a.entropy().expand(4, 5), theirs[0].entropy().sum(-1))
    torch.testing.assert_close(a.sample(actions), a.mean + actions * a.log_std.exp())


def test_the_deviation_does_not_go_below_its_least() -> None:
    policy = GaussianMLP(D, A, (4,), least=0.01)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-100.0, -4.0]))
    torch.testing.assert_close(policy(torch.zeros(1, D)).log_std, torch.tensor([[math.log(0.01), -4.0]]))


def test_each_task_under_its_own_weights() -> None:
    own = learner((4, 6))
    g = seeding.generator(1)
    params = {n: torch.randn(3, *p.shape, generator=g, dtype=p.dtype) for n, p in own.init().items()}
    x = torch.randn(3, 7, D, generator=g, dtype=torch.float64)
    together = own.policy.distribution(params, x)
    for t in range(3):
        single = torch.func.functional_call(own.policy, tree.index(params, t), (x[t],))
        torch.testing.assert_close(together.mean[t], single.mean)
        torch.testing.assert_close(together.log_std[t], single.log_std)


# ------------------------------------------------------------------------------------------------------------- returns


def test_discounted_returns_by_hand() -> None:
    g = seeding.generator(0)
    values = torch.randn(2, 3, 9, generator=g, dtype=torch.float64)
    expected = torch.stack([sum(0.9 ** (k - h) * values[..., k] for k in range(h, 9)) for h in range(9)], -1)  # type: ignore
    torch.testing.assert_close(discounted(values, 0.9), expected)


def test_advantages_by_hand() -> None:
    """Against the sum over temporal differences, with a rollout that ends early."""
    g = seeding.generator(0)
    rewards, values = (torch.randn(1, 2, 6, generator=g, dtype=torch.float64) for _ in range(2))
    alive = torch.ones(1, 2, 6, dtype=torch.bool)
    alive[0, 1, 4:] = False
    found = advantages(rewards * alive, values, alive, 0.9, 0.7)
    for r, length in enumerate((6, 4)):
        for h in range(length):
            total = 0.0
            for k in range(h, length):
                following = float(values[0, r, k + 1]) if k + 1 < length else 0.0
                total += 0.63 ** (k - h) * (float(rewards[0, r, k]) + 0.9 * following - float(values[0, r, k]))
            assert found[0, r, h] == pytest.approx(total)
    assert not found[0, 1, 4:].any()


def test_baseline_fits_what_is_linear_in_its_features() -> None:
    g = seeding.generator(0)
    x = torch.randn(2, 5, 20, D, generator=g)
    alive = torch.ones(2, 5, 20, dtype=torch.bool)
    time = torch.arange(20) / 100
    returns = (x @ torch.tensor([1.0, -2.0, 0.5]) + x.square().sum(-1) + 3 * time - time**2 + 7).double()
    torch.testing.assert_close(baseline(x, returns, alive), returns, atol=1e-3, rtol=1e-3)
    alive[:, 0, 3:] = False  # what did not take place has no say
    ruined = torch.where(alive, returns, 1e6)
    torch.testing.assert_close(baseline(x, ruined, alive) * alive, returns * alive, atol=1e-3, rtol=1e-3)


def test_features_by_hand() -> None:
    """Observations within -10..10, their squares, the first three powers of time (steps / 100), and 1 (Duan et al.)."""
    x = torch.tensor([[[[0.5], [-20.0], [3.0]]]])
    expected = [[0.5, 0.25, 0, 0, 0, 1], [-10, 100, 0.01, 1e-4, 1e-6, 1], [3, 9, 0.02, 4e-4, 8e-6, 1]]
    torch.testing.assert_close(features(x)[0, 0], torch.tensor(expected, dtype=torch.float64))


def test_standardised_advantages_by_hand() -> None:
    """Temporal differences of a ridge regression of discounted returns, of mean 0 and deviation 1 over each task."""
    g = seeding.generator(2)
    alive = torch.ones(2, 3, 7, dtype=torch.bool)
    alive[0, 1, 4:] = False
    x, rewards = torch.randn(2, 3, 7, D, generator=g), torch.randn(2, 3, 7, generator=g)
    zeros = torch.zeros(2, 3, 7, A)
    found, weights = standardised(Trajectory(x, zeros, rewards, alive, zeros, torch.zeros(2, 1, A)), 0.8, 0.6)
    for t in range(2):
        lengths = [int(row.sum()) for row in alive[t]]
        back = [[sum(0.8 ** (k - h) * float(rewards[t, r, k]) for k in range(h, n)) for h in range(n)]
                for r, n in enumerate(lengths)]  # fmt: skip
        rows = torch.cat([features(x)[t, r, :n] for r, n in enumerate(lengths)])
        eye = torch.eye(rows.shape[1], dtype=torch.float64)
        targets = torch.tensor([value for row in back for value in row], dtype=torch.float64)
        values = rows @ torch.linalg.solve(rows.mT @ rows + 1e-5 * eye, rows.mT @ targets)
        own: list[float] = []
        for r, (n, value) in enumerate(zip(lengths, values.split(lengths), strict=True)):
            follows = [*value[1:].tolist(), 0.0]
            errors = [float(rewards[t, r, h]) + 0.8 * follows[h] - float(value[h]) for h in range(n)]
            own += [sum(0.48 ** (k - h) * errors[k] for k in range(h, n)) for h in range(n)]
        good = torch.tensor(own, dtype=torch.float64)
        expected = ((good - good.mean()) / good.std(correction=0)).float()
        torch.testing.assert_close(found[t][alive[t]], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(weights[t][alive[t]], torch.full((sum(lengths),), 1 / sum(lengths)))
    assert not found[~alive].any()
    assert not weights[~alive].any()


def test_baseline_of_an_ants_size_with_several_threads() -> None:
    """84 of its 125 numbers are contact forces, mostly 0: the matrix has a block that is the ridge alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 10, 200, 125, generator=generator)
    x[..., 41:] = 0
    alive = torch.ones(20, 10, 200)
    returns = x[..., 0] * 3 - x[..., 1].square() + 5
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.testing.assert_close(baseline(x, returns, alive), returns.double(), atol=1e-2, rtol=1e-2)
    finally:
        torch.set_num_threads(threads)


def test_steps_are_those_that_took_place() -> None:
    g = seeding.generator(0)
    alive = torch.ones(2, 3, 8, dtype=torch.bool)
    alive[0, 1, 2:] = False
    alive[1, :, 6:] = False
    x, actions, mean = (torch.randn(2, 3, 8, n, generator=g) for n in (D, A, A))
    trajectory = Trajectory(x, actions, torch.randn(2, 3, 8, generator=g), alive, mean, torch.zeros(2, 1, A))
    found = digest(trajectory, 0.9, 0.95)
    assert found.x.shape == (2, 18, D)  # 8 + 2 + 8 steps, and 6 + 6 + 6
    for t in range(2):
        real = found.weights[t] > 0
        assert int(real.sum()) == int(alive[t].sum())
        torch.testing.assert_close(found.weights[t].sum(), torch.tensor(1.0))
        assert torch.equal(found.x[t][real], x[t][alive[t]])
        assert torch.equal(found.actions[t][real], actions[t][alive[t]])
        own = found.advantages[t][real].double()
        assert own.mean() == pytest.approx(0, abs=1e-6)
        assert own.std(correction=0) == pytest.approx(1, abs=1e-5)


def test_merit_is_a_tasks_return_among_the_others() -> None:
    """Mean returns of 6, 2 and 1: mean 3, deviation sqrt(14 / 3). Steps that did not take place are paid nothing."""
    rewards, alive = torch.ones(3, 2, 6), torch.ones(3, 2, 6, dtype=torch.bool)
    alive[1, :, 2:], alive[2, :, 1:] = False, False
    x, actions = torch.zeros(3, 2, 6, D), torch.zeros(3, 2, 6, A)
    found = digest(Trajectory(x, actions, rewards, alive, actions, torch.zeros(3, 1, A)))
    torch.testing.assert_close(found.merit, torch.tensor([3.0, -1.0, -2.0]) / (14 / 3) ** 0.5)


# ---------------------------------------------------------------------------------------------------------- inner step


def test_the_inner_step_is_the_policy_gradient_of_a_linear_policy() -> None:
    own, support = learner(()), tree.index(steps(1, 12), 0)
    start = own.init()
    after = own.adapt(start, support, scale=0.5)
    mean = support.x @ start["layers.0.weight"].T + start["layers.0.bias"]
    off = (support.actions - mean) / (2 * start["log_std"]).exp()
    push = (support.weights * support.advantages)[:, None]
    expected = {
        "layers.0.weight": (push * off).T @ support.x,
        "layers.0.bias": (push * off).sum(0),
        "log_std": (push * (off * (support.actions - mean) - 1)).sum(0),
    }
    assert set(after) == set(expected)
    for name, slope in expected.items():
        torch.testing.assert_close(after[name], start[name] + 0.15 * slope)


def test_learned_rates_begin_as_mamls_and_scale_each_tensors_step() -> None:
    """A factor of 0 leaves a tensor, one of -2 takes it twice as far the other way; the factors stay."""
    support = tree.index(steps(1, 12), 0)
    maml = learner()
    start, after = maml.init(), maml.adapt(maml.init(), support)
    own = PolicyMAML(maml.policy, 0.3, learn_rates=True)
    moved = own.weights(own.adapt(own.init(), support))
    assert set(moved) == set(after)
    assert all(torch.equal(moved[name], after[name]) for name in after)
    factors = dict(zip(after, (0.0, -2.0, 1.0, 3.0, 0.5), strict=True))
    with torch.no_grad():
        for factor, value in zip(own.factors, factors.values(), strict=True):
            factor.fill_(value)
    state = own.adapt(own.init(), support, scale=0.5)
    for name, value in factors.items():
        torch.testing.assert_close(state[name], start[name] + 0.5 * value * (after[name] - start[name]))
        assert state[f"factors.{name}"].item() == value
    with pytest.raises(ValueError, match="no rates to learn"):
        PolicyMAML(maml.policy, adapts=False, learn_rates=True)


def test_a_policy_that_does_not_adapt_is_scored_before_any_step() -> None:
    """In `loss` as in `outer`: the paper's "pretrained"."""
    own = learner(adapts=False)
    task = Task(*(tree.index(steps(1, 15, seed), 0) for seed in (0, 1)))
    expected, _ = own.score(own.predict(own.init(), task.query.x), task.query)  # pyright: ignore
    torch.testing.assert_close(own.loss(task)[0], expected)
    own.adapts = True
    assert not torch.allclose(own.loss(task)[0], expected)


def test_rows_that_fill_up_change_nothing() -> None:
    own, batch = learner(), steps(2, 9)
    support, query = tree.index(batch, 0), tree.index(batch, 1)
    ruined = [s._replace(x=torch.cat([s.x[:-2], 50 + s.x[-2:]]), advantages=s.advantages * 1) for s in (support, query)]
    for a, b in zip(own.loss(Task(support, query)), own.loss(Task(*ruined)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_meta_gradient_is_a_finite_difference() -> None:
    own = learner()
    task = Task(*(tree.index(steps(1, 15, seed), 0) for seed in (0, 1)))
    gradient = torch.autograd.grad(own.loss(task)[0], list(own.parameters()))
    g = seeding.generator(3)
    direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in own.parameters()]

    def moved(by: float) -> float:
        with torch.no_grad():
            for p, d in zip(own.parameters(), direction, strict=True):
                p += by * d
            value = float(own.loss(task)[0])
            for p, d in zip(own.parameters(), direction, strict=True):
                p -= by * d
        return value

    slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
    assert slope == pytest.approx(float(sum((a * b).sum() for a, b in zip(gradient, direction, strict=True))), rel=1e-6)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_surrogate_beside_torchs_distributions(clip: float | None) -> None:
    """Row by row; the divergence is that of the new policy from the one that acted, and not the other way round."""
    query = tree.index(steps(1, 40), 0)
    g = seeding.generator(4)
    weights = torch.rand(40, generator=g, dtype=torch.float64)
    query = query._replace(weights=weights / weights.sum())
    mean = query.mean + 0.2 * torch.randn(40, A, generator=g, dtype=torch.float64)
    prediction = DiagonalGaussian(mean, query.log_std + torch.tensor([[0.3, -0.4]], dtype=torch.float64))
    loss, metrics = surrogate_loss(prediction, query, clip)
    new, acted = (Normal(what.mean, what.log_std.exp().expand_as(mean)) for what in (prediction, query.acted))
    ratio = (new.log_prob(query.actions) - acted.log_prob(query.actions)).sum(1).exp()
    gains = [float(r * a) for r, a in zip(ratio, query.advantages, strict=True)]
    if clip is not None:
        assert (ratio < 1 - clip).any()
        assert (ratio > 1 + clip).any()
        bounded = [min(max(float(r), 1 - clip), 1 + clip) for r in ratio]
        gains = [min(gain, r * float(a)) for gain, r, a in zip(gains, bounded, query.advantages, strict=True)]
    assert float(loss) == pytest.approx(-sum(float(w) * gain for w, gain in zip(query.weights, gains, strict=True)))
    kl, reverse = ((query.weights[:, None] * kl_divergence(*pair)).sum() for pair in ((acted, new), (new, acted)))
    assert abs(float(kl - reverse)) > 0.1 * float(kl)
    torch.testing.assert_close(metrics["kl"], kl)
    torch.testing.assert_close(metrics["entropy"], (query.weights[:, None] * new.entropy()).sum())


def test_actions_of_another_size_have_no_density() -> None:
    """They would be broadcast over the policy's."""
    policy = DiagonalGaussian(torch.zeros(4, 3), torch.zeros(1, 3))
    for width in (1, 2, 4):
        with pytest.raises(ValueError, match=f"actions of {width} numbers for a policy of 3"):
            policy.log_prob(torch.zeros(4, width))


@pytest.mark.parametrize("name", ["advantages", "weights"])
def test_advantages_and_weights_are_one_for_each_step(name: str) -> None:
    """`[N, 1]` would be broadcast to `[N, N]`."""
    own, support = learner(), tree.index(steps(1, 12), 0)
    for wrong in (getattr(support, name)[:, None], getattr(support, name)[:1], getattr(support, name)[0]):
        other = support._replace(**{name: wrong})
        words = rf"{name} have the shape {re.escape(str(list(wrong.shape)))}: one for each step, \[12\]"
        with pytest.raises(ValueError, match=words):
            own.adapt(own.init(), other)
        with pytest.raises(ValueError, match=words):
            own.loss(Task(support, other))


def test_promps_gradient_is_mamls_where_the_policy_acted_itself() -> None:
    """At the policy that acted all ratios are 1, none is clipped, and the divergence has no gradient. Not so the second
    derivative of the inner step, which is why the gradients are compared at first order.
    """
    own = learner(first_order=True)
    promp = ProMP(own.policy, own.inner_lr, first_order=True)
    tasks = acting(own, 2, 20)
    for t in range(2):
        task = tree.index(tasks, t)
        after, theirs = (one.adapt(one.init(), task.support) for one in (own, promp))
        for name, leaf in after.items():
            torch.testing.assert_close(theirs[name], leaf)
        gradients = [torch.autograd.grad(one.loss(task)[0], list(own.parameters())) for one in (own, promp)]
        torch.testing.assert_close(*gradients)


def test_promp_clips_what_has_moved_too_far() -> None:
    """One step of advantage 1 (and -1) whose ratio is 2: worth 1.3, and -2 where it is to be less likely."""
    own = ProMP(learner(()).policy, clip=0.3, penalty=0.0)
    support = tree.index(steps(1, 4), 0)
    x, actions = support.x[:1], support.actions[:1]
    now = own.predict(own.init(), x)
    # The policy that acted: the same mean shifted so that the action was half as likely.
    z = (actions - now.mean) / now.log_std.exp()
    reach = (z.square().sum() + 2 * math.log(2)).sqrt() / z.square().sum().sqrt()
    acted = actions - reach * z * now.log_std.exp()
    for sign, worth in ((1.0, 1.3), (-1.0, -2.0)):
        one = torch.ones(1, dtype=torch.float64)
        query = Steps(x, actions, sign * one, one, acted.detach(), now.log_std.detach(), one[0])
        loss, _ = own.outer(own.init(), own.init(), Task(query, query))  # type: ignore
        assert float(loss.detach()) == pytest.approx(-worth)


def test_promp_holds_the_start_near_the_policy_that_acted() -> None:
    own = learner()
    support = tree.index(steps(1, 9), 0)
    moved = own.predict(own.init(), support.x)
    away = (support.weights * support.acted.kl(moved)).sum()
    assert float(away.detach()) > 0.1
    losses = [
        ProMP(own.policy, own.inner_lr, penalty=penalty).loss(Task(support, support))[0] for penalty in (0.0, 0.7)
    ]  # pyright: ignore
    torch.testing.assert_close(losses[1] - losses[0], 0.7 * away)


def test_emaml_pays_the_rollouts_before_for_the_return_after() -> None:
    own = learner()
    theirs = EMAML(own.policy, own.inner_lr)
    task = tree.index(acting(own, 1, 12), 0)
    likelihood = own.predict(own.init(), task.support.x).log_prob(task.support.actions)
    term = task.query.merit * (task.support.weights * likelihood).sum()
    torch.testing.assert_close(theirs.loss(task)[0], own.loss(task)[0] - term)


# -------------------------------------------------------------------------------------------------------- trust region


def flat(leaves: object) -> Tensor:
    return torch.cat([leaf.detach().flatten() for leaf in leaves])  # type: ignore


def divergence(own: PolicyMAML, tasks: Task, vector: Tensor) -> Tensor:
    """The mean divergence after adaptation from the policies that acted, as a function of the start."""
    sizes = [p.numel() for p in own.parameters()]
    parts = vector.split(sizes)
    start = {n: part.view(p.shape) for (n, p), part in zip(own.init().items(), parts, strict=True)}
    total = torch.zeros((), dtype=vector.dtype)
    for t in range(len(tasks.query.x)):
        task = tree.index(tasks, t)
        after = own.adapt(start, task.support) if own.adapts else start
        total = total + own.score(own.predict(after, task.query.x), task.query)[1]["kl"]
    return total / len(tasks.query.x)


class _Open(PolicyMAML):
    """The same with a divergence that has a gradient."""

    def score(self, prediction: DiagonalGaussian, query: Steps):  # type: ignore[override]
        loss, metrics = super().score(prediction, query)
        return loss, {**metrics, "kl": (query.weights * query.acted.kl(prediction)).sum()}


@pytest.mark.parametrize(("adapts", "rates"), [(True, False), (False, False), (True, True)])
def test_products_are_those_of_the_divergences_second_derivative(adapts: bool, rates: bool) -> None:
    own = learner(adapts=adapts, rates=rates)
    tasks = acting(own, 3, 10)
    own.__class__ = _Open
    at = flat(own.parameters())
    hessian = torch.autograd.functional.hessian(lambda v: divergence(own, tasks, v), at)
    own.__class__ = PolicyMAML
    assert isinstance(hessian, Tensor)
    curvatures = [Curvature(own, tree.index(tasks.support, t), tree.index(tasks.query, t)) for t in range(3)]
    g = seeding.generator(0)
    for _ in range(3):
        v = torch.randn(len(at), generator=g, dtype=torch.float64)
        parts = [part.view(p.shape) for p, part in zip(own.parameters(), v.split([p.numel() for p in own.parameters()]), strict=True)]  # fmt: skip  # noqa: E501
        product = sum(flat(curvature(parts)) for curvature in curvatures) / 3
        torch.testing.assert_close(product, hessian @ v, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rates", [False, True])
def test_the_outer_step_is_the_natural_gradient(rates: bool) -> None:
    """Against dense algebra: the gradient by autograd, the Hessian whole, a solve, the length from the bound."""
    own = learner(rates=rates)
    tasks = acting(own, 4, 30)
    own.__class__ = _Open
    at = flat(own.parameters())
    hessian = torch.autograd.functional.hessian(lambda v: divergence(own, tasks, v), at)
    own.__class__ = PolicyMAML
    assert isinstance(hessian, Tensor)
    loss = sum(own.loss(tree.index(tasks, t))[0] for t in range(4)) / 4
    assert isinstance(loss, Tensor)
    gradient = flat(torch.autograd.grad(loss, list(own.parameters())))
    damped = hessian + 1e-3 * torch.eye(len(at), dtype=torch.float64)
    direction = torch.linalg.solve(damped, gradient)
    longest = math.sqrt(2 * 1e-7 / (float(direction @ damped @ direction) + 1e-8))
    region = Region(kl=1e-7, cg_steps=200, damping=1e-3)
    update = improve(own, tasks, region, seeding.generator(0))
    assert 1 <= update.tries <= 3
    expected = at - longest * 0.8 ** (update.tries - 1) * direction
    torch.testing.assert_close(flat(own.parameters()), expected, rtol=1e-4, atol=1e-6)
    assert update.before == pytest.approx(float(loss.detach()))
    assert update.after < update.before
    assert 0 < update.kl <= 1e-7
    assert float(divergence(own, tasks, flat(own.parameters()))) == pytest.approx(update.kl, rel=1e-6)
    assert update.norm == pytest.approx(float(gradient.norm()))
    acted = [tree.index(tasks.query, t).acted.entropy().sum() for t in range(4)]  # equal for all observations
    assert update.entropy == pytest.approx(float(sum(acted)) / 4)


@pytest.mark.parametrize("first_order", [True, False])
def test_threads_give_the_same_step(first_order: bool) -> None:
    found = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            own = learner(first_order=first_order)
            improve(own, acting(own, 5, 20), Region(rows=0.5), seeding.generator(0))
        finally:
            torch.set_num_threads(before)
        found.append(flat(own.parameters()))
    torch.testing.assert_close(*found)


def test_a_step_that_makes_nothing_better_is_not_taken() -> None:
    own = learner()
    tasks = acting(own, 2, 20)
    before = flat(own.parameters())
    nothing = Task(tasks.support, tasks.query._replace(advantages=torch.zeros_like(tasks.query.advantages)))
    update = improve(own, nothing, Region(), seeding.generator(0))
    assert torch.equal(flat(own.parameters()), before)
    assert update.tries == 16
    assert (update.after, update.kl) == (update.before, 0.0)


def test_products_are_taken_over_a_share_of_each_sides_rows() -> None:
    """Drawn without replacement, their weights of sum 1 again, and no row beside another's action."""
    batch = steps(2, 40)
    weights = torch.rand(2, 40, generator=seeding.generator(5), dtype=torch.float64)
    batch = batch._replace(weights=weights / weights.sum(1, keepdim=True))
    other = steps(2, 30, seed=1)
    generator = seeding.generator(0)
    for _ in range(2):
        for few, all_of in zip(_few(Task(batch, other), 1, 0.2, generator), (batch, other), strict=True):
            rows = [int((all_of.x[1] == x).all(1).nonzero()) for x in few.x]
            assert len(set(rows)) == len(rows) == round(0.2 * all_of.x.shape[1])
            for name in ("actions", "advantages", "mean"):
                assert torch.equal(getattr(few, name), getattr(all_of, name)[1, rows])
            drawn = all_of.weights[1, rows]
            torch.testing.assert_close(few.weights, drawn / drawn.sum())
    whole = _few(Task(batch, other), 1, 1.0, generator)
    assert torch.equal(whole[0].x, batch.x[1])
    assert torch.equal(whole[1].x, other.x[1])


def test_a_step_beyond_the_bound_is_not_taken_though_it_is_better() -> None:
    own = learner()
    tasks = acting(own, 2, 20)
    before = flat(own.parameters())
    refused = improve(own, tasks, Region(kl=0.1, tries=1), seeding.generator(0))
    assert torch.equal(flat(own.parameters()), before)
    assert (refused.after, refused.kl, refused.tries) == (refused.before, 0.0, 2)
    update = improve(own, tasks, Region(kl=0.1), seeding.generator(0))
    assert (update.tries, update.kl <= 0.1) == (2, True)
    first = before + (flat(own.parameters()) - before) / 0.8  # what was tried before
    parts = first.split([p.numel() for p in own.parameters()])
    start = {n: part.view(p.shape) for (n, p), part in zip(own.init().items(), parts, strict=True)}
    each = [tree.index(tasks, t) for t in range(2)]
    loss = sum(float(own.outer(start, own.adapt(start, task.support), task)[0].detach()) for task in each) / 2
    assert loss < update.before
    assert float(divergence(own, tasks, first).detach()) > 0.1


@pytest.mark.parametrize("bad", [{"kl": 0.0}, {"rows": 0.0}, {"shrink": 1.0}, {"tries": 0}, {"damping": -1.0}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Region(**bad)  # type: ignore
