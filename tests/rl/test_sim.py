"""The batched simulation has the bits of one simulation after another, rewards are those of the state after the action,
and what goes wrong is told by name.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kshot.numerics import seeding
from kshot.tasks.control import paper
from kshot.tasks.control.control import Control
from kshot.tasks.control.mujoco import Mujoco
from kshot.tasks.control.paper import Point
from kshot.tasks.control.registry import families, family
from kshot.tasks.control.sim import Mujocos

mujoco = pytest.importorskip("mujoco", reason="needs kshot[rl]")
ROBOTS = [name for name in families() if isinstance(family(name), paper.Paper)]


class Alone:
    """One simulation, by the manual: `mj_step`, then everything at the new state; formulas written out again."""

    def __init__(self, family: Any, goal: float):
        self.family, self.goal = family, goal
        self.model, self.data = family.model, mujoco.MjData(family.model)
        self.torso = self.model.body("torso").id

    def set(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, self.data)
        return self.observe()

    def com_velocity(self) -> np.ndarray:
        """Momentum over mass, from the velocities of the bodies' own centres of mass."""
        total, mass = np.zeros(3), 0.0
        for body in range(1, self.model.nbody):
            spatial = np.zeros(6)
            mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_BODY, body, spatial, 0)
            total += self.model.body_mass[body] * spatial[3:]
            mass += self.model.body_mass[body]
        return total / mass

    def contacts(self) -> np.ndarray:
        mujoco.mj_rnePostConstraint(self.model, self.data)
        return np.clip(self.data.cfrc_ext, -1, 1).flatten()

    def observe(self) -> np.ndarray:
        com = self.data.subtree_com[self.torso]
        if self.family.name.startswith("cheetah"):
            return np.concatenate([self.data.qpos[1:], self.data.qvel, com])
        rotation = self.data.xmat[self.torso].flatten()
        return np.concatenate([self.data.qpos, self.data.qvel, self.contacts(), rotation, com])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        action = np.clip(action, -1, 1)
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        v, name = self.com_velocity()[0], self.family.name
        paid = self.goal * v if name.endswith("direction") else -abs(v - self.goal)
        if name.startswith("cheetah"):
            return self.observe(), paid - 0.05 * (action**2).sum(), False
        paid += (1.0 if name.endswith("velocity") else 0.0) + 0.05
        paid -= 0.005 * (action**2).sum() + 0.0005 * (self.contacts() ** 2).sum()
        return self.observe(), paid, not 0.2 <= self.data.qpos[2] <= 1.0


