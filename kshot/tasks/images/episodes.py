"""Episodes: few-shot classification tasks, drawn by index from a bank of labelled images.

A batch of episodes is a few tensors of indices (which classes, which of their images) and one gather from the bank: no
loop over tasks, classes or images, on whatever device the bank lives on. A class's images are dealt like cards, by the
largest of random keys: the first go to its support rows, the next to its unlabelled rows, the last to its query rows,
so that nothing is ever in two places of one class.

    classes = topk(rand[T, K], ways + distractors)              # without replacement, in random order
    images = topk(rand[T, ways + distractors, count], need)     # the deal
    x = bank.images[start[classes] + images] / 255
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kshot.core import PADDING, UNLABELLED, Batch, Task
from kshot.numerics import checks
from kshot.tasks.images.augment import Augment

if TYPE_CHECKING:
    from kshot.data.bank import Bank

__all__ = ["Episodes"]


class Episodes:
    """The N-way k-shot episodes of a bank (Vinyals et al. 2016, arXiv:1606.04080), with the field's usual variations.

    Args:
        bank: the labelled images to draw from (see `kshot.data`).
        ways: classes of a task, W. At least 2.
        shots: labelled support images per class, S. At least 1. Not looked at where `shots_range` is given.
        queries: query images per class, Q. At least 1.
        rotations: 4 makes every class turned by 90, 180 and 270 degrees a class of its own (Santoro et al. 2016,
            arXiv:1605.06065); 1 does not. Two turns of one character may meet in an episode, as with
            Prototypical Networks' split (MAML's code turns each character of a task by one random angle), and
            then one photo of it may be seen in both, turned.
        unlabelled: further support images per class with y = -1, U (Ren et al. 2018, arXiv:1803.00676).
        distractors: number of classes from outside the episode that bring U images each, with y = -1.
        shots_range: (low, high), ends included: every class has its own number of shots, drawn uniformly. `shots`
            becomes `high`; the rows that are too many have y = PADDING (-2).
        ways_range: (low, high), ends included: every task has its own number of classes, drawn uniformly. `ways`
            becomes `high`; the rows of classes that are too many have y = PADDING in support and query.
        balanced: True draws Q queries of every class; False draws the W * Q queries from all that is left of the
            classes of the task, so that their shares follow the bank's.
        drop_small: leave out classes with too few images instead of raising an error.
        augment: a function of (task, generator), for instance a `kshot.tasks.Augment`, that every batch passes through.
        names: what `ways`, `shots` and `queries` are called in errors, where they are settings of another name.

    A sample has support rows `[T, W*S + (W + distractors)*U]`, grouped: the shots of class 0, of class 1, ..., then the
    unlabelled rows in the same manner, then the distractors'; and query rows `[T, W*Q]`. Shapes never change. Padding
    rows repeat rows that are there, so the batch statistics of a backbone that ignores masks stay sane. Images are
    float32 in [0, 1]; a bank of float features `[I, D]` gives them as they are. The tasks are on the generator's
    device.

    Attributes:
        ways, shots, queries: as above (the largest, where there is a range).
        input_shape: (C, H, Wd) of an image, or (D,) of a feature.
        classification: True.
        num_classes: how many classes there are to draw from, rotations counted.

    Raises:
        ValueError: the bank has too few classes or images for such episodes, or a number makes no sense.

    >>> from kshot.data.bank import Bank
    >>> images, labels = torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(6).repeat_interleave(10)
    >>> bank = Bank(images, labels, tuple("abcdef"), name="blank", split="train", ink=True)
    >>> task = Episodes(bank, ways=5, shots=1, queries=3).sample(torch.Generator().manual_seed(0), num_tasks=2)
    >>> task.support.x.shape, task.query.x.shape
    (torch.Size([2, 5, 1, 28, 28]), torch.Size([2, 15, 1, 28, 28]))
    >>> task.support.y[0]
    tensor([0, 1, 2, 3, 4])
    """

    classification = True

    def __init__(
        self,
        bank: Bank,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        *,
        rotations: int = 1,
        unlabelled: int = 0,
        distractors: int = 0,
        shots_range: tuple[int, int] | None = None,
        ways_range: tuple[int, int] | None = None,
        balanced: bool = True,
        drop_small: bool = False,
        augment: Callable[[Task, torch.Generator], Task] | None = None,
        names: Mapping[str, str] | None = None,
    ):
        self._names = {name: name for name in ("ways", "shots", "queries")} | dict(names or {})
        self._by_settings = names is not None  # of a command, which has fewer of them than this class
        self.bank = bank
        self.shots_range = _range("shots_range", shots_range, lowest=1)
        self.ways_range = _range("ways_range", ways_range, lowest=2)
        self.ways = checks.whole("ways", ways if self.ways_range is None else self.ways_range[1], 2, exact=True)
        self.shots = checks.whole("shots", shots if self.shots_range is None else self.shots_range[1], 1, exact=True)
        self.queries = checks.whole("queries", queries, 1, exact=True)
        self.unlabelled = checks.whole("unlabelled", unlabelled, 0, exact=True)
        self.distractors = checks.whole("distractors", distractors, 0, exact=True)
        self.rotations = rotations = checks.whole("rotations", rotations, 1, exact=True)
        self.balanced = checks.flag("balanced", balanced)
        self.augment = augment
        self.independent = augment is None or (isinstance(augment, Augment) and augment.task is None)
        self.input_shape: tuple[int, ...] = tuple(bank.images.shape[1:])
        if distractors and not unlabelled:
            raise ValueError(
                f"distractors={distractors} classes bring `unlabelled` images each, which is 0: pass unlabelled>=1"
            )
        if rotations not in (1, 4):
            raise ValueError(f"rotations={rotations}: pass 1 (none) or 4 (by 0, 90, 180 and 270 degrees)")
        if rotations == 4 and (len(self.input_shape) != 3 or self.input_shape[1] != self.input_shape[2]):
            raise ValueError(
                f"rotations=4 needs square images [C, H, H], but those of {self._origin} are {list(self.input_shape)}: "
                "pass rotations=1, or a bank of square images"
            )
        self.need = self.shots + self.unlabelled + self.queries  # images of a class that an episode takes
        counts = bank.counts
        large = counts >= self.need  # [classes]
        if not drop_small and not bool(large.all()):
            raise ValueError(self._too_small(counts))
        kept = large.nonzero().flatten()  # [classes with enough images]
        self.num_classes = len(kept) * rotations
        if self.num_classes < self.ways + self.distractors:
            raise ValueError(self._too_few(int(large.sum()), len(counts)))
        self._start = bank.starts[kept]  # [kept] the first image of a class
        self._count = counts[kept]  # [kept]
        self._most = int(self._count.max())
        self._equal = bool((self._count == self._most).all())

    @property
    def _origin(self) -> str:
        return f"split {self.bank.split!r} of {self.bank.name!r}"

    def __repr__(self) -> str:
        return (
            f"Episodes({self._origin}, ways={self.ways_range or self.ways}, shots={self.shots_range or self.shots}, "
            f"queries={self.queries}, classes={self.num_classes})"
        )

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` episodes: x `[T, rows, C, H, Wd]` float32, y `[T, rows]` int64, on the generator's device."""
        checks.whole("num_tasks", num_tasks, 1)
        t, w, s, u, q, device = num_tasks, self.ways, self.shots, self.unlabelled, self.queries, generator.device
        start, count = self._start.to(device), self._count.to(device)  # [kept]

        def uniform(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high + 1, shape, generator=generator, device=device)

        # Which classes: the largest of random keys are a uniform choice without replacement, in random order.
        keys = torch.rand(t, self.num_classes, generator=generator, device=device)
        chosen = keys.topk(w + self.distractors).indices  # [T, W + distractors]
        turn, chosen = chosen // len(start), chosen % len(start)  # how often by 90 degrees; which class of the bank

        # Which of their images: deal them out in random order. Keys of images beyond a class's count never win.
        keys = torch.rand(t, w + self.distractors, self._most, generator=generator, device=device)
        if not self._equal:
            keys.masked_fill_(torch.arange(self._most, device=device) >= count[chosen][..., None], -1)
        first = start[chosen][..., None]  # [T, W + distractors, 1]
        dealt = keys.topk(self.need if self.balanced else s + u).indices  # [T, W + distractors, need]
        image = first + dealt

        # How many ways and shots are real. A row that is too many shows what row `number % how many` shows.
        ways = uniform(*self.ways_range, t, 1) if self.ways_range else torch.full((t, 1), w, device=device)
        shots = uniform(*self.shots_range, t, w) if self.shots_range else torch.full((t, w), s, device=device)
        slot = torch.arange(w, device=device)
        source = slot % ways  # [T, W] the slot that is shown in the place of each slot
        real = slot < ways  # [T, W]

        def of_source(values: Tensor) -> Tensor:
            """`[T, W, ...]` by slot -> by the slot that is shown in its place."""
            if self.ways_range is None:
                return values
            index = source.view(t, w, *(1,) * (values.dim() - 2)).expand_as(values)
            return values.gather(1, index)

        own = of_source(image[:, :w])  # [T, W, need]
        own_turn = of_source(turn[:, :w])  # [T, W]
        place = torch.arange(s, device=device)
        shown = place % of_source(shots)[..., None]  # [T, W, S]
        y = torch.where(real[..., None] & (place < shots[..., None]), slot[:, None], PADDING)  # [T, W, S]
        rows = [own[..., :s].gather(2, shown).flatten(1)]
        turns = [own_turn.repeat_interleave(s, 1)]
        labels = [y.flatten(1)]
        if u:
            rows += [own[..., s : s + u].flatten(1), image[:, w:, s : s + u].flatten(1)]
            turns += [own_turn.repeat_interleave(u, 1), turn[:, w:].repeat_interleave(u, 1)]
            hidden = torch.where(real, UNLABELLED, PADDING).repeat_interleave(u, 1)  # [T, W*U]
            labels += [hidden, torch.full((t, self.distractors * u), UNLABELLED, device=device)]
        support = Batch(self._images(torch.cat(rows, 1), torch.cat(turns, 1)), torch.cat(labels, 1))

        if self.balanced:
            row, turned = own[..., s + u :].flatten(1), own_turn.repeat_interleave(q, 1)  # [T, W*Q]
            y = torch.where(real, slot, PADDING).repeat_interleave(q, 1)
        else:
            # New keys: what the first deal left are its small ones, and smaller in a class of few images.
            left = (keys[:, :w] >= 0).scatter(2, dealt[:, :w], False) & real[..., None]  # [T, W, most]
            keys = torch.rand(left.shape, generator=generator, device=device).masked_fill_(~left, -1)
            best = keys.flatten(1).topk(w * q).indices  # [T, W*Q]; the first ways*Q are images that are there
            place = torch.arange(w * q, device=device)
            best = best.gather(1, place % (ways * q))
            which = best // self._most  # [T, W*Q] the slot
            row = first.squeeze(2).gather(1, which) + best % self._most
            turned = turn.gather(1, which)
            y = torch.where(place < ways * q, which, PADDING)
        task = Task(support, Batch(self._images(row, turned), y))
        return task if self.augment is None else self.augment(task, generator)

    def _images(self, row: Tensor, turn: Tensor) -> Tensor:
        """Rows of the bank `[T, N]`, turned `[T, N]` times by 90 degrees: `[T, N, C, H, Wd]`, on the rows' device."""
        images = self.bank.images
        x = images[row.to(images.device)].to(row.device)  # [T, N, C, H, Wd]; still uint8, a quarter of the traffic
        for k in range(1, self.rotations):
            rows = (turn == k).nonzero(as_tuple=True)
            x[rows] = x[rows].rot90(k, (-2, -1))  # three small copies: half the time of torch.where over the turns
        return x if x.is_floating_point() else x.to(torch.float32).div_(255)

    def _too_few(self, large: int, total: int) -> str:
        ways, shots, queries = (self._names[name] for name in ("ways", "shots", "queries"))
        needs = f"{ways}={self.ways}" + (f" and distractors={self.distractors}" if self.distractors else "")
        has = f"{large} classes" + (f" of {self.need} or more images (of {total})" if large < total else "")
        has += f", {self.num_classes} with their rotations" if self.rotations > 1 else ""
        most = self.num_classes - self.distractors
        fix = [f"pass {ways}<={most}"] if most >= 2 else ["pass fewer distractors"] if self.distractors else []
        fix += [f"lower {shots} or {queries}"] if large < total else []
        square = len(self.input_shape) == 3 and self.input_shape[1] == self.input_shape[2]
        if self.rotations == 1 and square and 4 * large >= self.ways + self.distractors:
            fix.append("pass rotations=4 (a class turned is a new class)")
        fix.append("use a split with more classes")
        return f"support needs {needs} but {self._origin} has {has}: {', or '.join(fix)}"

    def _too_small(self, counts: Tensor) -> str:
        small = (counts < self.need).nonzero().flatten().tolist()
        names = ", ".join(f"{self.bank.classes[i]!r} ({int(counts[i])})" for i in small[:8])
        names += f" and {len(small) - 8} more" if len(small) > 8 else ""
        shots, queries = self._names["shots"], self._names["queries"]
        parts = f"{shots}={self.shots} + {queries}={self.queries}"
        parts += f" + unlabelled={self.unlabelled}" if self.unlabelled else ""
        return (
            f"episodes need {self.need} images per class ({parts}) but {len(small)} of the {len(counts)} classes of "
            f"{self._origin} have fewer: {names}: lower {shots} or {queries} to {int(counts.min())} images per class "
            f"in all, or {'take these classes out' if self._by_settings else 'pass drop_small=True to leave them out'}"
        )


def _range(name: str, value: tuple[int, int] | None, lowest: int) -> tuple[int, int] | None:
    if value is None:
        return None
    return checks.sizes(name, value, lowest)
