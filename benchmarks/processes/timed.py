"""Training for so many minutes of the processor, one thread: other jobs on the machine take nothing from a learner."""

from __future__ import annotations

import math
import time

import torch

from kshot import engine
from kshot.core import Learner
from kshot.numerics import seeding
from kshot.tasks.base import TaskDistribution

__all__ = ["train"]


def train(
    learner: Learner, tasks: TaskDistribution, minutes: float, batch: int = 16, lr: float = 1e-3, seed: int = 0
) -> int:
    """Adam, its rate falling along a cosine of the time, until that is over; returns the updates: 0 of one
    that has no parameters.
    """
    if not list(learner.parameters()):
        return 0
    optimizer = torch.optim.Adam(learner.parameters(), lr)
    began, step = time.process_time(), 0
    learner.train()
    while (share := (time.process_time() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * share)) + 1e-6
        drawn = tasks.sample(seeding.generator(seed, "train", step), batch)
        with seeding.seeded(seed, "noise", step):
            gradients, _ = engine.meta_gradient(learner, drawn, "vmap")
        engine.assign(learner, gradients)
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        step += 1
    return step
