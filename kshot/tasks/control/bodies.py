"""The environments "bodies": the task is the body. A leg is missing, shortened, weakened or added; mass and friction
change.

A goal has a number for each of these (`Bodies.parts`): the presence of each leg, its length and its strength, the
robot's mass and the ground's friction, as shares of gymnasium's body. Every body is a model of its own, a lost leg is
not there at all (no joints, no mass), and observations and actions are those of a body with all legs: what is missing
reads 0, what is sent to it is ignored. Policies are not given the body; an oracle is
(`kshot.tasks.control.observed.GoalObserved`).

Trained on some bodies, tested on others: "ant-body" lacks any of its first three legs or none, "ant-body-lost" the
fourth, "ant-body-gained" has a fifth; "cheetah-body" lacks any of five motors or none, "cheetah-body-lost" the sixth;
"walker-body" has legs of 0.8 to 1.2 of gymnasium's length, "walker-body-far"
legs of 0.7 to 0.8 and 1.2 to 1.3.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from kshot.tasks.control.control import Array, Control
from kshot.tasks.control.mujoco import Mujoco
from kshot.tasks.control.sim import Copied, Mujocos, _rows, check_actions, needs_mujoco

if TYPE_CHECKING:
    from kshot.tasks.control.control import Physics, Simulator


__all__ = ["FAMILIES", "Ant", "Bodies", "Cheetah", "Mixed", "Walker"]


class Bodies(Mujoco):
    """A family whose goals are bodies, and whose reward is to go forwards: min(v, fastest) + alive - cost |a|^2 until
    it falls.

    Attributes:
        timestep: of the physics, s. MuJoCo's implicit integrator takes it in one evaluation of the forces, where the
            Runge-Kutta of gymnasium's files takes four.
        alive: reward of a step without a fall.
        cost: of the squares of actions.
        fastest: velocity above which nothing more is paid, m/s.
        noise: a rollout's positions start within this of `resting`, velocities by its normal distribution.
        joints: names of all the joints that a body may have, in the order of observations.
        motors: names of the joints of all the motors that it may have, in the order of actions.
    """

    frame_skip = 5
    horizon = 200
    called = "bodies"
    timestep: float
    alive: float
    cost: float
    fastest: float = math.inf
    noise: float
    joints: tuple[str, ...]
    motors: tuple[str, ...]

    def spec(self) -> Any:
        """Gymnasium's `MjSpec` with our integrator."""
        mujoco, _ = needs_mujoco()
        spec = super().spec()
        spec.option.integrator, spec.option.timestep = mujoco.mjtIntegrator.mjINT_IMPLICITFAST, self.timestep
        return spec

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """What the numbers of a goal are."""

    @property
    @abstractmethod
    def usual(self) -> Array:
        """`[G]`: gymnasium's body."""

    @abstractmethod
    def body(self, goal: Array) -> Any:
        """The compiled model of a goal `[G]`."""

    def structure(self, goal: Array) -> tuple[Any, ...]:
        """Equal for bodies of the same joints, which can be simulated together."""
        return ()

    def one(self, goals: Array) -> _OneStructure:
        """The family of these bodies, which are of one structure."""
        return _OneStructure(self, goals)

    def resting(self, model: Any) -> Array:
        """`[nq]`: the position that a body's rollouts start near."""
        return model.qpos0.copy()

    @abstractmethod
    def root(self, physics: Physics) -> tuple[Array, Array]:
        """Positions `[n, ..]` and velocities `[n, ..]` that are observed besides the joints'."""

    @functools.cached_property
    def model(self) -> Any:
        """Gymnasium's body: every share 1."""
        return self.body(self.usual)

    def observe(self, physics: Physics) -> Array:
        """Bodies are observed one structure at a time (`one`)."""
        raise NotImplementedError("bodies are observed one structure at a time: look at Bodies.one")

    def simulator(self, goals: Array, rollouts: int, threads: int = 0) -> Simulator:
        """See `Control.simulator`: a batch for each structure, a model for each task."""
        return Mixed(self, goals, rollouts, threads)

    def start(self, rng: np.random.Generator, tasks: NDArray[np.intp]) -> tuple[Array, Array]:
        """Bodies start one structure at a time (`one`)."""
        raise NotImplementedError("bodies start one structure at a time: look at Bodies.one")

    def reward(self, physics: Physics, actions: Array, goals: Array) -> Array:
        """`[n]`."""
        velocity = (physics.qpos[:, 0] - physics.was[:, 0]) / (self.frame_skip * self.model.opt.timestep)
        paid = np.minimum(velocity, self.fastest)
        return paid - self.cost * np.square(actions).sum(1) + self.alive * ~self.fallen(physics)


