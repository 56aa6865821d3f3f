"""Images as functions from a pixel's coordinates to its colour: what a few pixels say about the rest.

    tasks = ImageCompletion(kshot.data.load("omniglot", "train"), context=(10, 200))
    task = tasks.sample(generator, 16)
    pictures = tasks.picture(task.query.y)          # [16, C, H, W]

Garnelo et al. 2018 (Conditional neural processes, ICML, arXiv:1807.01613), section 4.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kshot.core import Batch, Task
from kshot.numerics.checks import sizes, whole
from kshot.tasks.functions.sinusoid import deal

if TYPE_CHECKING:
    from kshot.data.bank import Bank

__all__ = ["ImageCompletion"]


class ImageCompletion:
    """Each task is one image, some of whose pixels are known.

    Args:
        images: `[n, C, H, W]`, uint8 (0..255) or floating (0..1), or a bank of images (see `kshot.data`).
        context: (least, most) known pixels, uniform; None: 10 to a quarter of the image.
        targets: pixels asked, drawn from those that are not given; None: by `grid`.
        grid: without `targets`: True asks for all pixels, known ones too, row by row from the top left corner; False
            for all that are not given, in random order.
        ragged: each task has its own number of pixels and padding rows have y = NaN; False: one number for a
            batch.

    x is (row, column), each -1 at the first and 1 at the last; y the channels' values, 0..1. A sample has x `[T, N, 2]`
    and `[T, M, 2]`, y `[T, N, C]` and `[T, M, C]`, float32. Known pixels are drawn without repetition.

    Attributes:
        input_shape, outputs: (2,), C.
        height, width: of the images.
        grid: whether the queries are the whole image, row by row.

    Raises:
        ValueError: no images, values outside of 0..1, or more pixels than there are.

    >>> task = ImageCompletion(torch.rand(3, 1, 8, 8), context=(4, 4)).sample(torch.Generator().manual_seed(0), 2)
    >>> task.support.x.shape, task.query.y.shape
    (torch.Size([2, 4, 2]), torch.Size([2, 64, 1]))
    """

    classification = False
    input_shape: tuple[int, ...] = (2,)

    def __init__(
        self,
        images: Tensor | Bank,
        context: tuple[int, int] | None = None,
        targets: int | None = None,
        grid: bool = True,
        ragged: bool = False,
    ):
        pixels = images if isinstance(images, Tensor) else images.images
        if pixels.dim() != 4 or 0 in pixels.shape:
            raise ValueError(f"images of shape {list(pixels.shape)}: pass [n, C, H, W], at least one")
        if pixels.dtype != torch.uint8:
            if not pixels.is_floating_point():
                raise ValueError(f"images are {pixels.dtype}: pass uint8 (0..255) or floating numbers (0..1)")
            low, high = float(pixels.min()), float(pixels.max())
            if not (low >= 0 and high <= 1):
                raise ValueError(f"values from {low:g} to {high:g}: pass floating images in 0..1, or uint8 ones")
        self.images = pixels
        self.outputs, self.height, self.width = pixels.shape[1:]
        count = self.height * self.width
        if context is None:
            context = (min(10, count // 4), count // 4)
        self.context = sizes("context", context, 0)
        if context[1] >= count:
            raise ValueError(f"context={context} of {count} pixels leaves none to ask: pass most <= {count - 1}")
        self.targets = None if targets is None else whole("targets", targets, 1)
        if self.targets is not None and self.targets > count - context[1]:
            raise ValueError(
                f"targets={targets} and context={context} are more than the {count} pixels: pass at most "
                f"{count - context[1]} targets, or None for the whole image"
            )
        self.grid, self.ragged = grid and targets is None, ragged
        self.independent = ragged or context[0] == context[1]
        rows, columns = (_axis(size) for size in (self.height, self.width))
        self.places = torch.cartesian_prod(rows, columns)  # [H*W, 2]

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return (
            f"ImageCompletion({len(self.images)} images of {shape}, context={self.context}, targets={self.targets}, "
            f"grid={self.grid}, ragged={self.ragged})"
        )

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` images, with repetition: a Task with a leading T."""
        t, device = whole("num_tasks", num_tasks, 1), generator.device
        chosen = torch.randint(len(self.images), (t,), generator=generator, device=device)
        pixels = self.images[chosen.to(self.images.device)].to(device)
        pixels = pixels.float() if pixels.is_floating_point() else pixels.float() / 255
        y = pixels.flatten(2).transpose(1, 2)  # [T, H*W, C]
        places = self.places.to(device)
        there = torch.ones(y.shape[:2], dtype=torch.bool, device=device)
        dealt = deal(generator, there, self.context, self.targets, self.ragged)

        def batch(place: Tensor, real: Tensor) -> Batch:
            values = y.gather(1, place[..., None].expand(*place.shape, self.outputs))
            return Batch(places[place], torch.where(real[..., None], values, torch.nan))

        support = batch(dealt.support, dealt.known)
        if self.grid:
            return Task(support, Batch(places.expand(t, *places.shape).clone(), y.contiguous()))
        return Task(support, batch(dealt.query, dealt.asked))

    def picture(self, y: Tensor) -> Tensor:
        """Values `[..., H*W, C]` of the whole grid as images `[..., C, H, W]`.

        Raises:
            ValueError: they are not as many as the pixels.
        """
        if y.shape[-2:] != (self.height * self.width, self.outputs):
            raise ValueError(
                f"values {list(y.shape)} are not an image of {self.height}x{self.width} with {self.outputs} channels: "
                "pass predictions for the queries of a distribution with grid=True and targets=None"
            )
        return y.transpose(-1, -2).unflatten(-1, (self.height, self.width))


def _axis(size: int) -> Tensor:
    return torch.linspace(-1.0, 1.0, size) if size > 1 else torch.zeros(1)
