"""The tasks as gymnasium's environments: its own checker, single and many, and a film where there is OpenGL."""

from __future__ import annotations

import copy
import functools
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="needs kshot[rl]")
pytest.importorskip("mujoco", reason="needs kshot[rl]")

from kshot.learners.policy.maml import PolicyMAML  # noqa: E402
from kshot.learners.policy.policy import GaussianMLP  # noqa: E402
from kshot.numerics import seeding  # noqa: E402
from kshot.tasks.control import gym  # noqa: E402
from kshot.tasks.control.registry import family  # noqa: E402

IDS = [f"kshot/{name}-v0" for name in gym.NAMES]


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_checker(name: str) -> None:
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(minimum|maximum) value is -?infinity.*")
        check_env(gymnasium.make(name).unwrapped, skip_render_check=not _opengl())


@functools.cache
def _opengl() -> bool:
    from kshot.tasks.control.camera import Camera, NoOpenGL

    try:
        Camera(family("v5-cheetah-direction"), 64, 48).close()
    except NoOpenGL:
        return False
    return True


def test_a_point_has_no_picture() -> None:
    with pytest.raises(ValueError, match=r"render_mode='rgb_array': point has \[\]"):
        gymnasium.make("kshot/PointGoal-v0", render_mode="rgb_array")


@pytest.mark.parametrize("name", ["AntBody", "HalfCheetahBody", "WalkerBody"])
def test_a_body_is_set(name: str) -> None:
    """The environment moves as the simulation of that body does, and a drawn body is the one that is told."""
    env = gymnasium.make(f"kshot/{name}-v0").unwrapped
    goals = env.sample_tasks(2)
    assert not np.array_equal(*goals)
    drawn = env.reset(seed=0)[1]["goal"]
    for goal in (drawn, *goals):
        if goal is not drawn:
            env.set_task(goal)
            np.testing.assert_array_equal(env.reset()[1]["goal"], goal)
        alone = family(gym.NAMES[name]).simulator(goal[None], 1, 1)
        alone.reset(np.random.default_rng(0))
        assert env._sim.physics.model.body_mass.tolist() == alone.physics.model.body_mass.tolist()
        alone.physics.reset(np.array([0]), env._sim.physics.qpos.copy(), env._sim.physics.qvel.copy())
        for _ in range(5):
            action = env.action_space.sample()
            seen, paid = alone.step(action[None].astype(float))
            observed, reward, *_ = env.step(action)
            np.testing.assert_allclose(observed, seen[0])
            assert reward == pytest.approx(paid[0])


def test_many_bodies() -> None:
    """Each has its own; one that starts anew by itself keeps it, and others come with a reset."""
    envs = gymnasium.make_vec("kshot/AntBody-v0", num_envs=3, max_episode_steps=2)
    told = envs.reset(seed=0)[1]["goal"]
    for _ in range(4):
        goals = envs.step(envs.action_space.sample())[-1]["goal"]
        np.testing.assert_array_equal(goals, told)
    assert not np.array_equal(envs.reset()[1]["goal"], told)
    given = family("ant-body-lost").sample(torch.Generator().manual_seed(0), 3)
    np.testing.assert_array_equal(envs.reset(options={"goal": given})[1]["goal"], given)
    assert all((part.family.model.nu == 6) for _, part in envs.unwrapped._sim.parts)


def test_every_seed_counts() -> None:
    envs = gymnasium.make_vec("kshot/HalfCheetahVelocity-v0", num_envs=2)
    starts = [envs.reset(seed=seed)[0] for seed in (5, [5, 6], [5, 7], [5, 6], 5)]
    assert np.array_equal(starts[0], starts[4])
    assert np.array_equal(starts[1], starts[3])
    assert not np.array_equal(starts[1], starts[2])


def test_a_task_is_set_and_told() -> None:
    env = gymnasium.make("kshot/HalfCheetahVelocity-v0", goal=[0.5])
    assert env.reset(seed=0)[1]["goal"] == 0.5
    env.unwrapped.set_task([1.5])
    assert env.reset()[1]["goal"] == 1.5
    assert env.reset(options={"goal": [0.25]})[1]["goal"] == 0.25
    env.unwrapped.set_task(None)
    goals = {float(env.reset()[1]["goal"][0]) for _ in range(5)}
    assert len(goals) == 5
    assert env.unwrapped.sample_tasks(7).shape == (7, 1)
    with pytest.raises(ValueError, match=r"goal of cheetah-velocity is 1 finite number; got the shape \[2\]"):
        env.unwrapped.set_task([1.0, 2.0])
    for step in range(1, 201):
        *_, ended, cut, _ = env.step(env.action_space.sample())
        assert (ended, cut) == (False, step == 200)


