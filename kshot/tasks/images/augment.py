"""Augmentation of classification tasks: of the support set, of the queries, of whole classes.

The four places in which data can be augmented in meta-learning are Ni et al.'s (2021, "Data augmentation for
meta-learning", ICML, arXiv:2010.07092): support, query, task and shot. Here:

    support, shot   `support=m`: each support image becomes m, itself and m - 1 changed ones. Made for adaptation:
                    training and testing alike
    query           `queries=`: changed queries, for training only
    task            `task=`: new classes made of old ones, the same way in support and query, for training only

    tasks = Augmented(Episodes(bank, shots=1), Augment(support=5))
    task = tasks.sample(generator, 16)      # 5 support rows per image

Class ids stay whole numbers. A new class is a pair of classes with ONE box (or one ratio) for all of its images, so it
is a class like any other. A query that is part A and part B is labelled A with the probability of A's share: the
loss is linear in the label, so its expectation is the loss of the soft label that CutMix and MetaMix have.

Image operations are kornia's (`pip install 'kshot[augment]'`); mixing needs nothing but torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from kshot.core import UNLABELLED, Batch, Task
from kshot.numerics import checks
from kshot.tasks.base import TaskDistribution, independent, of_classes

__all__ = ["Augment", "Augmented"]

Operation = Literal["crop", "affine", "color", "erase"]
_OPERATIONS = ("crop", "affine", "color", "erase")
_QUERIES = ("ops", "cutmix", "metamix")
_TASKS = ("cutmix", "mixup", "rotate")
_SHARE = (0.25, 0.75)  # of the second class in a class made of two: less would not be a new class


class Augment:
    """A function of (task, generator) that gives the augmented task.

    Args:
        support: m, rows per support image: the image itself and m - 1 changed ones after it, with the same y. 1: none.
        ops: what changes them, in this order: "crop" (at least 70 % of the image, resized), "affine" (15 degrees, 10 %
            shift, 10 % scale, 5 degrees shear; the border is repeated), "color" (jitter; RGB images only, others are
            left), "erase" (half of the images lose a box of 2 to 20 % of their pixels).
        queries: None; "ops": the same operations on every query; "cutmix": each query gets a box of another query of
            its task (Yun et al. 2019, arXiv:1905.04899); "metamix": each query is mixed with a support image of its
            task (Yao et al. 2021, ICML). The labels are drawn as the module says. For training only.
        task: None; "cutmix": a class becomes a new class, the same box of all its images being taken from a class of
            another task of the batch; "mixup": the same with one ratio instead of one box; "rotate": a class is turned
            by 90, 180 or 270 degrees. For training only.
        task_probability: the share of classes that `task` makes new, 0..1.

    Rows with y < 0 are never mixed, turned or mixed in.

    Differs from the papers: CutMix and MetaMix of queries draw hard labels in place of soft ones (equal in
    expectation); MetaMix mixes inputs and no hidden layers, with Beta(2, 2); for new classes the share of the second
    class is uniform in 0.25..0.75.

    Raises:
        ValueError: a setting is unknown or out of range; inputs are not images; `task` with unlabelled rows, whose
            class could not follow; `task="rotate"` with images that are not square.
        ImportError: an image operation is asked for and kornia is not installed.

    >>> x, y = torch.rand(2, 5, 1, 28, 28), torch.arange(5).expand(2, 5)
    >>> task = Task(Batch(x, y), Batch(x, y))
    >>> task = Augment(task="cutmix", task_probability=1.0)(task, torch.Generator().manual_seed(0))
    >>> task.query.x.shape
    torch.Size([2, 5, 1, 28, 28])
    """

    def __init__(
        self,
        support: int = 1,
        ops: Sequence[Operation] = _OPERATIONS,
        queries: Literal["ops", "cutmix", "metamix"] | None = None,
        task: Literal["cutmix", "mixup", "rotate"] | None = None,
        task_probability: float = 0.5,
    ):
        support = checks.whole("support", support, 1)  # rows per support image
        if unknown := [op for op in ops if op not in _OPERATIONS]:
            raise ValueError(f"ops={tuple(ops)!r} has the unknown {unknown}: choose from {_OPERATIONS}")
        if queries is not None and queries not in _QUERIES:
            raise ValueError(f"queries={queries!r}: choose None or one of {_QUERIES}")
        if task is not None and task not in _TASKS:
            raise ValueError(f"task={task!r}: choose None or one of {_TASKS}")
        if not 0 <= task_probability <= 1:
            raise ValueError(f"task_probability={task_probability}: pass a number from 0 to 1")
        self.support = support
        self.ops = tuple(ops)
        self.queries = queries
        self.task = task
        self.task_probability = task_probability
        self._pipelines: dict[tuple[int, ...], list[Any]] = {}
        if (support > 1 or queries == "ops") and self.ops:
            _kornia()  # missing: say so now and not at the first batch

    def __repr__(self) -> str:
        return (
            f"Augment(support={self.support}, ops={self.ops}, queries={self.queries!r}, task={self.task!r}, "
            f"task_probability={self.task_probability})"
        )

    def __call__(self, task: Task, generator: torch.Generator) -> Task:
        """Images `[T, N, C, H, Wd]` -> `[T, N * support, C, H, Wd]` in the support set, `[T, M, ...]` in the query."""
        if task.support.x.dim() != 5 or task.support.y.is_floating_point():
            raise ValueError(
                f"augmentation needs a batch of classification tasks with images [T, N, C, H, W], but x is "
                f"{list(task.support.x.shape)} and y {task.support.y.dtype}: leave `augment` out for this data"
            )
        if self.task is not None:
            task = self._new_classes(task, generator)
        support, query = task
        if self.queries in ("cutmix", "metamix"):
            query = self._mixed_queries(task, generator)
        elif self.queries == "ops":
            query = Batch(self._changed(query.x, generator), query.y)
        m = self.support
        if m > 1:
            t, n, *image = support.x.shape
            x = support.x[:, :, None].expand(t, n, m, *image)  # [T, N, m, C, H, Wd]
            changed = self._changed(x[:, :, 1:].flatten(1, 2), generator).view(t, n, m - 1, *image)
            x = torch.cat([x[:, :, :1], changed], 2).flatten(1, 2)  # [T, N*m, C, H, Wd]
            support = Batch(x, support.y.repeat_interleave(m, 1))
        return Task(support, query)

    def _changed(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Every image of `[T, N, C, H, Wd]` changed on its own."""
        shape = tuple(x.shape[2:])
        if shape not in self._pipelines:
            self._pipelines[shape] = _pipeline(self.ops, *shape)
        images = x.flatten(0, 1)  # [T*N, C, H, Wd]
        with _kornia_seeded(generator, images.device):
            for operation in self._pipelines[shape]:
                images = operation(images)
        return images.clamp(0, 1).view(x.shape)

    def _new_classes(self, task: Task, generator: torch.Generator) -> Task:
        t, height, width, device = len(task.support.y), *task.support.x.shape[-2:], task.support.x.device
        if bool((task.support.y == UNLABELLED).any()):
            raise ValueError(
                f"task={self.task!r} makes new classes, and unlabelled support rows (y=-1) cannot follow theirs: "
                "pass unlabelled=0 to Episodes, or task=None"
            )
        if self.task == "rotate" and height != width:
            raise ValueError(f"task='rotate' needs square images, these are {height}x{width}: use 'cutmix' or 'mixup'")
        w = int(torch.maximum(task.support.y.max(), task.query.y.max())) + 1
        classes, tasks = torch.arange(w, device=device), torch.arange(t, device=device)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=generator.device).to(device)

        def integer(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=generator, device=generator.device).to(device)

        # The second class: of the same number in another task; in a batch of one task, another of its classes.
        other = (tasks + integer(1, t, t)) % t if t > 1 else tasks  # [T]
        second = (classes + integer(1, w, 1)) % w if t == 1 and w > 1 else classes  # [W]
        new = uniform(t, w) < self.task_probability  # [T, W]
        if self.task != "rotate":  # The second class must have rows in both sets.
            for batch in task:
                new = new & (batch.y[other][:, :, None] == second).any(1)
        turn = integer(1, 4, t, w)
        low, high = _SHARE
        share = low + (high - low) * uniform(t, w)  # [T, W] of the second class
        if self.task == "cutmix":
            first_part = _outside_box(share, uniform(t, w), uniform(t, w), height, width)  # [T, W, H, Wd]
        else:
            first_part = (1 - share)[..., None, None].expand(t, w, height, width)

        def renewed(batch: Batch) -> Batch:
            x, y = batch
            c = y.clamp_min(0)  # [T, N]
            touched = (new.gather(1, c) & (y >= 0))[..., None, None, None]  # [T, N, 1, 1, 1]
            if self.task == "rotate":
                turned = turn.gather(1, c)[..., None, None, None]
                for k in (1, 2, 3):
                    x = torch.where(touched & (turned == k), batch.x.rot90(k, (-2, -1)), x)
                return Batch(x, y)
            match = y[other][:, None, :] == second[c][:, :, None]  # [T, N, N]
            row = uniform(*match.shape).masked_fill(~match, -1).argmax(-1)  # [T, N] any row of the second class
            part = first_part[tasks[:, None], c][:, :, None]  # [T, N, 1, H, Wd]
            return Batch(torch.where(touched, part * x + (1 - part) * x[other[:, None], row], x), y)

        return Task(renewed(task.support), renewed(task.query))

    def _mixed_queries(self, task: Task, generator: torch.Generator) -> Batch:
        x, y = task.query
        source = task.support if self.queries == "metamix" else task.query
        t, m, _, height, width = x.shape

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=generator.device).to(x.device)

        valid = (source.y >= 0)[:, None, :]  # [T, 1, N]
        row = uniform(t, m, source.y.shape[1]).masked_fill(~valid, -1).argmax(-1)  # [T, M]
        task_of = torch.arange(t, device=x.device)[:, None]
        if self.queries == "cutmix":
            own = _outside_box(uniform(t, m), uniform(t, m), uniform(t, m), height, width)  # [T, M, H, Wd]
        else:
            own = uniform(t, m, 3).median(-1).values[..., None, None].expand(t, m, height, width)  # is Beta(2, 2)
        share = own.mean((-2, -1))  # [T, M] of the query's own class
        label = torch.where(uniform(t, m) < share, y, source.y[task_of, row])
        own = own[:, :, None]  # [T, M, 1, H, Wd]
        mixed = own * x + (1 - own) * source.x[task_of, row]
        real = y >= 0
        return Batch(torch.where(real[..., None, None, None], mixed, x), torch.where(real, label, y))


