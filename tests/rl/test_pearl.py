"""PEARL beside closed forms: products of normal densities, the squashed normal's density, each loss in its own
networks, targets that follow, what a replay keeps; and a run that is killed and goes on."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kshot import engine
from kshot.core import Task
from kshot.families.control.settings import ControlRecipe, build
from kshot.families.control.step import Acting, Outer, evaluate, meta_train
from kshot.learners.policy.pearl import PEARL, Belief, Transitions, transitions
from kshot.learners.policy.policy import Squashed
from kshot.learners.policy.replay import Replay
from kshot.learners.policy.rollouts import Trajectory
from kshot.numerics import tree
from kshot.storage import checkpoint
from kshot.tasks.control.paper import Point


class Short(Point):
    """Rollouts of 6 steps."""

    horizon = 6


def made(**changes: float) -> PEARL:
    torch.manual_seed(0)
    return PEARL(2, 2, (8,), 3, **changes).double()  # pyright: ignore


def some(count: int, seed: int = 0) -> Transitions:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    gone = torch.tensor([0.9] * (count - 1) + [0.0], dtype=torch.float64)
    weights = torch.ones(count, dtype=torch.float64)
    return Transitions(normal(count, 2), normal(count, 2).tanh(), normal(count), normal(count, 2), gone, weights)


def test_a_belief_is_the_product_of_the_prior_and_a_normal_density_for_each_transition() -> None:
    learner, rows = made(), some(4)
    belief = learner.adapt(learner.init(), rows)
    z = torch.randn(50, 3, dtype=torch.float64)
    raw = learner.encoder(torch.cat([rows.x, rows.actions, rows.rewards[:, None]], 1))
    mean, variance = raw[:, :3], 1 / nn.functional.softplus(raw[:, 3:])
    total = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    for m, v in zip(mean, variance, strict=True):
        total = total + torch.distributions.Normal(m, v.sqrt()).log_prob(z)
    own = torch.distributions.Normal(belief.weighted / belief.precision, belief.precision.rsqrt())
    constant = total - own.log_prob(z)
    assert torch.allclose(constant, constant[:1].expand_as(constant), atol=1e-10)
    exact = torch.distributions.kl_divergence(own, torch.distributions.Normal(torch.zeros(3), torch.ones(3))).sum()
    assert torch.allclose(belief.kl(), exact)
    assert float(learner.init().kl()) == 0


def test_a_squashed_density_is_that_of_the_transformed_normal() -> None:
    policy = Squashed(
        torch.tensor([[0.3, -2.0]], dtype=torch.float64), torch.tensor([[-1.0, 0.5]], dtype=torch.float64)
    )
    noise = torch.randn(100, 2, dtype=torch.float64)
    actions, density = policy.with_density(noise)
    normal = torch.distributions.Normal(policy.mean, policy.log_std.exp())
    reference = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    assert torch.allclose(actions, policy.sample(noise))
    inside = actions.abs().amax(1) < 0.999999  # where its inverse has digits left
    assert torch.allclose(density[inside], reference.log_prob(actions[inside]).sum(1), rtol=1e-6)
    far = Squashed(torch.tensor([[50.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    assert bool(torch.isfinite(far.with_density(torch.zeros(1, 1, dtype=torch.float64))[1]).all())


def test_each_loss_has_a_gradient_in_its_own_networks_alone() -> None:
    """The losses written out one by one, each differentiated in its own weights, beside the gradient of their sum."""
    learner = made(weight=0.3, follow=0.1).eval()  # no noise: actions are the policy's means
    with torch.no_grad():
        for p in learner.targets.parameters():
            p.add_(0.1 * torch.randn_like(p))
        learner.log_temperature.fill_(math.log(0.2))
    task = Task(some(5, 1), some(7, 2))  # pyright: ignore
    query: Transitions = task.query  # pyright: ignore
    found, outcome = engine.meta_gradient(learner, tree.map_(lambda leaf: leaf[None], task), "loop")

    def q(net: nn.Module, x: torch.Tensor, a: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return net(torch.cat([x, a, z.expand(len(x), -1)], 1))[:, 0]

    belief = learner.adapt(learner.init(), task.support)  # pyright: ignore
    z = belief.weighted / belief.precision
    fixed = z.detach()

    def acted(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        what = learner.acts(x, fixed.expand(len(x), -1))
        return what.with_density(torch.zeros_like(what.mean))

    then, density = acted(query.after)
    worth = torch.minimum(*(q(t, query.after, then, fixed) for t in learner.targets)) - 0.2 * density
    goal = (query.rewards + query.discount * worth).detach()
    critics = sum(((q(c, query.x, query.actions, z) - goal) ** 2).mean() for c in learner.critics)
    of_critics = torch.autograd.grad(
        critics + 0.3 * belief.kl(), [*learner.critics.parameters(), *learner.encoder.parameters()]
    )
    actions, density = acted(query.x)
    policy = (0.2 * density - torch.minimum(*(q(c, query.x, actions, fixed) for c in learner.critics))).mean()
    of_policy = torch.autograd.grad(policy, [*learner.policy.parameters()])
    expected = [*of_critics, *of_policy, -density.detach().mean() + 2]
    names = ("critics.", "encoder.", "policy.", "log_temperature")
    own = [g for prefix in names for name, g in found.items() if name.startswith(prefix)]
    assert len(own) == len(expected)
    for a, b in zip(own, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    torch.testing.assert_close(outcome.metrics["kl"][0], belief.kl())
    torch.testing.assert_close(outcome.metrics["entropy"][0], -density.mean())


def test_rows_of_weight_0_change_nothing() -> None:
    """Neither the belief nor a loss nor its metrics."""
    learner, support, query = made().eval(), some(5, 1), some(7, 2)

    def filled(rows: Transitions) -> Transitions:
        more = some(3, 9)._replace(weights=torch.zeros(3, dtype=torch.float64))
        return Transitions(*(torch.cat([a, 5 * b]) for a, b in zip(rows, more, strict=True)))

    for a, b in zip(*(learner.adapt(learner.init(), rows) for rows in (support, filled(support))), strict=True):
        torch.testing.assert_close(a, b)
    plain, other = (learner.loss(Task(*pair)) for pair in ((support, query), (filled(support), filled(query))))  # pyright: ignore
    torch.testing.assert_close(plain, other)


def test_training_draws_z_from_the_belief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deviation above its mean where the noise is 1, for critics and targets alike."""
    learner, task = made(), Task(some(5, 1), some(7, 2))  # pyright: ignore
    monkeypatch.setattr(learner.noise, "forward", torch.ones_like)
    seen: list[torch.Tensor] = []
    for net in (*learner.critics, *learner.targets, learner.policy):
        net.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, -3:]))
    learner.loss(task)
    belief = learner.adapt(learner.init(), task.support)  # pyright: ignore
    normal = torch.distributions.Normal(belief.weighted / belief.precision, belief.precision**-0.5)
    assert len(seen) == 8
    for z in seen:
        torch.testing.assert_close(z, (normal.mean + normal.stddev).expand(7, 3))


