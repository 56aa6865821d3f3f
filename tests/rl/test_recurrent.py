"""RL2: the unit beside torch's, acting beside adapting, trials whose rollouts end early, and that it learns a task."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kshot.core import Task
from kshot.families.control.step import Acting, Outer, evaluate, meta_train
from kshot.learners.policy import returns
from kshot.learners.policy.learner import act
from kshot.learners.policy.recurrent import RL2, GaussianGRU, Memory, Trials, digest
from kshot.learners.policy.rollouts import Trajectory
from kshot.numerics import seeding, tree
from kshot.tasks.control.paper import Point


class Short(Point):
    horizon = 15


class Ends(Point):
    """Half of the rollouts end early: a step of length 0.1 reaches goals this near."""

    horizon = 15
    low, high = -0.02, 0.02


def learner(episodes: int = 2, hidden: int = 8) -> RL2:
    with seeding.seeded(0, "weights"):
        return RL2(GaussianGRU(2, 2, hidden), episodes)


def test_the_unit_is_torchs() -> None:
    policy = GaussianGRU(3, 2, 5).double()
    theirs = nn.GRU(5, 5).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(policy.gates.weight)
        theirs.bias_ih_l0.copy_(policy.gates.bias)
        theirs.weight_hh_l0.copy_(policy.recurrent.weight)
        theirs.bias_hh_l0.copy_(policy.recurrent.bias)
    x, hidden = torch.randn(4, 9, 7).double(), torch.randn(4, 5).double()
    wanted, _ = theirs(policy.into(x).relu().transpose(0, 1), hidden[None])
    torch.testing.assert_close(policy(x, hidden), wanted.transpose(0, 1))


def rounds(own: RL2, family: Any, rollouts: int = 6) -> list[Trajectory]:
    goals = family.sample(seeding.generator(0, "goals"), 3)
    return act(own, family, goals, rollouts, [seeding.generator(0, "round", k) for k in range(own.rounds)])


def test_adapting_on_what_was_acted_gives_the_memory_that_acted() -> None:
    """The second round begins with the memory at the end of the first, also where rollouts ended early."""
    for family in (Short(), Ends()):
        own = learner(3)
        found = rounds(own, family)
        if isinstance(family, Ends):
            assert 0 < found[0].alive.double().mean() < 1
        goals = family.sample(seeding.generator(0, "goals"), 3)
        simulator = family.simulator(goals, 6, 1)
        actor = own.actor(own.init())
        for trajectory in found:  # the same actions again, one by one
            observed, begins = simulator.reset(np.random.default_rng(0)), actor.memory
            actor = own.actor(begins)
            for h in range(family.horizon):
                x, what = actor.react(torch.from_numpy(observed).view(3, 6, -1).float())
                there = trajectory.alive[:, :, h]
                torch.testing.assert_close(x[there], trajectory.observations[:, :, h][there], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(what.mean[there], trajectory.mean[:, :, h][there], rtol=1e-4, atol=1e-5)
                alive = torch.from_numpy(simulator.alive).view(3, 6)
                observed, paid = simulator.step(trajectory.actions[:, :, h].flatten(0, 1).double().numpy())
                actor.saw(trajectory.actions[:, :, h], torch.from_numpy(paid).view(3, 6).float(), alive)
                if not simulator.alive.any():
                    break


def test_what_comes_after_the_end_of_a_rollout_means_nothing() -> None:
    own = learner(2)
    found = rounds(own, Ends())
    assert not found[0].alive.all()

    def spoilt(leaf: torch.Tensor) -> torch.Tensor:
        mask = found[0].alive if leaf.ndim == 3 else found[0].alive[..., None]
        return torch.where(mask, leaf, 7.0)

    o, a, r, alive, mean, log_std = found[0]
    other = Trajectory(spoilt(o), spoilt(a), spoilt(r), alive, spoilt(mean), log_std)
    for t in range(3):
        states = [own.adapt(own.init(), tree.index(digest(x), t)) for x in (found[0], other)]
        torch.testing.assert_close(*states)
    losses = [own.loss(tree.index(own.experience([x, found[1]]), 1))[0] for x in (found[0], other)]
    torch.testing.assert_close(*losses)


def test_trials_keep_their_order_and_their_weights() -> None:
    own = learner(2)
    found = rounds(own, Ends())
    trials: Any = own.experience(found).query
    lengths = sum(x.alive.sum(2) for x in found)  # [T, R]
    assert trials.x.shape[2] == int(lengths.max())
    assert lengths.min() < 2 * Ends.horizon
    assert ((trials.weights > 0).sum(2) == lengths).all()
    torch.testing.assert_close(trials.weights.sum((1, 2)), torch.ones(3))
    begins = trials.x[..., -1] * (trials.weights > 0)
    assert (begins.sum(2) == 2).all()  # two rollouts began in each trial
    for t, r in ((0, 0), (2, 5)):
        kept = torch.cat([x.actions[t, r][x.alive[t, r]] for x in found])
        torch.testing.assert_close(trials.actions[t, r, : len(kept)], kept)


def test_trials_have_standardised_advantages_of_their_settings() -> None:
    """Of what the policy took in; every step took place."""
    own = learner(1)
    (found,) = rounds(own, Short())
    for discount, lam in ((0.9, 0.5), (0.9, 1.0), (0.5, 0.5)):
        good, weights = returns.standardised(found, discount, lam)
        trials = own.digest(found, discount, lam)
        assert torch.equal(trials.advantages, good)
        assert torch.equal(trials.weights, weights)


def test_a_rollout_alone_goes_on_from_the_first_trial() -> None:
    memory = Memory(torch.randn(3, 8), torch.randn(3, 2), torch.randn(3, 1))
    assert all(torch.equal(leaf, whole[:1]) for leaf, whole in zip(learner().single(memory), memory, strict=True))


def test_the_deviation_does_not_go_below_its_least() -> None:
    policy = GaussianGRU(2, 2, 4, least=0.01)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-100.0, -4.0]))
    found = policy.actions(torch.zeros(1, 4)).log_std
    torch.testing.assert_close(found, torch.tensor([[math.log(0.01), -4.0]]))


def test_nothing_read_leaves_the_memory() -> None:
    own = learner(1)
    trials: Any = tree.index(digest(rounds(own, Short())[0]), 0)
    nothing = trials._replace(weights=torch.zeros_like(trials.weights))
    state = Memory(torch.randn(6, 8), torch.randn(6, 2), torch.randn(6, 1))
    torch.testing.assert_close(own.adapt(state, nothing), state)


def test_a_ratio_counts_up_to_the_clip() -> None:
    """One step of advantage +-1 whose action is twice as likely as when it was acted: worth 1.2 and -2."""
    own = RL2(GaussianGRU(2, 2, 4), episodes=2)
    assert own.clip == 0.2
    x, log_std = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 2)
    now = own.predict(own.init(), x)
    with torch.no_grad():
        own.policy.log_std.zero_()
        actions = now.mean + torch.tensor([0.3, -0.2])
        z = actions - now.mean
        acted = actions - z * (1 + 2 * math.log(2) / z.square().sum()).sqrt()  # where it was half as likely
    one = torch.ones(1, 1)
    for sign, worth in ((1.0, 1.2), (-1.0, -2.0)):
        trials = Trials(x, actions, one, sign * one, one, acted, log_std)
        assert float(own.loss(Task(trials, trials))[0].detach()) == pytest.approx(-worth, rel=1e-5)  # pyright: ignore


def test_it_learns_to_find_the_goal_from_what_it_was_paid() -> None:
    """One of two goals, which it cannot see: after training the second rollout of a trial beats the first."""

    class Two(Short):
        def sample(self, generator: torch.Generator, num_tasks: int) -> Any:
            sign = torch.randint(2, (num_tasks, 1), generator=generator).double().numpy() * 2 - 1
            return sign * np.array([[0.5, 0.0]])

    own = learner(2, 16)
    outer, acting = Outer(batch=10, meta_lr=0.01), Acting(rollouts=10, method="ppo")
    list(meta_train(own, Two(), outer, acting, steps=40))
    before, after = (mean for _, mean, _ in evaluate(own, Two(), 20, 20, 1).per_step)
    assert after > before + 0.3
