"""Random numbers as a function of a key, an int64 tensor: bit-identical alone, under `torch.vmap` and on any device.

    k = key(seed, "fold", step)                       # a number for a purpose, as `seeding.generator`
    rows = integers(split(k, 0), (32,), high=count)   # `high` may be a tensor, of this seed alone under vmap

A `torch.Generator` cannot be seeded by a mapped tensor, and torch's global one is in no checkpoint. Here number i of a
key is output i of SplitMix64 seeded with it, in int64 operations that wrap around. Not for secrets.

Guy L. Steele, Doug Lea, Christine H. Flood: Fast Splittable Pseudorandom Number Generators. OOPSLA 2014.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kshot.numerics import seeding

__all__ = ["bits", "integers", "key", "order", "split", "uniform"]

_GAMMA, _FIRST, _SECOND = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def key(seed: int, *path: int | str) -> Tensor:
    """The key `[]` of a purpose: that of `seeding.generator(seed, *path)`."""
    return torch.tensor(seeding.generator(seed, *path).initial_seed())


def split(key: Tensor, number: int) -> Tensor:
    """Another key `[]` for each number."""
    return _mixed(_mixed(key) + number * 2 + 1)


def bits(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """int64 of `shape`, all 64 bits random.

    >>> (bits(torch.tensor(1234567), (2,)) % 2**31).tolist()
    [2064186501, 1481904037]
    """
    count = torch.arange(1, math.prod(shape) + 1, device=key.device).reshape(shape)
    return _mixed(key + count * _GAMMA)


def uniform(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in [0, 1), multiples of 2**-24."""
    return _right(bits(key, shape), 40).to(dtype) * 2.0**-24


def integers(key: Tensor, shape: tuple[int, ...], high: int | Tensor) -> Tensor:
    """int64 in [0, high), `high` at least 1 and broadcast to `shape`."""
    return _right(bits(key, shape), 1) % high


def order(key: Tensor, count: int) -> Tensor:
    """A random order `[count]` of the numbers 0, ..., count - 1."""
    return bits(key, (count,)).argsort(stable=True)


def _right(x: Tensor, by: int) -> Tensor:
    """A shift to the right that lets zeros in: torch's repeats the sign."""
    return (x >> by) & (2 ** (64 - by) - 1)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _right(x, 30)) * _FIRST
    x = (x ^ _right(x, 27)) * _SECOND
    return x ^ _right(x, 31)