def test_many_are_one_after_another() -> None:
    """Equal starts and actions: the observations and rewards of single environments."""
    envs = gymnasium.make_vec("kshot/HalfCheetahDirection-v0", num_envs=3, goals=[[1.0], [-1.0], [1.0]])
    observed, told = envs.reset(seed=3)
    assert observed.shape == (3, 20)
    assert told["goal"][:, 0].tolist() == [1, -1, 1]
    singles = []
    for i in range(3):
        env = gymnasium.make("kshot/HalfCheetahDirection-v0", goal=told["goal"][i]).unwrapped
        env.reset(seed=0)
        physics, start = env._sim.physics, envs.unwrapped._sim.physics
        physics.reset(np.array([0]), start.qpos[i], start.qvel[i])
        singles.append(env)
    envs.action_space.seed(0)
    for _ in range(20):
        actions = envs.action_space.sample()
        observed, rewards, ended, cut, _ = envs.step(actions)
        for i, env in enumerate(singles):
            seen, paid, *_ = env.step(actions[i])
            np.testing.assert_allclose(observed[i], seen)
            assert rewards[i] == pytest.approx(paid)
        assert not ended.any()
        assert not cut.any()


def test_those_that_are_over_start_anew() -> None:
    envs = gymnasium.make_vec("kshot/PointGoal-v0", num_envs=2, goals=[[0.1, 0.0], [0.5, 0.5]])
    envs.reset(seed=0)
    _, _, ended, _, _ = envs.step(np.array([[1.0, 0.0], [0.0, 0.0]], dtype=np.float32))
    assert ended.tolist() == [True, False]
    observed, rewards, ended, _, _ = envs.step(np.array([[1.0, 1.0], [0.0, 1.0]], dtype=np.float32))
    np.testing.assert_allclose(observed, [[0, 0], [0, 0.1]])
    assert rewards[0] == 0
    assert not ended.any()
    for _ in range(98):
        *_, cut, _ = envs.step(np.zeros((2, 2), dtype=np.float32))
    assert cut.tolist() == [False, True]  # the first one started two steps later
    *_, cut, _ = envs.step(np.zeros((2, 2), dtype=np.float32))
    assert cut.tolist() == [False, False]
    with pytest.raises(ValueError, match="1 goals for 2 environments"):
        envs.unwrapped.set_tasks([[0.0, 0.0]])


def _again(env: Any, steps: int) -> list[Any]:
    """What so many steps and a start after them show."""
    env.action_space.seed(7)
    found: list[Any] = []
    for _ in range(steps):
        found += env.step(env.action_space.sample())[:4]
    return [*found, env.reset()[0]]


@pytest.mark.parametrize("name", IDS)
def test_copies_go_on_from_the_same_state(name: str) -> None:
    """Bit for bit what the original does next, after which a start draws the same; and each by itself."""
    env = gymnasium.make(name)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(2):
        env.step(env.action_space.sample())
    copies = [copy.deepcopy(env), pickle.loads(pickle.dumps(env)), copy.copy(env.unwrapped)]
    expected = _again(env, 3)
    for other in copies:
        for value, right in zip(_again(other, 3), expected, strict=True):
            np.testing.assert_array_equal(value, right)
    assert copies[0].spec.id == name


@pytest.mark.parametrize("name", ["PointGoal", "AntDirection", "WalkerBody"])
def test_copies_of_many_go_on_from_the_same_state(name: str) -> None:
    """Over ends, cuts and starts; ants with contacts, whose forces depend on where the solver started."""
    envs = gymnasium.make_vec(f"kshot/{name}-v0", num_envs=3, max_episode_steps=15)
    copies = [copy.deepcopy(envs), copy.copy(envs.unwrapped)]  # before the first start
    starts = [one.reset(seed=0)[0] for one in (envs, *copies)]
    assert all(np.array_equal(start, starts[0]) for start in starts)
    envs.action_space.seed(0)
    for _ in range(20):
        envs.step(envs.action_space.sample())
    copies = [copy.deepcopy(envs), pickle.loads(pickle.dumps(envs)), copy.copy(envs.unwrapped)]
    for other in copies if name == "AntDirection" else ():
        for array in ("qpos", "qvel", "ctrl", "was", "com", "com_velocity", "rotation", "contact_forces"):
            found, right = (getattr(one.unwrapped._sim.physics, array) for one in (other, envs))
            np.testing.assert_array_equal(found, right)
            assert right.any()
        np.testing.assert_array_equal(*(one.unwrapped._sim.physics.batch.state for one in (other, envs)))
    expected = _again(envs, 20)
    for other in copies:
        for value, right in zip(_again(other, 20), expected, strict=True):
            np.testing.assert_array_equal(value, right)