def test_deviations_of_actions_stay_within_bounds() -> None:
    """Those of the authors' soft actor-critic: exp(-20) to exp(2)."""
    learner = made()
    with torch.no_grad():
        learner.policy[-1].bias[2:] = torch.tensor([100.0, -100.0])  # pyright: ignore
    found = learner.acts(torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)).log_std
    assert found.tolist() == [[2.0, -20.0]]


def test_targets_follow_the_critics_at_their_rate_and_no_optimiser_moves_them() -> None:
    learner = made(follow=0.25)
    with torch.no_grad():
        for p in learner.targets.parameters():
            p.zero_()
    critics = copy.deepcopy(learner.critics)
    optimizer = torch.optim.Adam(learner.parameters(), 1.0)
    gradients, _ = engine.meta_gradient(
        learner, tree.map_(lambda leaf: torch.stack([leaf] * 3), Task(some(3), some(4))), "vmap"
    )  # pyright: ignore
    engine.assign(learner, gradients)
    optimizer.step()
    for target, critic in zip(learner.targets.parameters(), critics.parameters(), strict=True):
        assert torch.allclose(target, 0.25 * critic)


def numbered(tasks: int, rollouts: int, first: int = 0, short: int = 6) -> Trajectory:
    """Rollouts whose observations tell task, rollout and time; the first ends after `short` steps."""
    shape = (tasks, rollouts, 6)
    task, rollout, time = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    seen = torch.stack([task * 100 + rollout + first, time], -1).float()
    alive = torch.ones(shape, dtype=torch.bool)
    alive[:, 0, short:] = False
    return Trajectory(seen, seen / 10, time.float(), alive, seen, torch.zeros(tasks, 1, 2))


def test_transitions_join_what_follows_and_end_where_a_rollout_ends() -> None:
    found = transitions(numbered(2, 2, short=3), 0.9)
    assert found.x.shape == (2, 10, 2)
    there = found.weights > 0
    assert torch.equal(found.after[there][:, 1], found.x[there][:, 1] + 1)
    ended = there & (found.discount == 0)
    assert ended.sum() == 2
    assert bool((found.x[ended][:, 1] == 2).all())
    assert bool((found.discount[there & ~ended] == torch.tensor(0.9)).all())