@pytest.mark.parametrize("name", ROBOTS)
def test_equals_one_simulation_after_another(name: str) -> None:
    """Whole episodes of two tasks and two rollouts each, in threads."""
    tasks = family(name)
    assert isinstance(tasks, Mujoco)
    goals = tasks.sample(seeding.generator(0), 2)
    many = tasks.simulator(goals, 2, threads=2)
    assert isinstance(many, Mujocos)
    observed = many.reset(np.random.default_rng(0))
    start = many.physics.qpos.copy(), many.physics.qvel.copy()
    single = [Alone(tasks, goals[i // 2, 0]) for i in range(4)]
    for i, one in enumerate(single):
        np.testing.assert_allclose(one.set(start[0][i], start[1][i]), observed[i], atol=1e-12)
    rng, ended = np.random.default_rng(1), [False] * 4
    for _ in range(tasks.horizon):
        actions = 1.5 * rng.standard_normal((4, tasks.action))
        before = many.alive.copy()
        observed, rewards = many.step(actions)
        for i, one in enumerate(single):
            if not before[i]:
                assert ended[i]
                assert rewards[i] == 0
                continue
            seen, paid, ended[i] = one.step(actions[i])
            np.testing.assert_allclose(observed[i], seen, rtol=1e-9, atol=1e-9)
            assert rewards[i] == pytest.approx(paid, abs=1e-9)
            assert many.alive[i] != ended[i]
    assert many.alive.all() or not name.startswith("cheetah")


def test_v5_cheetah_is_gymnasiums() -> None:
    """Over a whole episode: gymnasium's own HalfCheetah-v5, its control weight set to ProMP's."""
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("HalfCheetah-v5", ctrl_cost_weight=0.05).unwrapped
    env.reset(seed=0)
    many = family("v5-cheetah-direction").simulator(np.array([[1.0], [-1.0]]), 2)
    assert isinstance(many, Mujocos)
    many.reset(np.random.default_rng(0))
    env.set_state(many.physics.qpos[0], many.physics.qvel[0])
    rng = np.random.default_rng(1)
    for _ in range(200):
        actions = rng.uniform(-1, 1, (4, 6))
        where = many.physics.qpos[:, 0].copy()
        observed, rewards = many.step(actions)
        seen, paid, *_ = env.step(actions[0])
        np.testing.assert_allclose(observed[0], seen, rtol=1e-9, atol=1e-9)
        assert rewards[0] == pytest.approx(paid, abs=1e-9)
        backwards = -(many.physics.qpos[:, 0] - where) / 0.05 - 0.05 * (actions**2).sum(1)
        np.testing.assert_allclose(rewards[2:], backwards[2:])


@pytest.mark.parametrize("task", ["direction", "velocity", "goal"])
def test_v5_ant_is_gymnasiums_but_for_stale_forces(task: str) -> None:
    """Against a loop of `mj_step`, and gymnasium's own observations where they are not a step old."""
    tasks = family(f"v5-ant-{task}")
    assert isinstance(tasks, Mujoco)
    goals = tasks.sample(seeding.generator(0), 1)
    many = tasks.simulator(goals, 1)
    assert isinstance(many, Mujocos)
    many.reset(np.random.default_rng(0))
    model, data = tasks.model, mujoco.MjData(tasks.model)
    data.qpos[:], data.qvel[:] = many.physics.qpos[0], many.physics.qvel[0]
    rng, first = np.random.default_rng(1), 2 if task != "goal" else 0
    for _ in range(tasks.horizon):
        action, where = rng.uniform(-1, 1, (1, 8)), data.qpos[0]
        where = float(where)
        observed, rewards = many.step(action)
        data.ctrl[:] = action[0]
        mujoco.mj_step(model, data, 5)
        mujoco.mj_forward(model, data)
        mujoco.mj_rnePostConstraint(model, data)
        forces = np.clip(data.cfrc_ext[1:], -1, 1)
        seen = np.concatenate([data.qpos[first:], data.qvel, forces.flatten()])
        np.testing.assert_allclose(observed[0], seen, rtol=1e-8, atol=1e-8)
        v, up = (data.qpos[0] - where) / 0.05, 0.2 <= data.qpos[2] <= 1.0
        paid = {"direction": goals[0, 0] * v, "velocity": -abs(v - goals[0, 0]),
                "goal": -np.abs(data.qpos[:2] - goals[0]).sum() if task == "goal" else 0}[task]  # fmt: skip
        paid += -(0.1 if task == "goal" else 0.5) * (action**2).sum() - 5e-4 * (forces**2).sum()
        paid += (task != "goal") * up
        assert rewards[0] == pytest.approx(paid, abs=1e-8)
        assert many.alive[0] == (up or task == "goal")
        if not many.alive[0]:
            break


def test_rewards_are_of_the_state_after_the_action() -> None:
    """Euler's steps are semi-implicit: a step goes as far as its new velocity says, not its old one."""
    tasks = family("cheetah-direction")
    sim = tasks.simulator(np.array([[1.0]]), 1)
    assert isinstance(sim, Mujocos)
    sim.reset(np.random.default_rng(0))
    rng, paid, went = np.random.default_rng(2), [], []
    for _ in range(50):
        where, actions = sim.physics.com[0, 0], rng.uniform(-1, 1, (1, 6))
        paid.append(sim.step(actions)[1][0] + 0.05 * (actions**2).sum())
        went.append((sim.physics.com[0, 0] - where) / 0.01)
    now = np.abs(np.array(went[1:]) - paid[1:]).mean()
    stale = np.abs(np.array(went[1:]) - paid[:-1]).mean()
    assert now < 0.2 * stale


def test_threads_change_no_bit() -> None:
    tasks = family("cheetah-velocity")
    goals = tasks.sample(seeding.generator(3), 3)
    found = []
    for threads in (1, 2):
        sim = tasks.simulator(goals, 2, threads)
        sim.reset(np.random.default_rng(0))
        rng = np.random.default_rng(1)
        found.append([sim.step(rng.standard_normal((6, 6)))[0] for _ in range(30)][-1])
    assert np.array_equal(*found)


def test_start_is_noise_around_rest() -> None:
    tasks = family("ant-velocity")
    sim = tasks.simulator(np.zeros((1, 1)), 400)
    assert isinstance(sim, Mujocos)
    assert isinstance(tasks, Mujoco)
    sim.reset(np.random.default_rng(0))
    assert tasks.rest[2] == pytest.approx(0.55)
    assert np.allclose(sim.physics.qpos.mean(0), tasks.rest, atol=0.003)
    assert np.allclose(sim.physics.qvel.std(0), 0.1, atol=0.02)
    assert np.allclose((sim.physics.qpos - tasks.rest).std(0), 0.01, atol=0.002)


def test_the_papers_constants() -> None:
    cheetah, ant = family("cheetah-direction"), family("ant-direction")
    assert isinstance(cheetah, Mujoco)
    assert isinstance(ant, Mujoco)
    assert (cheetah.model.opt.timestep, ant.model.opt.timestep) == (0.01, 0.02)
    assert ant.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    assert cheetah.model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
    assert np.allclose(ant.model.geom_solref, [0.02, 1])
    assert np.allclose(ant.model.geom_solimp[:, :3], [0.8, 0.8, 0.01])
    assert np.allclose(ant.model.actuator_gear[:, 0] * ant.model.actuator_ctrlrange[:, 1], 150)
    assert (cheetah.horizon, cheetah.observation, ant.horizon, ant.observation) == (200, 20, 200, 125)


def test_goals() -> None:
    def drawn(name: str) -> np.ndarray:
        return family(name).sample(seeding.generator(0), 500)

    assert set(np.unique(drawn("cheetah-direction"))) == {-1.0, 1.0}
    assert 0 <= drawn("cheetah-velocity").min() < 0.05
    assert 1.95 < drawn("cheetah-velocity").max() <= 2
    assert 2.9 < drawn("ant-velocity").max() <= 3
    assert np.abs(drawn("point")).max() <= 0.5
    assert drawn("point").shape == (500, 2)


def test_goals_and_starts_of_v5() -> None:
    velocity = family("v5-cheetah-velocity").sample(seeding.generator(0), 500)
    assert 0 <= velocity.min() < 0.1
    assert 2.9 < velocity.max() <= 3
    away = np.linalg.norm(family("v5-ant-goal").sample(seeding.generator(0), 2000), axis=1)
    assert 2.9 < away.max() <= 3
    assert np.mean(away < 1.5) == pytest.approx(0.25, abs=0.04)  # uniform in the disc
    tasks = family("v5-cheetah-direction")
    assert set(np.unique(tasks.sample(seeding.generator(0), 500))) == {-1.0, 1.0}
    sim = tasks.simulator(np.ones((1, 1)), 1000)
    assert isinstance(sim, Mujocos)
    assert isinstance(tasks, Mujoco)
    sim.reset(np.random.default_rng(0))
    away = np.abs(sim.physics.qpos - tasks.rest)
    assert 0.099 < away.max() <= 0.1
    assert away.mean() == pytest.approx(0.05, abs=0.002)
    assert sim.physics.qvel.std() == pytest.approx(0.1, abs=0.003)


def test_point_finds_its_place() -> None:
    sim = Point().simulator(np.array([[0.3, -0.2], [0.5, 0.5]]), 1)
    sim.reset(np.random.default_rng(0))
    observed, rewards = sim.step(np.array([[9.0, -2.0], [1.0, 0.0]]))  # clipped to 0.1 a step
    np.testing.assert_allclose(observed, [[0.1, -0.1], [0.1, 0.0]])
    np.testing.assert_allclose(rewards, [-np.hypot(0.2, 0.1), -np.hypot(0.4, 0.5)])
    sim.step(np.array([[1.0, -1.0], [0, 0]]))
    assert sim.alive.tolist() == [True, True]
    sim.step(np.array([[1.0, 0.0], [0, 0]]))
    assert sim.alive.tolist() == [False, True]
    observed, rewards = sim.step(np.array([[1.0, 0.0], [1, 0]]))
    np.testing.assert_allclose(observed, [[0.3, -0.2], [0.2, 0.0]])
    assert rewards[0] == 0


def test_an_oracle_sees_the_goal() -> None:
    told = family("point", seen=True)
    assert (told.observation, told.name) == (4, "point-seen")
    sim = told.simulator(np.array([[0.3, -0.2]]), 2)
    np.testing.assert_allclose(sim.reset(np.random.default_rng(0)), [[0, 0, 0.3, -0.2]] * 2)
    np.testing.assert_allclose(sim.step(np.ones((2, 2)))[0], [[0.1, 0.1, 0.3, -0.2]] * 2)


def test_divergence_ends_a_rollout_and_names_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tasks = family("cheetah-velocity")
    sim = tasks.simulator(np.array([[0.5], [1.25]]), 2)
    assert isinstance(sim, Mujocos)
    sim.reset(np.random.default_rng(0))
    sim.step(np.zeros((4, 6)))
    sim.physics.qvel[2] = 1e12
    with pytest.warns(UserWarning, match=r"1 rollouts of cheetah-velocity diverged.*1 \(goal \[1\.25\]\)"):
        observed, rewards = sim.step(np.zeros((4, 6)))
    assert sim.alive.tolist() == [True, True, False, True]
    assert rewards[2] == 0
    assert np.isfinite(observed).all()
    assert np.isfinite(rewards).all()
    observed, rewards = sim.step(np.zeros((4, 6)))  # the others go on
    assert rewards[2] == 0
    assert sim.alive.sum() == 3
    assert not list(tmp_path.iterdir())  # no MUJOCO_LOG.TXT


def test_nan_actions_end_a_rollout() -> None:
    sim = family("cheetah-direction").simulator(np.array([[1.0]]), 2)
    sim.reset(np.random.default_rng(0))
    actions = np.zeros((2, 6))
    actions[1, 3] = np.nan
    with pytest.warns(UserWarning, match="diverged"):
        observed, rewards = sim.step(actions)
    assert sim.alive.tolist() == [True, False]
    assert np.isfinite(observed).all()
    assert np.isfinite(rewards).all()


def test_nan_actions_end_a_point() -> None:
    sim = Point().simulator(np.array([[0.3, -0.2], [0.5, 0.5]]), 1)
    sim.reset(np.random.default_rng(0))
    sim.step(np.ones((2, 2)))
    with pytest.warns(UserWarning, match=r"1 rollouts of point diverged.* 1 \(goal \[0\.5, 0\.5\]\)"):
        observed, rewards = sim.step(np.array([[1.0, 1.0], [np.nan, 0.0]]))
    np.testing.assert_allclose(observed, [[0.2, 0.2], [0.1, 0.1]])
    assert rewards[1] == 0
    assert sim.alive.tolist() == [True, False]


@pytest.mark.parametrize("name", ["point", "cheetah-direction", "walker-body", "cheetah-velocity-seen"])
def test_simulators_take_rows_of_their_own_sizes_alone(name: str) -> None:
    """One number, a row too few or goals of another size would be broadcast."""
    tasks = family(name.removesuffix("-seen"), seen=name.endswith("-seen"))
    goals = tasks.sample(seeding.generator(0), 2)
    sim = tasks.simulator(goals, 2, 1)
    sim.reset(np.random.default_rng(0))
    a = tasks.action
    for shape in ((4, 1), (1, a), (a,), (3, a), (5, a), (4, a + 1), (4, a, 1), ()):
        with pytest.raises(ValueError, match=rf"shape \[4, {a}\]; got float64 of shape"):
            sim.step(np.zeros(shape))
    for wrong in (goals[0], goals[:, :-1], np.tile(goals, 2), goals[:0], np.full_like(goals, np.nan), "goals"):
        with pytest.raises(ValueError, match=f"is {tasks.goal} finite number"):
            tasks.simulator(wrong, 2)  # pyright: ignore
    with pytest.raises(ValueError, match="rollouts=0"):
        tasks.simulator(goals, 0)


def begin_and_step(sim: Any, actions: np.ndarray) -> None:
    sim.reset(np.random.default_rng(0))
    sim.step(actions)


@pytest.mark.parametrize(
    ("method", "make", "words"),
    [
        ("start", lambda p, n: (p.model.qpos0, np.zeros((n, 9))), r"`start` gave the shape \[9\] where \[4, 9\]"),
        ("start", lambda p, n: (np.zeros((n, 9)), np.zeros((n, 1))), r"`start` gave the shape \[4, 1\]"),
        ("observe", lambda p, n: p.qpos, r"`observe` gave the shape \[4, 9\] where \[4, 17\]"),
        ("controls", lambda p, n: np.zeros((n, 1)), r"`controls` gave the shape \[4, 1\] where \[4, 6\]"),
        ("reward", lambda p, n: np.zeros((n, 1)), r"`reward` gave the shape \[4, 1\] where \[4\]"),
        ("reward", lambda p, n: 0.0, r"`reward` gave the shape \[\] where \[4\]"),
        ("fallen", lambda p, n: np.zeros((n, 1), dtype=bool), r"`fallen` gave the shape \[4, 1\] where \[4\]"),
    ],
)
def test_what_a_family_makes_of_another_shape_is_refused(
    method: str, make: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would be broadcast over rollouts, motors or columns."""
    tasks = family("v5-cheetah-velocity")
    sim: Any = tasks.simulator(np.zeros((2, 1)), 2, 1)
    monkeypatch.setattr(tasks, method, lambda *_: make(sim.physics, 4))
    with pytest.raises(ValueError, match=words):
        begin_and_step(sim, np.zeros((4, 6)))


def test_what_is_observed_is_no_view_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family may hand out MuJoCo's own arrays."""
    tasks = family("v5-cheetah-velocity")
    tasks.observation = 9
    monkeypatch.setattr(tasks, "observe", lambda physics: physics.qpos)
    monkeypatch.setattr(tasks, "reward", lambda physics, actions, goals: physics.qvel[:, 0])
    sim = tasks.simulator(np.zeros((1, 1)), 2, 1)
    first = sim.reset(np.random.default_rng(0))
    before = first.copy()
    second, _ = sim.step(np.ones((2, 6)))
    np.testing.assert_array_equal(first, before)
    assert not np.array_equal(first, second)


def test_a_gymnasium_environment_is_no_family() -> None:
    """It is refused at once, wherever a family is asked for, with what to do."""
    from kshot.families.control.step import evaluate, meta_train
    from kshot.learners.policy.maml import PolicyMAML
    from kshot.learners.policy.policy import GaussianMLP
    from kshot.tasks.control.registry import register
    from kshot.testing import check_control

    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.envs.classic_control import PendulumEnv

    learner = PolicyMAML(GaussianMLP(2, 2, (4,)))
    env = gymnasium.make("Pendulum-v1")
    words = r"a gymnasium environment: .*subclass kshot.tasks.control.mujoco.Mujoco.*examples/05_own_robot.py"
    for given in (PendulumEnv, PendulumEnv(), env, lambda: env):
        with pytest.raises(TypeError, match=words):
            register("mine", given)  # pyright: ignore
    for use in (check_control, lambda it: evaluate(learner, it), lambda it: next(meta_train(learner, it))):
        with pytest.raises(TypeError, match=words):
            use(env)
        with pytest.raises(TypeError, match=r"pass Point\(\)"):
            use(Point)
    assert "mine" not in families()


def test_what_makes_no_family_is_not_registered() -> None:
    from kshot.tasks.control.registry import register

    class Mine(Point):
        name = "mine"
        action: Any = 0

    for given, words in (
        (dict, "the class dict"),
        ("HalfCheetah-v5", "an object of type str"),
        (None, "an object of type NoneType"),
        (lambda: None, "an object of type NoneType"),
        (Point(), "pass its class, Point"),
        (Control, "abstract class Control"),
    ):
        with pytest.raises(TypeError, match=words):
            register("mine", given)  # pyright: ignore
    with pytest.raises(ValueError, match="whose own name is 'point'"):
        register("mine", Point)
    for size in (0, -1, None, 2.0, True, "2"):
        Mine.action = size
        with pytest.raises(ValueError, match=f"mine: action is {size!r}, but a positive integer is needed"):
            register("mine", Mine)
    assert "mine" not in families()


def test_the_speed_that_pages_tell_is_beside_the_fastest_of_the_others() -> None:
    """And is the record's."""
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("simulation", root / "benchmarks/rl/simulation.py")
    assert spec is not None
    assert spec.loader is not None
    program = sys.modules["simulation"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    rows = json.loads((root / "benchmarks/results/rl-simulation.json").read_text("utf-8"))["rows"]
    name, times = program.fastest_peer(rows)
    assert name == "EnvPool, 800"
    for page in ("docs/results.md", "docs/control-results.md"):
        said = " ".join((root / page).read_text("utf-8").split())
        assert re.search(rf"{times:.2f} times (as fast as )?EnvPool", said), page
        ratio = rows["kshot, 800"]["steps_per_second"] / rows["SyncVectorEnv, 16"]["steps_per_second"]
        assert re.search(rf"{ratio:.1f} times (gymnasium's )?SyncVectorEnv", said), page


def test_unknown_tasks_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown control tasks 'cheetah-sideways': there are point, cheetah-dir"):
        family("cheetah-sideways")


@pytest.mark.parametrize("name", list(families()))
def test_equal_generators_give_equal_tasks(name: str) -> None:
    tasks: Control = family(name)
    a, b = (tasks.sample(seeding.generator(5), 4) for _ in range(2))
    assert a.shape == (4, tasks.goal)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, tasks.sample(seeding.generator(6), 4)) or tasks.name.endswith("direction")