class _OneStructure(Mujoco):
    """A family of one structure: what `Mujocos` steps, with the columns that the whole family has."""

    def __init__(self, whole: Bodies, goals: Array):
        self.whole, self.name, self.file = whole, whole.name, whole.file
        self.horizon, self.observation, self.action, self.goal = (
            whole.horizon, whole.observation, whole.action, whole.goal,
        )  # fmt: skip
        self.torso, self.stage, self.frame_skip, self.backend = (
            whole.torso,
            whole.stage,
            whole.frame_skip,
            whole.backend,
        )
        self.models = [whole.body(goal) for goal in goals]
        self.rests = np.stack([whole.resting(model) for model in self.models])
        first = self.models[0]
        named = [first.joint(j).name for j in range(first.njnt)]
        self.known = [j for j, name in enumerate(whole.joints) if name in named]
        self.positions = np.array([first.joint(whole.joints[j]).qposadr[0] for j in self.known], dtype=int)
        self.velocities = np.array([first.joint(whole.joints[j]).dofadr[0] for j in self.known], dtype=int)
        driven = [first.joint(int(first.actuator_trnid[k, 0])).name for k in range(first.nu)]
        self.sent = np.array([whole.motors.index(name) for name in driven], dtype=int)

    @property
    def model(self) -> Any:  # type: ignore[override]
        """One of the models: sizes and options are those of all."""
        return self.models[0]

    def start(self, rng: np.random.Generator, tasks: NDArray[np.intp]) -> tuple[Array, Array]:
        """See `Mujoco.start`: each body by itself."""
        qpos = self.rests[tasks]
        qpos = qpos + rng.uniform(-self.whole.noise, self.whole.noise, qpos.shape)
        return qpos, self.whole.noise * rng.standard_normal((len(tasks), self.model.nv))

    def observe(self, physics: Physics) -> Array:
        """`[n, D]`: the root's own columns, then positions and velocities of all joints, 0 where there is none."""
        position, velocity = self.whole.root(physics)
        n, all_joints = len(position), len(self.whole.joints)
        joints = np.zeros((n, 2, all_joints))
        joints[:, 0, self.known] = physics.qpos[:, self.positions]
        joints[:, 1, self.known] = physics.qvel[:, self.velocities]
        return np.concatenate([position, joints[:, 0], velocity, joints[:, 1]], axis=1)

    def reward(self, physics: Physics, actions: Array, goals: Array) -> Array:
        """`[n]`; actions that are sent to nothing cost nothing."""
        return self.whole.reward(physics, actions[:, self.sent], goals)

    def fallen(self, physics: Physics) -> NDArray[np.bool_]:
        """`[n]`."""
        return self.whole.fallen(physics)

    def controls(self, actions: Array) -> Array:
        """`[n, nu]`: the actions of the motors that there are."""
        return actions[:, self.sent]


_LEGS = ("front_left_leg", "front_right_leg", "back_leg", "right_back_leg")
_FIFTH = "fifth_leg"


