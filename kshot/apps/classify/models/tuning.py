"""Fine-tuning a backbone on a support set: the third stage of Hu et al. 2022 (arXiv:2204.07305), P > M > F."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from kshot import engine, learners
from kshot.core import Batch, Learner, Task
from kshot.numerics import seeding
from kshot.tasks.images.augment import Augment

__all__ = ["tuned"]


def tuned(learner: Learner, images: Tensor, y: Tensor, kind: str, steps: int, lr: float, seed: int) -> Learner:
    """A copy of `learner` that is meta-trained on one task alone: the support set as it is, and changed copies of it as
    queries (crop and affine: colours often distinguish classes of photos). Population statistics stay as they are.

    Args:
        learner: one that works on features of its `body`.
        images: float `[N, C, S, S]` in 0..1.
        y: int64 `[N]`, 0..W-1.
        kind: the learner's name in the registry.
        steps: of Adam.
        lr: its rate.
        seed: of the changed copies.

    Raises:
        ImportError: kornia is not there.
    """
    own = learners.build(kind, copy.deepcopy(learner.body), int(y.max()) + 1)  # pyright: ignore
    rest = {n: t for n, t in learner.state_dict().items() if not n.startswith("body.")}
    own.load_state_dict(rest, strict=False)
    own.eval()
    augment, draw = Augment(queries="ops", ops=("crop", "affine")), seeding.generator(seed, "finetune")
    weights = [p for p in own.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr)
    task = Task(Batch(images[None], y[None]), Batch(images[None], y[None]))
    for _ in range(steps):
        gradients, _ = engine.meta_gradient(own, augment(task, draw))
        engine.assign(own, gradients)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    return own.eval()
