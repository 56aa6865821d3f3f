"""Tasks of your own for meta reinforcement learning: gymnasium's hopper, to hop at a speed that it is not given.

    python examples/05_own_robot.py            # a few minutes; --quick: seconds, and nothing is learned
    python examples/05_own_robot.py kshot train cheetah-velocity-promp --tasks hopper-velocity --out runs/hopper

A family of tasks says which body it is, how it starts, what it observes and is paid, and when it has fallen; goals are
drawn from `low` to `high`. All rollouts of all tasks are arrays with a row each, simulated together.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np

from kshot import families
from kshot.families.control.settings import ControlRecipe
from kshot.families.control.step import Acting
from kshot.scoring.returns import evaluate
from kshot.tasks.control.mujoco import Mujoco
from kshot.tasks.control.registry import register
from kshot.training.loop import Outer


class Hopper(Mujoco):
    """Paid 1 - |v - goal| - 0.001 |a|^2 until it falls; goals 0..2 m/s. Observes 11 numbers, gives 3 actions."""

    name, file = "hopper-velocity", "hopper.xml"
    horizon, frame_skip, observation, action, goal = 200, 4, 11, 3, 1
    low, high = 0.0, 2.0

    def start(self, rng, tasks):
        """Near the upright position, a row for each rollout."""
        noise = rng.uniform(-0.005, 0.005, (len(tasks), self.model.nq + self.model.nv))
        return self.rest + noise[:, : self.model.nq], noise[:, self.model.nq :]

    def observe(self, physics):
        return np.concatenate([physics.qpos[:, 1:], np.clip(physics.qvel, -10, 10)], axis=1)

    def reward(self, physics, actions, goals):
        velocity = (physics.qpos[:, 0] - physics.was[:, 0]) / (self.frame_skip * self.model.opt.timestep)
        return 1 - np.abs(velocity - goals[:, 0]) - 0.001 * np.square(actions).sum(1)

    def fallen(self, physics):
        height, angle = physics.qpos[:, 1], physics.qpos[:, 2]
        return ~((height > 0.7) & (np.abs(angle) < 0.2))  # also where they are NaN


register("hopper-velocity", Hopper)  # from here on its name is known, also to the command line below


def main(quick: bool) -> None:
    outer = Outer(steps=2 if quick else 60, batch=4 if quick else 20)
    acting = Acting(rollouts=4 if quick else 10, lam=0.95, kl=0.05)
    recipe = ControlRecipe(
        tasks="hopper-velocity", activation="tanh", init="uniform", std=0.4, outer=outer, acting=acting
    )
    with tempfile.TemporaryDirectory() as folder:  # in earnest: "runs/hopper", which `kshot evaluate` takes
        for record in families.train(recipe, out=folder):
            print(f"step {record.step}: return {record.metrics['return_after']:.1f} after adapting")
        trained = families.load_run(folder).learner
    scores = evaluate(trained, Hopper(), num_tasks=4 if quick else 40, rollouts=4 if quick else 20, steps=1)
    for k, mean, half in scores.per_step:
        print(f"{k} gradient steps: return {mean:.1f} ± {half:.1f}")


if __name__ == "__main__":
    if "kshot" in sys.argv[1:2]:
        from kshot.cli import main as command

        del sys.argv[1]
        command()
    main("--quick" in sys.argv)