class Ant(Bodies):
    """The ant with up to five legs: a lost, shortened (0.7..1.3) or weakened (0.5..1.5) leg, mass 0.8..1.25, friction
    0.7..1.5. Observes height, rotation, joint angles (10), velocities (6 + 10): D = 31; 10 actions. Paid min(v, 1 m/s)
    + 0.05 - 0.005 |a|^2: without a bound a leap at the start earns more than a gait (docs/control-bodies.md; Kumar
    et al. 2021, arXiv:2107.04034, bound it at 0.35 m/s). An action lasts 0.02 s, as for MAML's ants: with gymnasium's
    0.05 s policies learn far more slowly.

    Args:
        lost: how many of the four legs may be missing: the first `lost`, or none, with equal chances.
        always: the leg that is always missing (0..3), in place of `lost`.
        gained: whether there is a fifth leg, at the back.
        name: of the family.
    """

    file = "ant.xml"
    timestep, alive, cost, fastest, noise = 0.01, 0.05, 0.005, 1.0, 0.05
    frame_skip = 2
    stage = "vel"
    joints = tuple(f"{kind}_{k}" for k in (1, 2, 3, 4, 5) for kind in ("hip", "ankle"))
    motors = tuple(f"{kind}_{k}" for k in (4, 1, 2, 3, 5) for kind in ("hip", "ankle"))  # gymnasium's order, then ours
    observation = 5 + 6 + 20
    action = 10
    goal = 17

    def __init__(self, lost: int = 3, always: int | None = None, gained: bool = False, name: str = "ant-body"):
        self.lost, self.always, self.gained, self.name = lost, always, gained, name

    @property
    def parts(self) -> tuple[str, ...]:
        """See `Bodies.parts`."""
        legs = range(1, 6)
        return (*(f"leg {k}" for k in legs), *(f"length {k}" for k in legs), *(f"strength {k}" for k in legs),
                "mass", "friction")  # fmt: skip

    def sample(self, generator: torch.Generator, num_tasks: int) -> Array:
        """Goals `[T, 17]`."""
        uniform = torch.rand(num_tasks, 13, generator=generator, dtype=torch.float64).numpy()
        goals = np.zeros((num_tasks, 17))
        goals[:, :4], goals[:, 4] = 1.0, float(self.gained)
        missing = np.floor(uniform[:, 12] * (self.lost + 1)).astype(int) if self.always is None else self.always
        rows = np.arange(num_tasks)
        if self.always is not None:
            goals[:, self.always] = 0.0
        elif not self.gained:
            goals[rows, np.minimum(missing, 3)] = np.where(missing < self.lost, 0.0, 1.0)
        goals[:, 5:10] = 0.7 + 0.6 * uniform[:, :5]
        goals[:, 10:15] = 0.5 + uniform[:, 5:10]
        goals[:, 15] = 0.8 + 0.45 * uniform[:, 10]
        goals[:, 16] = 0.7 + 0.8 * uniform[:, 11]
        return goals

    @property
    def usual(self) -> Array:
        """See `Bodies.usual`."""
        return np.array([1.0] * 4 + [0.0] + [1.0] * 12)

    def structure(self, goal: Array) -> tuple[Any, ...]:
        """Which legs there are."""
        return tuple(goal[:5] > 0)

    def body(self, goal: Array) -> Any:
        """See `Bodies.body`."""
        spec = self.spec()
        present, lengths, strengths, (mass, friction) = goal[:5] > 0, goal[5:10], goal[10:15], goal[15:]
        if present[4]:
            _add_leg(spec, math.pi)
        for k, name in enumerate((*_LEGS, _FIFTH)):
            if k == 4 and not present[4]:
                continue
            leg = spec.body(name)
            if not present[k]:
                for motor in [a for a in spec.actuators if a.target in (f"hip_{k + 1}", f"ankle_{k + 1}")]:
                    spec.delete(motor)
                spec.delete(leg)
                continue
            _stretch(leg, lengths[k])
            for motor in spec.actuators:
                if motor.target in (f"hip_{k + 1}", f"ankle_{k + 1}"):
                    motor.gear[0] *= strengths[k]
        for geom in spec.geoms:
            geom.density *= mass
            geom.friction[0] *= friction
        return self.compiled(spec)

    def resting(self, model: Any) -> Array:
        """Gymnasium's height of 0.75, every ankle in the middle of its range."""
        qpos = model.qpos0.copy()
        for j in range(1, model.njnt):
            qpos[model.jnt_qposadr[j]] = model.jnt_range[j].mean()
        return qpos

    def root(self, physics: Physics) -> tuple[Array, Array]:
        """Height and rotation `[n, 5]`, velocities `[n, 6]`."""
        return physics.qpos[:, 2:7], physics.qvel[:, :6]

    def fallen(self, physics: Physics) -> NDArray[np.bool_]:
        """`[n]`: where the torso's height leaves 0.2..1."""
        return ~(np.isfinite(physics.qpos).all(1) & (physics.qpos[:, 2] >= 0.2) & (physics.qpos[:, 2] <= 1.0))