def test_a_copy_draws_and_closes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from kshot.tasks.control import camera

    if not _opengl():
        pytest.skip("no OpenGL")
    monkeypatch.setattr(camera, "Camera", functools.partial(camera.Camera, width=64, height=48))
    env = gymnasium.make("kshot/WalkerBody-v0", render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    copies = [copy.deepcopy(env), pickle.loads(pickle.dumps(env)), copy.copy(env.unwrapped)]
    for other in copies:
        np.testing.assert_array_equal(other.render(), frame)
        other.close()
    np.testing.assert_array_equal(env.render(), frame)
    with pytest.raises(TypeError, match="make another Camera"):
        copy.deepcopy(env.unwrapped._renderer)
    env.close()


def test_a_divergence_is_seen_in_a_copy_too() -> None:
    """MuJoCo counts its warnings: a copy goes on counting."""
    tasks = family("cheetah-velocity")
    simulator: Any = tasks.simulator(np.array([[0.5], [1.0]]), 1)
    simulator.reset(np.random.default_rng(0))
    for again in (False, True):
        if again:
            simulator = copy.deepcopy(simulator)
            simulator.restart(np.array([0]), np.random.default_rng(0))
        simulator.physics.qvel[0] = 1e12
        with pytest.warns(UserWarning, match="diverged"):
            simulator.step(np.zeros((2, 6)))
        assert copy.copy(simulator).lost.tolist() == [True, False]
        assert copy.copy(simulator).alive.tolist() == [False, True]
        np.testing.assert_array_equal(copy.copy(simulator).physics.diverged.sum(1), simulator.faults)


WRONG: dict[str, Any] = {
    "one number": np.array([0.5]),
    "a number": 0.5,
    "one more": np.zeros(7),
    "a row too many": np.zeros((1, 6)),
    "NaN": np.array([0, 0, 0, np.nan, 0, 0]),
    "infinite": np.full(6, np.inf),
    "complex": np.zeros(6, dtype=complex),
    "boolean": np.zeros(6, dtype=bool),
    "words": ["a"] * 6,
    "ragged": [[0.0], [0.0, 0.0]],
    "nothing": None,
    "a tensor with a gradient": torch.zeros(6, requires_grad=True),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_action_of_another_kind_is_refused(kind: str) -> None:
    """And leaves the environment where it was."""
    env = gymnasium.make("kshot/HalfCheetahDirection-v0", goal=[1.0]).unwrapped
    env.reset(seed=0)
    before = env._sim.physics.qpos.copy()
    with pytest.raises(
        ValueError, match=r"actions of cheetah-direction are (6 numbers .*shape \[6\]; got|not finite at)"
    ):
        env.step(WRONG[kind])
    np.testing.assert_array_equal(env._sim.physics.qpos, before)
    env.step([0] * 6)  # integers are numbers


@pytest.mark.parametrize("shape", [(2,), (1, 2), (2, 2), (3, 1), (3, 3), (4, 2), (3, 2, 1)])
def test_actions_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    envs = gymnasium.make_vec("kshot/PointGoal-v0", num_envs=3)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"a row for each of 3 rollouts: shape \[3, 2\]; got float64 of shape"):
        envs.step(np.zeros(shape))
    with pytest.raises(ValueError, match=r"not finite at \[1, 0\]"):
        envs.step(np.array([[0, 0], [np.nan, 0], [0, 0]]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"goals": [[0.1, 0.2]]}, "1 goals for 2 environments"),
        ({"goals": [0.1, 0.2]}, r"a goal of point is 2 finite numbers.*row for each task; got the shape \[2\]"),
        ({"goals": [[0.1], [0.2]]}, r"got the shape \[2, 1\]"),
        ({"goals": [[0.1, np.nan], [0, 0]]}, r"got \[\[0.1, nan\]\]"),
        ({"goals": [["a", "b"], ["c", "d"]]}, "a goal of point is 2 finite numbers"),
        ({"num_envs": 0}, "num_envs=0: at least 1"),
        ({"max_episode_steps": 0}, "max_episode_steps=0: at least 1"),
        ({"render_mode": "rgb_array"}, "many at a time have no images"),
    ],
)
def test_many_of_another_kind_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.ControlVectorEnv("point", **{"num_envs": 2, **more})