class Augmented:
    """A distribution of classification tasks whose every task is augmented.

    Args:
        tasks: the distribution.
        augment: what is done to each batch.

    The tasks drawn are those that `tasks` alone would draw from the same generator, then augmented. `ways`, `shots`,
    `queries` and `input_shape` are those of `tasks`; the support set has `augment.support` rows per shot.

    Raises:
        ValueError: the tasks are regressions.
    """

    classification = True

    def __init__(self, tasks: TaskDistribution, augment: Augment):
        if of_classes(tasks) is False:
            raise ValueError(f"{tasks!r} has no classes or images to augment: use it as it is")
        self.tasks = tasks
        self.augment = augment

    def __getattr__(self, name: str) -> Any:
        if name in ("tasks", "augment") or name.startswith("__"):  # unpickling asks before there is anything
            raise AttributeError(name)
        return getattr(self.tasks, name)

    @property
    def independent(self) -> bool:
        """Whether the tasks of a sample share nothing: new classes are made of two tasks of a batch."""
        return self.augment.task is None and independent(self.tasks)

    def __repr__(self) -> str:
        return f"Augmented({self.tasks!r}, {self.augment!r})"

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` augmented tasks, with a leading T."""
        return self.augment(self.tasks.sample(generator, num_tasks), generator)


def _outside_box(share: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """1 outside and 0 inside a box of `share` `[...]` of the pixels, placed by top, left in 0..1: `[..., H, Wd]`."""

    def inside(place: Tensor, size: int) -> Tensor:
        length = (share.sqrt() * size).round()
        start = (place * (size - length + 1)).floor()
        pixels = torch.arange(size, device=share.device)
        return (pixels >= start[..., None]) & (pixels < (start + length)[..., None])  # [..., size]

    box = inside(top, height)[..., :, None] & inside(left, width)[..., None, :]
    return (~box).to(torch.float32)


def _kornia() -> Any:
    try:
        return importlib.import_module("kornia.augmentation")
    except ImportError as error:
        raise ImportError(
            "image augmentation needs kornia, which is not installed: pip install 'kshot[augment]'"
        ) from error


def _pipeline(ops: Sequence[str], channels: int, height: int, width: int) -> list[Any]:
    if not ops:
        return []
    k = _kornia()
    # The strengths are ours: small enough that a letter stays the letter it is.
    made = {
        # "resample": one batched grid; kornia's default loops over the images.
        "crop": lambda: k.RandomResizedCrop(
            (height, width), scale=(0.7, 1.0), ratio=(0.85, 1.18), p=1.0, cropping_mode="resample"
        ),
        # "border": paper stays paper, black or white; zeros would draw black corners on white paper.
        "affine": lambda: k.RandomAffine(
            15.0, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5.0, p=1.0, padding_mode="border"
        ),
        "color": lambda: k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        "erase": lambda: k.RandomErasing(scale=(0.02, 0.2), p=0.5),
    }
    return [made[op]() for op in ops if op != "color" or channels == 3]


@contextmanager
def _kornia_seeded(generator: torch.Generator, device: torch.device):
    """kornia draws from torch's global streams: seed them from the generator, and put them back afterwards."""
    seed = int(torch.randint(0, 2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