def _stretch(leg: Any, length: float) -> None:
    """Scale what of a leg can move: the part between hip and ankle, and the foot."""
    upper = leg.bodies[0]
    foot = upper.bodies[0]
    foot.pos = np.asarray(foot.pos) * length
    for body in (upper, foot):
        for geom in body.geoms:
            geom.fromto = np.asarray(geom.fromto) * length


def _add_leg(spec: Any, angle: float) -> None:
    """A fifth leg like the others, `angle` from the robot's front, with two motors."""
    mujoco, _ = needs_mujoco()
    along = np.array([math.cos(angle), math.sin(angle), 0.0])
    across = np.array([-math.sin(angle), math.cos(angle), 0.0])
    part, foot_length = 0.2 * math.sqrt(2), 0.4 * math.sqrt(2)
    hinge, capsule, zero = mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtGeom.mjGEOM_CAPSULE, np.zeros(3)

    def limb(parent: Any, name: str, at: Array, length: float) -> Any:
        body = parent.add_body(name=name, pos=at)
        body.add_geom(type=capsule, fromto=np.concatenate([zero, length * along]), size=[0.08, 0, 0])
        return body

    def joint(body: Any, name: str, axis: Array, low: float, high: float) -> None:
        body.add_joint(name=name, type=hinge, axis=axis, range=np.array([low, high]))
        motor = spec.add_actuator(target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, ctrlrange=[-1, 1], ctrllimited=True)
        motor.gear[0] = 150

    upper = limb(limb(spec.body("torso"), _FIFTH, zero, part), "aux_5", part * along, part)
    joint(upper, "hip_5", np.array([0.0, 0.0, 1.0]), -30, 30)
    joint(limb(upper, "foot_5", part * along, foot_length), "ankle_5", across, 30, 70)