def test_a_replay_keeps_the_last_rollouts_and_makes_beliefs_of_the_last_visit() -> None:
    replay = Replay(Short(), np.zeros((3, 2)), 5)
    g = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="nothing was added"):
        replay.sample(g, 2, 4, 4, 0.9)
    replay.add(torch.tensor([2, 0]), [numbered(2, 2, 0), numbered(2, 2, 2, short=2)])
    replay.add(torch.tensor([2]), [numbered(1, 1, 10), numbered(1, 1, 11)])
    task = replay.sample(g, 200, 30, 40, 0.9)
    support, query = task.support, task.query
    own = support.x[..., 0]  # of the task first added as number 1 (kept as task 0): 100 + rollout
    last = own[own < 100]
    assert set(last.tolist()) == {10.0, 11.0}  # the last visit of task 2
    assert set(own[own >= 100].tolist()) == {100.0, 101.0, 102.0, 103.0}
    kept = query.x[..., 0]
    assert set(kept[kept < 100].tolist()) == {1.0, 2.0, 3.0, 10.0, 11.0}  # rollout 0 made room
    assert bool((query.after[..., 1] == query.x[..., 1] + 1).all())
    assert bool((query.x[..., 1] < 5).all())
    cut = query.x[..., 0] % 100 == 2  # it ended after two steps
    assert bool((query.x[cut][:, 1] < 2).all())
    assert bool(((query.discount == 0) == (cut & (query.x[..., 1] == 1))).all())
    again = Replay(Short(), replay.goals, 5)
    again.load_state_dict(replay.state_dict())
    same = [r.sample(torch.Generator().manual_seed(1), 4, 5, 6, 0.9) for r in (replay, again)]
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(same[0]), tree.leaves(same[1]), strict=True))
    with pytest.raises(ValueError, match="does not fit into 5"):
        replay.add(torch.tensor([1]), [numbered(1, 6)])


SETTINGS = (
    Outer(steps=4, batch=2, save_every=2),
    Acting(rollouts=2, method="sac", epochs=3, train_tasks=3, context=16, transitions=8, memory=200),
)


def test_a_run_that_is_cut_goes_on_with_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    def ends(out: Path, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        learner = PEARL(2, 2, (8,), 2)
        list(meta_train(learner, Short(), *SETTINGS, steps=steps, out=out, resume=resume))
        return checkpoint.load(out / "last.safetensors")[0]

    whole = ends(tmp_path / "whole", 4)
    assert {"replay.rewards", "replay.count", "optimizer.0.step"} < whole.keys()
    ends(tmp_path / "cut", 2)
    cut = ends(tmp_path / "cut", 4, resume=True)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)

    # As it was before: a replay in a file of its own, and one settings class for all.
    old = tmp_path / "old"
    ends(old, 2)
    tensors, info = checkpoint.load(old / "last.safetensors")
    kept = {n.removeprefix("replay."): t for n, t in tensors.items() if n.startswith("replay.")}
    checkpoint.save(old / "replay-2.safetensors", kept, {"step": 2})
    (old / "replay-9.safetensors").write_bytes(b"of a run that was killed while it wrote")
    info |= {"outer": {**info["outer"], **info["settings"].pop("acting")}}
    del info["family"], info["outer"]["momentum"], info["outer"]["schedule"]
    rest = {n: t for n, t in tensors.items() if not n.startswith("replay.")}
    checkpoint.save(old / "last.safetensors", rest, info)
    with pytest.raises(checkpoint.CheckpointError, match="with transitions=8 and not 9"):
        next(meta_train(PEARL(2, 2, (8,), 2), Short(), *SETTINGS, transitions=9, out=old, resume=True))
    cut = ends(old, 4, resume=True)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not list(old.glob("replay-*"))


def test_the_temperature_of_a_recipe_is_that_at_the_start() -> None:
    own = build(ControlRecipe("pearl", tasks="point", hidden=(8,), options={"temperature": 0.1}))
    assert isinstance(own, PEARL)
    assert float(own.log_temperature.detach().exp()) == pytest.approx(0.1)


def test_only_pearl_learns_from_what_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'sac' is for PEARL"):
        next(meta_train(PEARL(2, 2, (8,), 2), Short(), *SETTINGS, method="ppo"))


def test_a_belief_of_nothing_acts_by_the_prior_and_a_tested_one_by_its_own() -> None:
    learner = PEARL(2, 2, (8,), 2)
    curve = evaluate(learner, Short(), 3, 2, 2)
    assert len(curve.per_step) == 3
    assert curve.details["seen"] == 2
    states = Belief(torch.full((3, 2), 1e12), torch.full((3, 2), 5e11))  # z is 0.5, all but certainly
    actor = learner.actor(states)
    actor.begin(3, 4, torch.Generator().manual_seed(0))
    assert torch.allclose(actor.z, torch.full((3, 4, 2), 0.5), atol=1e-4)
    prior = learner.actor(learner.init())
    prior.begin(200, 50, torch.Generator().manual_seed(0))
    assert abs(float(prior.z.mean())) < 0.03
    assert abs(float(prior.z.std()) - 1) < 0.02
