"""Every random number of kshot comes from a `torch.Generator` made here, so that a seed determines a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["generator", "seeded"]


def generator(seed: int, *path: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for a purpose: `generator(seed, "train", step)` differs from `generator(seed, "val", step)`.

    The stream depends on the arguments alone, so step 1000 can be drawn without drawing the steps before it.

    >>> a, b = generator(0, "train", 7), generator(0, "train", 7)
    >>> bool(torch.rand((), generator=a) == torch.rand((), generator=b))
    True
    """
    text = "/".join(str(part) for part in (seed, *path))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator(device=device).manual_seed(number)


@contextmanager
def seeded(seed: int, *path: int | str) -> Iterator[None]:
    """Inside the `with`, torch's global generator (weight initialisation) is seeded for a purpose; then put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, *path).initial_seed())
        yield