class Walker(Bodies):
    """Gymnasium's planar walker whose thighs and shins have other lengths: four numbers, left and right of their own.
    Observes height, angle, joint angles (6) and velocities (3 + 6): D = 17; 6 actions. Paid v + 1 - 0.05 |a|^2.

    Args:
        ranges: of the lengths, as shares of gymnasium's; one of them is drawn for each number.
        name: of the family.
    """

    file = "walker2d_v5.xml"
    timestep, alive, cost, noise = 0.004, 1.0, 0.05, 0.005
    stage = "vel"
    joints = ("thigh_joint", "leg_joint", "foot_joint", "thigh_left_joint", "leg_left_joint", "foot_left_joint")
    motors = joints
    observation = 17
    action = 6
    goal = 4

    def __init__(self, ranges: Sequence[tuple[float, float]] = ((0.8, 1.2),), name: str = "walker-body"):
        self.ranges, self.name = tuple(ranges), name

    @property
    def parts(self) -> tuple[str, ...]:
        """See `Bodies.parts`."""
        return "thigh", "shin", "left thigh", "left shin"

    @property
    def usual(self) -> Array:
        """See `Bodies.usual`."""
        return np.ones(4)

    def sample(self, generator: torch.Generator, num_tasks: int) -> Array:
        """Goals `[T, 4]`."""
        uniform, which = torch.rand(2, num_tasks, 4, generator=generator, dtype=torch.float64).numpy()
        bounds = np.array(self.ranges)[np.floor(which * len(self.ranges)).astype(int)]  # [T, 4, 2]
        return bounds[..., 0] + (bounds[..., 1] - bounds[..., 0]) * uniform

    def body(self, goal: Array) -> Any:
        """See `Bodies.body`."""
        spec = self.spec()
        for side, (thigh, shin) in zip(("", "_left"), (goal[:2], goal[2:]), strict=True):
            upper, lower, foot = (spec.body(f"{name}{side}") for name in ("thigh", "leg", "foot"))
            upper.geoms[0].pos[2] *= thigh
            upper.geoms[0].size[1] *= thigh
            lower.geoms[0].size[1] *= shin
            lower.joints[0].pos[2] *= shin
            lower.pos[2] = -0.45 * thigh - 0.25 * shin  # the knee, and from there to the middle of the shin
            foot.pos[2] = -0.25 * shin - 0.1
        return self.compiled(spec)

    def resting(self, model: Any) -> Array:
        """Upright, the longer leg's foot as high as gymnasium's."""
        qpos = model.qpos0.copy()
        down = [-model.body(f"leg{side}").pos[2] - model.body(f"foot{side}").pos[2] for side in ("", "_left")]
        qpos[1] += max(down) - 1.05
        return qpos

    def root(self, physics: Physics) -> tuple[Array, Array]:
        """Height and angle `[n, 2]`, velocities `[n, 3]`."""
        return physics.qpos[:, 1:3], physics.qvel[:, :3]

    def fallen(self, physics: Physics) -> NDArray[np.bool_]:
        """`[n]`: where the height leaves 0.8..2 or the torso leans by more than 1 rad."""
        height, angle = physics.qpos[:, 1], physics.qpos[:, 2]
        return ~(np.isfinite(physics.qpos).all(1) & (height > 0.8) & (height < 2.0) & (np.abs(angle) < 1.0))


class Cheetah(Bodies):
    """The half-cheetah with motors of other strengths (0.5..1.5) of which one may be lost (0), mass 0.8..1.25 and
    friction 0.7..1.5. Observes positions without x and velocities: D = 17; 6 actions. Paid v - 0.05 |a|^2; never ends.

    A lost motor as in Anusha Nagabandi et al.: Learning to adapt in dynamic, real-world environments through
    meta-reinforcement learning. ICLR 2019, arXiv:1803.11347.

    Args:
        always: the motor that is always lost (0..5); None: one of `motors` but the last, or none, with equal chances.
        name: of the family.
    """

    file = "half_cheetah.xml"
    timestep, alive, cost, noise = 0.01, 0.0, 0.05, 0.1
    stage = "vel"
    joints = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
    motors = ("bthigh", "bshin", "bfoot", "fshin", "ffoot", "fthigh")  # the front thigh is the one held out
    observation = 17
    action = 6
    goal = 8

    def __init__(self, always: int | None = None, name: str = "cheetah-body"):
        self.always, self.name = always, name

    @property
    def parts(self) -> tuple[str, ...]:
        """See `Bodies.parts`."""
        return (*self.motors, "mass", "friction")

    @property
    def usual(self) -> Array:
        """See `Bodies.usual`."""
        return np.ones(8)

    def sample(self, generator: torch.Generator, num_tasks: int) -> Array:
        """Goals `[T, 8]`."""
        uniform = torch.rand(num_tasks, 9, generator=generator, dtype=torch.float64).numpy()
        low, high = np.array([[0.5, 1.5]] * 6 + [[0.8, 1.25], [0.7, 1.5]]).T
        goals = low + (high - low) * uniform[:, :8]
        lost = np.floor(6 * uniform[:, 8]).astype(int)  # 5: none
        rows = np.flatnonzero(lost < 5)
        if self.always is None:
            goals[rows, lost[rows]] = 0.0
        else:
            goals[:, self.always] = 0.0
        return goals

    def body(self, goal: Array) -> Any:
        """See `Bodies.body`."""
        spec = self.spec()
        for motor in spec.actuators:
            motor.gear[0] *= goal[self.motors.index(motor.target)]
        for geom in spec.geoms:
            geom.friction[0] *= goal[7]
        model = self.compiled(spec)
        model.body_mass[:] *= goal[6]  # the file gives the whole robot's mass, whatever its parts' densities
        model.body_inertia[:] *= goal[6]
        mujoco, _ = needs_mujoco()
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model

    def root(self, physics: Physics) -> tuple[Array, Array]:
        """Height and angle `[n, 2]`, velocities `[n, 3]`."""
        return physics.qpos[:, 1:3], physics.qvel[:, :3]

    def fallen(self, physics: Physics) -> NDArray[np.bool_]:
        """`[n]`: never."""
        return np.zeros(len(physics.qpos), dtype=bool)


