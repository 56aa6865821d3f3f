"""Bodies that change: gymnasium's own where nothing does, exact deletion, and batches of several structures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kshot.numerics import seeding
from kshot.tasks.control.bodies import Ant, Cheetah, Mixed, Walker
from kshot.tasks.control.registry import family
from kshot.tasks.control.sim import needs_mujoco

mujoco = pytest.importorskip("mujoco", reason="needs kshot[rl]")

SIZES = ("nq", "nv", "nu", "nbody", "ngeom")
FIELDS = ("body_mass", "body_inertia", "body_pos", "body_quat", "geom_size", "geom_pos", "geom_friction", "jnt_axis",
          "jnt_range", "jnt_pos", "actuator_gear", "actuator_trnid", "dof_armature", "dof_damping")  # fmt: skip


def same(a: Any, b: Any) -> None:
    for name in SIZES:
        assert getattr(a, name) == getattr(b, name), name
    for name in FIELDS:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-12, err_msg=name)


BODIES = [(Ant(), "ant.xml"), (Walker(), "walker2d_v5.xml"), (Cheetah(), "half_cheetah.xml")]


@pytest.mark.parametrize(("tasks", "file"), BODIES)
def test_the_usual_body_is_gymnasiums(tasks: Any, file: str) -> None:
    _, assets = needs_mujoco()
    same(tasks.model, mujoco.MjModel.from_xml_path(str(assets / file)))


@pytest.mark.parametrize("leg", range(4))
def test_a_lost_leg_is_exactly_not_there(leg: int) -> None:
    """The model is that of the file with the leg cut out of its XML, and moves alike over a rollout."""
    import xml.etree.ElementTree as ET

    _, assets = needs_mujoco()
    tree = ET.parse(assets / "ant.xml")
    name = ("front_left_leg", "front_right_leg", "back_leg", "right_back_leg")[leg]
    torso = tree.find(".//body[@name='torso']")
    assert torso is not None
    cut = torso.find(f"body[@name='{name}']")
    assert cut is not None
    torso.remove(cut)
    motors = tree.find("actuator")
    assert motors is not None
    for motor in list(motors):
        if motor.get("joint") in (f"hip_{leg + 1}", f"ankle_{leg + 1}"):
            motors.remove(motor)
    options = tree.find("option")
    assert options is not None
    options.attrib.update(integrator="implicitfast", timestep="0.01")
    theirs = mujoco.MjModel.from_xml_string(ET.tostring(tree.getroot(), encoding="unicode"))
    tasks = Ant()
    goal = tasks.usual
    goal[leg] = 0.0
    same(tasks.body(goal), theirs)
    sim = tasks.simulator(goal[None], 1)
    assert isinstance(sim, Mixed)
    sim.reset(np.random.default_rng(0))
    data = mujoco.MjData(theirs)
    data.qpos[:], data.qvel[:] = sim.physics.qpos[0], sim.physics.qvel[0]
    driven = [theirs.joint(int(theirs.actuator_trnid[k, 0])).name for k in range(theirs.nu)]
    rng = np.random.default_rng(1)
    for _ in range(40):
        actions = rng.uniform(-1, 1, (1, 10))
        before = float(data.qpos[0])
        observed, rewards = sim.step(actions)
        sent = [actions[0, tasks.motors.index(joint)] for joint in driven]
        data.ctrl[:] = sent
        mujoco.mj_step(theirs, data, 2)
        np.testing.assert_allclose(observed[0, :5], data.qpos[2:7], atol=1e-9)
        for k in range(5):
            for j, kind in enumerate(("hip", "ankle")):
                angle, speed = observed[0, 5 + 2 * k + j], observed[0, 5 + 10 + 6 + 2 * k + j]
                if k in (leg, 4):
                    assert (angle, speed) == (0, 0)
                else:
                    joint = data.joint(f"{kind}_{k + 1}")
                    np.testing.assert_allclose([angle, speed], [joint.qpos[0], joint.qvel[0]], atol=1e-9)
        upright = 0.2 <= data.qpos[2] <= 1.0
        paid = min((data.qpos[0] - before) / 0.02, 1.0) - 0.005 * np.square(sent).sum() + 0.05 * upright
        assert rewards[0] == pytest.approx(paid, abs=1e-9)
        if not sim.alive[0]:
            break


def test_many_structures_are_each_alone() -> None:
    """A batch of intact, three-legged and five-legged bodies moves as each of them does alone."""
    tasks = Ant()
    goals = np.concatenate([tasks.sample(seeding.generator(0), 5), Ant(gained=True).sample(seeding.generator(1), 1)])
    assert len({tasks.structure(goal) for goal in goals}) >= 3
    many = Mixed(tasks, goals, 2)
    many.reset(np.random.default_rng(0))
    alone = []
    for t in range(len(goals)):
        one = Mixed(tasks, goals[t : t + 1], 2)
        one.reset(np.random.default_rng(0))
        rows, part = next((rows, part) for rows, part in many.parts if 2 * t in rows)
        own = np.flatnonzero(np.isin(rows, [2 * t, 2 * t + 1]))
        one.physics.reset(np.arange(2), part.physics.qpos[own], part.physics.qvel[own])
        alone.append(one)
    rng = np.random.default_rng(2)
    for _ in range(30):
        actions = rng.uniform(-1, 1, (2 * len(goals), 10))
        observed, rewards = many.step(actions)
        for t, one in enumerate(alone):
            seen, paid = one.step(actions[2 * t : 2 * t + 2])
            np.testing.assert_allclose(observed[2 * t : 2 * t + 2], seen, atol=1e-12)
            np.testing.assert_allclose(rewards[2 * t : 2 * t + 2], paid, atol=1e-12)


def test_what_the_numbers_of_a_body_do() -> None:
    tasks = Ant()
    usual, goal = tasks.usual, tasks.usual
    assert len(tasks.parts) == tasks.goal == len(usual)
    goal[tasks.parts.index("length 2")] = 1.3
    goal[tasks.parts.index("strength 3")] = 0.5
    goal[tasks.parts.index("friction")] = 1.4
    base, model = tasks.body(usual), tasks.body(goal)
    assert model.geom("left_leg_geom").size[1] == pytest.approx(base.geom("left_leg_geom").size[1])
    assert model.geom("right_leg_geom").size[1] == pytest.approx(1.3 * base.geom("right_leg_geom").size[1])
    assert model.geom("right_ankle_geom").size[1] == pytest.approx(1.3 * base.geom("right_ankle_geom").size[1])
    gears = {model.joint(int(model.actuator_trnid[k, 0])).name: model.actuator_gear[k, 0] for k in range(model.nu)}
    assert gears == {name: 75.0 if name.endswith("3") else 150.0 for name in tasks.joints[:8]}
    assert model.geom("floor").friction[0] == pytest.approx(1.4)
    goal = usual.copy()
    goal[tasks.parts.index("mass")] = 1.2
    np.testing.assert_allclose(tasks.body(goal).body_mass, 1.2 * base.body_mass)


def test_a_fifth_leg_is_like_the_others() -> None:
    goal = Ant().usual
    goal[4] = 1.0
    model = Ant().body(goal)
    assert (model.nu, model.nv) == (10, 16)
    np.testing.assert_allclose(np.degrees(model.joint("ankle_5").range), [30, 70])
    np.testing.assert_allclose(np.degrees(model.joint("hip_5").range), [-30, 30])
    for name, other in (("fifth_leg", "front_left_leg"), ("aux_5", "aux_1")):
        assert model.body(name).mass[0] == pytest.approx(model.body(other).mass[0])
    assert model.dof_armature[-1] == 1
    assert model.actuator_gear[-1, 0] == 150
    data = mujoco.MjData(model)  # with its ankle bent it stands as high as they do
    for k in range(1, 6):
        data.joint(f"ankle_{k}").qpos[0] = model.joint(f"ankle_{k}").range.mean()
    mujoco.mj_forward(model, data)
    ends = []
    for k in range(1, 6):
        foot = model.jnt_bodyid[model.joint(f"ankle_{k}").id]
        ends.append(data.xipos[foot, 2])
    np.testing.assert_allclose(ends, ends[0], atol=1e-9)


def test_which_bodies_are_trained_on_and_which_are_held_out() -> None:
    drawn = {name: family(name).sample(seeding.generator(0), 300) for name in ("ant-body", "ant-body-lost", "ant-body-gained", "walker-body", "walker-body-far")}  # fmt: skip  # noqa: E501
    ants = drawn["ant-body"]
    assert (ants[:, 3] == 1).all()
    assert (ants[:, 4] == 0).all()
    missing = (ants[:, :3] == 0).sum(1)
    assert set(missing) == {0, 1}
    assert 0.15 < (missing == 0).mean() < 0.35
    lost = drawn["ant-body-lost"]
    assert (lost[:, 3] == 0).all()
    assert (lost[:, :3] == 1).all()
    assert (drawn["ant-body-gained"][:, :5] == 1).all()
    assert 0.7 <= ants[:, 5:10].min() < 0.75 < 1.25 < ants[:, 5:10].max() <= 1.3
    near, far = drawn["walker-body"], drawn["walker-body-far"]
    assert near.min() >= 0.8
    assert near.max() <= 1.2
    assert not ((far > 0.8) & (far < 1.2)).any()


def test_the_legs_of_a_walker() -> None:
    """Knees join thighs and shins of any lengths, and ankles shins and feet: capsules end where joints are."""
    tasks = Walker()
    goal = np.array([0.7, 1.3, 1.2, 0.8])
    model = tasks.body(goal)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    hip = tasks.model.qpos0[1] - 0.2
    for side, thigh, shin in (("", *goal[:2]), ("_left", *goal[2:])):
        half = {part: model.geom(f"{part}{side}_geom").size[1] for part in ("thigh", "leg")}
        at = {part: data.geom(f"{part}{side}_geom").xpos[2] for part in ("thigh", "leg")}
        knee, ankle = (data.joint(f"{part}{side}_joint").xanchor[2] for part in ("leg", "foot"))
        assert half["thigh"] == pytest.approx(0.225 * thigh)
        assert half["leg"] == pytest.approx(0.25 * shin)
        assert data.joint(f"thigh{side}_joint").xanchor[2] == pytest.approx(at["thigh"] + half["thigh"])
        assert knee == pytest.approx(at["thigh"] - half["thigh"])
        assert knee == pytest.approx(at["leg"] + half["leg"])
        assert knee == pytest.approx(hip - 0.45 * thigh)
        assert ankle == pytest.approx(at["leg"] - half["leg"])
        usual = tasks.model.body(f"foot{side}").pos[2], tasks.model.joint(f"foot{side}_joint").pos[2]
        foot = data.body(f"foot{side}").xpos[2]
        assert foot - ankle == pytest.approx(-usual[1])
        assert model.joint(f"foot{side}_joint").pos[2] == pytest.approx(usual[1])


def test_walkers_start_on_the_ground() -> None:
    """Each with its longer leg's foot as high as gymnasium's, whatever bodies are simulated beside it."""
    goals = np.array([[0.8] * 4, [1.2] * 4, [1.0] * 4, [1.3, 0.7, 0.7, 1.3]])
    usual = Walker()
    data = mujoco.MjData(usual.model)
    mujoco.mj_forward(usual.model, data)
    height = data.geom("foot_geom").xpos[2]
    for order in (goals, goals[::-1]):
        sim = usual.simulator(order, 3)
        assert isinstance(sim, Mixed)
        sim.reset(np.random.default_rng(0))
        feet = sim.physics.batch.bind("geom_xpos").reshape(12, -1, 3)
        sim.physics.batch.forward(stage=sim.physics.stage)
        ids = [usual.model.geom(f"foot{side}_geom").id for side in ("", "_left")]
        np.testing.assert_allclose(feet[:, ids, 2].min(1), height, atol=0.02)  # noise of the start: 0.005
        assert sim.alive.all()
        for _ in range(3):
            observed, _ = sim.step(np.zeros((12, 6)))
            assert np.abs(observed[:, 8:]).max() < 5
        assert sim.alive.all()


def test_a_walker_falls() -> None:
    sim = Walker().simulator(np.ones((1, 4)), 7)
    assert isinstance(sim, Mixed)
    qpos, qvel = np.zeros((7, 9)), np.zeros((7, 9))
    qpos[:, 1] = [0.79, 0.81, 1.99, 2.01, 1.25, 1.25, np.nan]
    qpos[4:6, 2] = [0.99, -1.01]
    sim.physics.qpos[:], sim.physics.qvel[:] = qpos, qvel
    assert sim.parts[0][1].family.fallen(sim.physics).tolist() == [True, False, False, True, False, True, True]


BODIES_OF = ["ant-body", "ant-body-lost", "ant-body-gained", "cheetah-body", "cheetah-body-lost", "walker-body",
             "walker-body-far"]  # fmt: skip


@pytest.mark.parametrize("name", BODIES_OF)
def test_equals_one_body_after_another(name: str) -> None:
    """Whole episodes of four bodies, against `mj_step` and the rewards written out again."""
    tasks: Any = family(name)
    goals = tasks.sample(seeding.generator(1), 4)
    many = tasks.simulator(goals, 2, threads=2)
    assert isinstance(many, Mixed)
    many.reset(np.random.default_rng(0))
    alone: list[tuple[Any, Any, list[int]]] = [(None, None, [])] * 8
    for rows, part in many.parts:
        for own, row in enumerate(rows):
            model = tasks.body(goals[row // 2])
            data = mujoco.MjData(model)
            data.qpos[:], data.qvel[:] = part.physics.qpos[own], part.physics.qvel[own]
            motors = [tasks.motors.index(model.joint(int(model.actuator_trnid[k, 0])).name) for k in range(model.nu)]
            alone[row] = model, data, motors
    ant, walker = name.startswith("ant"), name.startswith("walker")
    skip, cost = (2 if ant else 5), (0.005 if ant else 0.05)
    rng = np.random.default_rng(1)
    for _ in range(200):
        actions, before = rng.uniform(-1, 1, (8, tasks.action)), many.alive
        _, rewards = many.step(actions)
        for row in np.flatnonzero(before):
            model, data, motors = alone[row]
            sent, where = actions[row, motors], float(data.qpos[0])
            data.ctrl[:] = sent
            mujoco.mj_step(model, data, skip)
            paid = (data.qpos[0] - where) / (skip * model.opt.timestep) - cost * np.square(sent).sum()
            up = True
            if ant:
                paid = min(paid + cost * np.square(sent).sum(), 1.0) - cost * np.square(sent).sum()
                up = 0.2 <= data.qpos[2] <= 1.0
                paid += 0.05 * up
            elif walker:
                up = 0.8 < data.qpos[1] < 2.0 and abs(data.qpos[2]) < 1.0
                paid += 1.0 * up
            assert rewards[row] == pytest.approx(paid, abs=1e-9)
            assert many.alive[row] == up
    assert walker or many.alive.any()


def test_a_body_that_diverges_is_named() -> None:
    tasks = Ant()
    goals = np.tile(tasks.usual, (4, 1))
    goals[[1, 3], 0] = 0.0
    sim = Mixed(tasks, goals, 1)
    sim.reset(np.random.default_rng(0))
    for rows, part in sim.parts:
        if 3 in rows:
            part.physics.qvel[list(rows).index(3)] = 1e12
    with pytest.warns(UserWarning, match=r"1 rollouts of ant-body diverged and were ended, of the tasks 3 \(goal"):
        sim.step(np.zeros((4, 10)))
    assert sim.alive.tolist() == [True, True, True, False]


def test_a_cheetah_that_loses_a_motor() -> None:
    """It moves as gymnasium's model with that motor sent nothing, and its mass and friction are scaled exactly."""
    tasks = Cheetah()
    goal = tasks.usual
    goal[tasks.motors.index("fthigh")], goal[6:] = 0.0, 1.2
    base, model = tasks.body(tasks.usual), tasks.body(goal)
    np.testing.assert_allclose(model.body_mass, 1.2 * base.body_mass)
    np.testing.assert_allclose(model.body_inertia, 1.2 * base.body_inertia)
    np.testing.assert_allclose(model.body_subtreemass, 1.2 * base.body_subtreemass)
    np.testing.assert_allclose(model.geom_friction[:, 0], 1.2 * base.geom_friction[:, 0])
    goal[6:] = 1.0
    sim = tasks.simulator(goal[None], 1)
    sim.reset(np.random.default_rng(0))
    assert isinstance(sim, Mixed)
    data = mujoco.MjData(base)
    data.qpos[:], data.qvel[:] = sim.physics.qpos[0], sim.physics.qvel[0]
    rng = np.random.default_rng(1)
    for _ in range(40):
        actions = rng.uniform(-1, 1, (1, 6))
        sent = {joint: actions[0, k] for k, joint in enumerate(tasks.motors)}
        before = float(data.qpos[0])
        for j in range(base.nu):
            name = base.joint(int(base.actuator_trnid[j, 0])).name
            data.ctrl[j] = 0.0 if name == "fthigh" else sent[name]
        mujoco.mj_step(base, data, 5)
        observed, rewards = sim.step(actions)
        np.testing.assert_allclose(observed[0], [*data.qpos[1:], *data.qvel], atol=1e-9)
        assert rewards[0] == pytest.approx((data.qpos[0] - before) / 0.05 - 0.05 * np.square(actions).sum(), abs=1e-9)
    drawn = tasks.sample(seeding.generator(0), 300)
    assert (drawn[:, 5] > 0).all()
    assert ((drawn[:, :5] == 0).sum(1) <= 1).all()
    assert ((drawn[:, :5] == 0).any(0)).all()
    lost = family("cheetah-body-lost").sample(seeding.generator(0), 50)
    assert (lost[:, 5] == 0).all()
    assert (lost[:, :5] > 0).all()


@pytest.mark.parametrize("name", ["ant-body", "cheetah-body", "walker-body"])
def test_models_are_made_once_and_not_in_every_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = family(name)
    made = []
    body = type(tasks).body
    monkeypatch.setattr(type(tasks), "body", lambda self, goal: made.append(goal) or body(self, goal))
    goals = tasks.sample(torch.Generator().manual_seed(0), 3)
    simulator = tasks.simulator(goals, 2, 1)
    simulator.reset(np.random.default_rng(0))
    for _ in range(3):
        simulator.step(np.zeros((6, tasks.action)))
    assert len(made) <= 4  # the three bodies, and gymnasium's