def test_what_an_environment_cannot_take_is_said() -> None:
    for env in (gym.ControlEnv("point"), gym.ControlVectorEnv("point", 2)):
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(env.action_space.sample())
        with pytest.raises(ValueError, match=r"has \['goals'\]: 'goal' is the only option"):
            env.reset(options={"goals": [0.1, 0.2]})
    for goal in (0.1, [0.1], [[0.1, 0.2]], [np.inf, 0], "left", [None, None]):
        with pytest.raises(ValueError, match="a goal of point is 2 finite numbers; got"):
            gym.ControlEnv("point", goal=goal)  # pyright: ignore
        with pytest.raises(ValueError, match="a goal of point is 2 finite numbers; got"):
            gym.ControlEnv("point").reset(options={"goal": goal})


def test_an_observation_of_another_size_than_the_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from kshot.tasks.control.paper import Point

    monkeypatch.setattr(Point, "observation", 3)
    for env, shape in ((gym.ControlEnv("point"), "[2] and says [3]"), (gym.ControlVectorEnv("point", 4), "[4, 2] and")):
        with pytest.raises(ValueError, match=re.escape(f"point observes an array {shape}")):
            env.reset(seed=0)


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_a_film(ending: str, tmp_path: Path) -> None:
    from kshot.families.control.video import film
    from kshot.tasks.control.camera import NoOpenGL

    tasks = family("v5-cheetah-direction")
    tasks.horizon = 12
    with seeding.seeded(0, "weights"):
        learner = PolicyMAML(GaussianMLP(tasks.observation, tasks.action, (8,)), inner_lr=3.0)
    path = tmp_path / f"film.{ending}"
    try:
        returns = film(learner, tasks, np.array([1.0]), path, rollouts=2, width=64, height=48)
    except NoOpenGL as error:
        assert "libegl1" in str(error)  # noqa: PT017
        pytest.skip(f"no OpenGL: {error}")
    import imageio.v3 as imageio

    pictures = imageio.imread(path)
    assert pictures.shape[1:3] == (48, 128)
    assert len(pictures) >= 6
    assert pictures.std() > 5
    before, after = (pictures[-1, 16:, half].astype(float) for half in (slice(64), slice(64, None)))  # below the words
    assert np.abs(before - after).mean() > 1
    assert returns[0] != returns[1]
    assert all(np.isfinite(returns))
    with pytest.raises(ValueError, match=r"videos end in \.mp4 or \.gif"):
        film(learner, tasks, np.array([1.0]), tmp_path / "film.avi")
    for wrong, message in (({"steps": -1}, "steps=-1"), ({"rollouts": 0}, "rollouts=0")):
        with pytest.raises(ValueError, match=message):
            film(learner, tasks, np.array([1.0]), path, **wrong)
    with pytest.raises(ValueError, match="is 1 finite number; got"):
        film(learner, tasks, np.array([np.nan]), path)
    with pytest.raises(ValueError, match="point has no body"):
        film(_point(), family("point"), np.zeros(2), path)


def test_what_a_film_cannot_show_is_said(tmp_path: Path) -> None:
    from dataclasses import asdict

    from kshot.families.control import settings as recipes
    from kshot.families.control.step import Outer, meta_train

    recipe = recipes.ControlRecipe(tasks="point", hidden=(4,), outer=Outer(steps=0))
    list(
        meta_train(
            recipes.build(recipe),
            recipes.control(recipe),
            recipe.outer,
            out=tmp_path,
            settings=asdict(recipe),
        )
    )
    film = ["video", str(tmp_path), "--out", str(tmp_path / "film.gif")]
    for more, message in (
        (["--width", "15"], "--width 15 --height 360: give even numbers"),
        (["--on", "cheetah-body"], "but cheetah-body has 17 and 6"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "kshot", *film, *more], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert message in " ".join(done.stderr.split())


def _point() -> PolicyMAML:
    return PolicyMAML(GaussianMLP(2, 2, (4,)))


def test_without_opengl_the_error_says_what_to_install() -> None:
    code = (
        "from kshot.tasks.control.camera import Camera; from kshot.tasks.control.registry import family; "
        "Camera(family('cheetah-velocity'))"
    )
    import os

    environment = {**os.environ, "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa", "LD_LIBRARY_PATH": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    if done.returncode == 0:
        pytest.skip("OSMesa is installed")
    assert "libosmesa6" in done.stderr.splitlines()[-1]


def test_glfw_without_a_display_is_told_in_a_line() -> None:
    code = (
        "from kshot.tasks.control.camera import Camera; from kshot.tasks.control.registry import family; "
        "Camera(family('cheetah-velocity'))"
    )
    import os

    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["MUJOCO_GL"] = "glfw"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode != 0
    assert "libegl1" in done.stderr.splitlines()[-1]


def test_threads_of_torch_are_left_alone() -> None:
    before = torch.get_num_threads()
    family("cheetah-velocity").simulator(np.zeros((2, 1)), 2, 2).reset(np.random.default_rng(0))
    assert torch.get_num_threads() == before
