"""The control tasks for gymnasium: importing this module registers them, single and many at a time.

    import gymnasium, kshot.tasks.control.gym
    env = gymnasium.make("kshot/HalfCheetahDirection-v0", goal=[-1.0])
    env.unwrapped.set_task([1.0])                            # from the next reset on
    envs = gymnasium.make_vec("kshot/HalfCheetahDirection-v0", num_envs=64)     # stepped together, without processes

Names: kshot/HalfCheetahDirection-v0, HalfCheetahVelocity, AntDirection, AntVelocity, PointGoal (MAML's paper), and
HalfCheetahDirectionV5, HalfCheetahVelocityV5, AntDirectionV5, AntVelocityV5, AntGoalV5 (gymnasium's bodies), and
AntBody, AntBodyLost, AntBodyGained, HalfCheetahBody, HalfCheetahBodyLost, WalkerBody, WalkerBodyFar, whose goals are
bodies (`kshot.tasks.control.bodies`). Where no goal is given, each environment draws one at each reset; `info["goal"]`
tells it.

Environments can be copied and pickled: a copy has a simulation of its own, which continues from the same state. In
worker processes that are started again ("spawn") the names are known by
`gymnasium.make("kshot.tasks.control.gym:kshot/AntBody-v0")`, which imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from kshot.tasks.control.bodies import Bodies
from kshot.tasks.control.control import Array, Control, check_goals
from kshot.tasks.control.mujoco import Mujoco
from kshot.tasks.control.registry import family
from kshot.tasks.control.sim import Copied, check_actions

__all__ = ["NAMES", "ControlEnv", "ControlVectorEnv"]

NAMES = {
    "PointGoal": "point",
    "HalfCheetahDirection": "cheetah-direction",
    "HalfCheetahVelocity": "cheetah-velocity",
    "AntDirection": "ant-direction",
    "AntVelocity": "ant-velocity",
    "HalfCheetahDirectionV5": "v5-cheetah-direction",
    "HalfCheetahVelocityV5": "v5-cheetah-velocity",
    "AntDirectionV5": "v5-ant-direction",
    "AntVelocityV5": "v5-ant-velocity",
    "AntGoalV5": "v5-ant-goal",
    "AntBody": "ant-body",
    "AntBodyLost": "ant-body-lost",
    "AntBodyGained": "ant-body-gained",
    "HalfCheetahBody": "cheetah-body",
    "HalfCheetahBodyLost": "cheetah-body-lost",
    "WalkerBody": "walker-body",
    "WalkerBodyFar": "walker-body-far",
}
"""`{gymnasium's name: kshot's}`."""


def _spaces(tasks: Control) -> tuple[Box, Box]:
    return (
        Box(-np.inf, np.inf, (tasks.observation,), np.float64),
        Box(-1.0, 1.0, (tasks.action,), np.float32),
    )


def _goals(tasks: Control, rng: np.random.Generator, count: int) -> Array:
    return tasks.sample(torch.Generator().manual_seed(int(rng.integers(2**62))), count)


def _actions(tasks: Control, actions: Any, *rows: int) -> Array:
    """What `step` is given, as finite numbers `[*rows, A]`.

    Raises:
        ValueError: another shape, no numbers, or NaN.
    """
    numbers = check_actions(actions, (*rows, tasks.action), tasks.name)
    if not np.isfinite(numbers).all():
        wrong = np.argwhere(~np.isfinite(numbers)).tolist()
        places = ", ".join(map(str, wrong[:5])) + (" and others" if len(wrong) > 5 else "")
        raise ValueError(f"actions of {tasks.name} are not finite at {places}: clip them, or fix the policy")
    return numbers


def _observed(tasks: Control, observed: Array, *rows: int) -> Array:
    """A copy of what a simulator observes, `[*rows, D]`.

    Raises:
        ValueError: another shape.
    """
    shape = (*rows, tasks.observation)
    if observed.shape != shape:
        raise ValueError(
            f"{tasks.name} observes an array {list(observed.shape)} and says {list(shape)}: set `observation` to the "
            "numbers that a policy sees"
        )
    return observed.copy()


def _option(options: dict[str, Any] | None) -> Any:
    """The goal of `reset(options=...)`, if any.

    Raises:
        ValueError: other options, which would be passed over.
    """
    if unknown := sorted(set(options or {}) - {"goal"}):
        raise ValueError(f"reset(options=...) has {unknown}: 'goal' is the only option")
    return (options or {}).get("goal")


def _simulator(tasks: Control, count: int, threads: int) -> Any:
    return tasks.simulator(_goals(tasks, np.random.default_rng(0), count), 1, threads)


def _turned(tasks: Control, simulator: Any, goals: Array, threads: int) -> Any:
    """A simulator of these goals `[n, G]`: another one where other goals are other bodies."""
    if not isinstance(tasks, Bodies):
        simulator.goals[:] = goals
    elif not np.array_equal(simulator.goals, goals):
        return tasks.simulator(goals, 1, threads)
    return simulator


class ControlEnv(Copied, gymnasium.Env):
    """One task, one rollout at a time.

    Args:
        tasks: a name of `kshot.tasks.control.registry.families`.
        goal: `[G]` the task; None: drawn at each reset.
        render_mode: None, or "rgb_array" (robots only).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  gymnasium's own attribute

    def __init__(self, tasks: str, goal: Sequence[float] | None = None, render_mode: str | None = None):
        self.tasks = family(tasks)
        if isinstance(self.tasks, Mujoco):
            fps = round(1 / (self.tasks.frame_skip * self.tasks.model.opt.timestep))
            self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        else:
            self.metadata = {"render_modes": [], "render_fps": 20}
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode={render_mode!r}: {self.tasks.name} has {self.metadata['render_modes']}")
        self.render_mode = render_mode
        self.observation_space, self.action_space = _spaces(self.tasks)
        self._goal: Array | None = None
        self.set_task(goal)
        self._sim = _simulator(self.tasks, 1, 1)
        self._begun = False
        self._renderer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renderer": None}  # a copy makes its own when it is first drawn

    def set_task(self, goal: Sequence[float] | None) -> None:
        """The goal `[G]` of the rollouts to come; None: drawn at each reset."""
        self._goal = None if goal is None else check_goals(self.tasks, goal, single=True)[0]

    def sample_tasks(self, count: int) -> Array:
        """Goals `[count, G]`, from the environment's own generator."""
        return _goals(self.tasks, self.np_random, count)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """`options={"goal": [...]}` sets the task of this rollout."""
        super().reset(seed=seed)
        given = _option(options)
        goal = self._goal if given is None else check_goals(self.tasks, given, single=True)[0]
        before = self._sim
        self._sim = _turned(self.tasks, before, self.sample_tasks(1) if goal is None else goal[None], 1)
        if self._sim is not before:  # the renderer has the other body
            self.close()
        observed = _observed(self.tasks, self._sim.reset(self.np_random)[0])
        self._begun = True
        return observed, {"goal": self._sim.goals[0].copy()}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """See gymnasium; actions `[A]` are clipped to -1..1.

        Raises:
            ValueError: an action of another shape, or that is not finite numbers.
            ResetNeeded: before the first `reset`.
        """
        action = _actions(self.tasks, action)
        if not self._begun:
            raise ResetNeeded("call reset() before the first step()")
        observed, rewards = self._sim.step(action[None])
        ended = not bool(self._sim.alive[0])
        return observed[0].copy(), float(rewards[0]), ended, False, {"goal": self._sim.goals[0].copy()}

    def render(self) -> Any:
        """`[480, 640, 3]` uint8, by MuJoCo's off-screen renderer.

        Raises:
            NoOpenGL: no OpenGL on this machine; with what to install.
        """
        if self.render_mode != "rgb_array":
            return None
        from kshot.tasks.control.camera import Camera

        if self._renderer is None:
            self._renderer = Camera(self.tasks, goal=self._sim.goals[0])
        return self._renderer.frame(self._sim, 0)

    def close(self) -> None:
        """Give the renderer back."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class ControlVectorEnv(Copied, VectorEnv):
    """Many tasks, a rollout of each at a time, stepped together; one that has ended restarts in the next step.

    Goals that are bodies change at `reset()` alone: a rollout that restarts by itself has the body that it had.

    Args:
        tasks: a name of `kshot.tasks.control.registry.families`.
        num_envs: n.
        goals: `[n, G]`; None: each is drawn at each of its starts.
        threads: of the simulation; 0: one for each core.
        max_episode_steps: steps until a rollout is cut; None: the family's horizon.
        render_mode: None; single environments have images.

    Raises:
        ValueError: a number of environments or steps below 1, goals of another size, or a render mode.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  gymnasium's own attribute

    def __init__(
        self,
        tasks: str,
        num_envs: int = 1,
        goals: Any = None,
        threads: int = 0,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ):
        for name, number in (("num_envs", num_envs), ("max_episode_steps", max_episode_steps)):
            if number is not None and number < 1:
                raise ValueError(f"{name}={number}: at least 1 is needed")
        if render_mode is not None:
            raise ValueError(f"render_mode={render_mode!r}: many at a time have no images; draw a single one")
        self.tasks, self.num_envs, self.render_mode = family(tasks), num_envs, render_mode
        self.single_observation_space, self.single_action_space = _spaces(self.tasks)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._threads = threads
        self._sim = _simulator(self.tasks, num_envs, threads)
        self._horizon = self.tasks.horizon if max_episode_steps is None else max_episode_steps
        self._goals, self._begun = None, False
        self.set_tasks(goals)
        self._steps = np.zeros(num_envs, dtype=int)
        self._over = np.zeros(num_envs, dtype=bool)

    def set_tasks(self, goals: Any) -> None:
        """Goals `[n, G]` from the next starts on; None: drawn at each."""
        self._goals = self._each(goals)

    def _each(self, goals: Any) -> Array | None:
        if goals is None:
            return None
        rows = check_goals(self.tasks, goals)
        if len(rows) != self.num_envs:
            raise ValueError(f"{len(rows)} goals for {self.num_envs} environments: give one for each")
        return rows

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """All of them. One generator draws for all: `seed` is a number, or numbers that it is seeded by together.
        `options={"goal": [...]}` sets the tasks `[n, G]` until their next starts.
        """
        if seed is None or np.ndim(seed) == 0:
            super().reset(seed=seed)
        else:
            self.np_random = np.random.default_rng([int(number) for number in seed])
        given = self._each(_option(options))
        self._steps[:], self._over[:], self._begun = 0, False, True
        goals = self._goals if given is None else given
        goals = _goals(self.tasks, self.np_random, self.num_envs) if goals is None else goals
        self._sim = _turned(self.tasks, self._sim, goals, self._threads)
        return _observed(self.tasks, self._sim.reset(self.np_random), self.num_envs), self._told()

    def step(self, actions: Array) -> tuple[Array, Array, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """See gymnasium. An environment that was over before the step restarts, with a reward of 0.

        Raises:
            ValueError: actions of another shape than `[n, A]`, or that are not finite numbers.
            ResetNeeded: before the first `reset`.
        """
        actions = _actions(self.tasks, actions, self.num_envs)
        if not self._begun:
            raise ResetNeeded("call reset() before the first step()")
        again = self._over.copy()
        observed, rewards = self._sim.step(actions)
        self._steps += 1
        if again.any():
            if not isinstance(self.tasks, Bodies):
                fresh = _goals(self.tasks, self.np_random, self.num_envs) if self._goals is None else self._goals
                self._sim.goals[again] = fresh[again]
            observed = self._sim.restart(np.flatnonzero(again), self.np_random)
            rewards[again], self._steps[again] = 0.0, 0
        ended = ~self._sim.alive
        cut = ~ended & (self._steps >= self._horizon)
        self._over = ended | cut
        return observed.copy(), rewards, ended, cut, self._told()

    def _told(self) -> dict[str, Any]:
        return {"goal": self._sim.goals.copy(), "_goal": np.ones(self.num_envs, dtype=bool)}


for _name, _tasks in NAMES.items():
    if f"kshot/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(
            f"kshot/{_name}-v0",
            "kshot.tasks.control.gym:ControlEnv",
            vector_entry_point="kshot.tasks.control.gym:ControlVectorEnv",
            max_episode_steps=family(_tasks).horizon,
            kwargs={"tasks": _tasks},
        )