class Mixed(Copied):
    """Simulations of bodies: those of one structure are a batch; see `Simulator`."""

    def __init__(self, family: Bodies, goals: Array, rollouts: int, threads: int = 0):
        self.family, self.rollouts = family, rollouts
        self.tasks, self.goals = _rows(family, goals, rollouts)
        goals = self.goals[::rollouts]
        kinds: dict[Any, list[int]] = {}
        for t, goal in enumerate(goals):
            kinds.setdefault(family.structure(goal), []).append(t)
        self.parts: list[tuple[NDArray[np.intp], Mujocos]] = []
        for own in kinds.values():
            one = family.one(goals[own])
            rows = (np.array(own)[:, None] * rollouts + np.arange(rollouts)).flatten()
            self.parts.append((rows, Mujocos(one, goals[own], rollouts, threads, one.models, own)))
        self.observed = np.zeros((len(self.goals), family.observation))

    @property
    def alive(self) -> NDArray[np.bool_]:
        """See `Simulator`."""
        return self._of_all("alive")

    @property
    def lost(self) -> NDArray[np.bool_]:
        """See `Simulator`."""
        return self._of_all("lost")

    def _of_all(self, name: str) -> NDArray[np.bool_]:
        found = np.zeros(len(self.goals), dtype=bool)
        for rows, part in self.parts:
            found[rows] = getattr(part, name)
        return found

    @property
    def physics(self) -> Physics:
        """Of simulations that are of one structure."""
        if len(self.parts) > 1:
            raise ValueError(f"{len(self.parts)} structures have no common arrays: look at parts")
        return self.parts[0][1].physics

    def reset(self, rng: np.random.Generator) -> Array:
        """See `Simulator.reset`."""
        return self.restart(np.arange(len(self.goals)), rng)

    def restart(self, which: NDArray[np.intp], rng: np.random.Generator) -> Array:
        """See `Simulator.restart`."""
        self.observed = self.observed.copy()
        for rows, part in self.parts:
            own = np.flatnonzero(np.isin(rows, which))
            if len(own):
                self.observed[rows] = part.restart(own, rng)
        return self.observed

    def step(self, actions: Array) -> tuple[Array, Array]:
        """See `Simulator.step`."""
        actions = check_actions(actions, (len(self.goals), self.family.action), self.family.name)
        self.observed, rewards = self.observed.copy(), np.zeros(len(self.goals))
        for rows, part in self.parts:
            if part.alive.any():
                self.observed[rows], rewards[rows] = part.step(actions[rows])
        return self.observed, rewards


FAMILIES: dict[str, Callable[[], Control]] = {
    "ant-body": Ant,
    "ant-body-lost": lambda: Ant(always=3, name="ant-body-lost"),
    "ant-body-gained": lambda: Ant(gained=True, name="ant-body-gained"),
    "cheetah-body": Cheetah,
    "cheetah-body-lost": lambda: Cheetah(5, "cheetah-body-lost"),
    "walker-body": Walker,
    "walker-body-far": lambda: Walker(((0.7, 0.8), (1.2, 1.3)), name="walker-body-far"),
}
