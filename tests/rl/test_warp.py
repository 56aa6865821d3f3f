"""MuJoCo Warp beside MuJoCo over short horizons. Needs kshot[warp]; its kernels are compiled at first (minutes)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

mujoco: Any = pytest.importorskip("mujoco", reason="needs kshot[rl]")
pytest.importorskip("mujoco_warp", reason="needs kshot[warp]")

from kshot.numerics import seeding  # noqa: E402
from kshot.tasks.control.registry import family  # noqa: E402


def pair(name: str, rollouts: int = 2) -> tuple[Any, Any]:
    """Simulators of both backends at the same state."""
    found = []
    for backend in ("mujoco", "warp"):
        tasks: Any = family(name)
        tasks.backend = backend
        # A pyramid of friction is laid along two axes of the contact's plane, which the two choose differently where
        # feet slide in a plane; elliptic cones have no axes.
        tasks.model.opt.cone = int(mujoco.mjtCone.mjCONE_ELLIPTIC.value)
        goals = tasks.sample(seeding.generator(0, "goals"), 2)
        found.append(tasks.simulator(goals, rollouts, 1))
    return found[0], found[1]


@pytest.mark.parametrize("name", ["cheetah-direction", "v5-cheetah-velocity", "ant-velocity", "v5-ant-direction"])
def test_equals_mujoco_over_a_short_horizon(name: str) -> None:
    ours, warp = pair(name)
    observed = [simulator.reset(np.random.default_rng(0)) for simulator in (ours, warp)]
    np.testing.assert_allclose(observed[1], observed[0], rtol=1e-4, atol=1e-4)
    rng = np.random.default_rng(1)
    for _ in range(8):
        actions = rng.uniform(-1, 1, (4, ours.family.action))
        (x, paid), (wx, wpaid) = ours.step(actions), warp.step(actions)
        np.testing.assert_allclose(wpaid, paid, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(wx, x, rtol=1e-2, atol=1e-2)


def test_a_restart_touches_those_alone_that_it_is_asked_for() -> None:
    _, warp = pair("v5-cheetah-velocity")
    warp.reset(np.random.default_rng(0))
    for _ in range(3):
        warp.step(np.ones((4, 6)))
    before = warp.physics.qpos.copy()
    warp.restart(np.array([1]), np.random.default_rng(1))
    np.testing.assert_array_equal(warp.physics.qpos[[0, 2, 3]], before[[0, 2, 3]])
    assert np.abs(warp.physics.qpos[1]).max() < 0.5


def test_what_is_huge_ends_as_with_mujoco() -> None:
    for simulator in pair("v5-cheetah-velocity", 1):
        simulator.reset(np.random.default_rng(0))
        qpos, qvel = simulator.physics.qpos.copy(), simulator.physics.qvel.copy()
        qvel[1] = 1e6
        simulator.physics.reset(np.arange(2), qpos, qvel)
        with pytest.warns(UserWarning, match="1 rollouts of v5-cheetah-velocity diverged"):
            observed, rewards = simulator.step(np.zeros((2, 6)))
        assert simulator.alive.tolist() == [True, False]
        assert rewards[1] == 0
        assert np.abs(observed).max() < 100


def test_bodies_that_differ_are_refused() -> None:
    tasks: Any = family("walker-body")
    tasks.backend = "warp"
    with pytest.raises(ValueError, match="which the backend 'warp' has not"):
        tasks.simulator(tasks.sample(torch.Generator(), 2), 2, 1)
