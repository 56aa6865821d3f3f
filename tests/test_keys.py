"""Random numbers from keys: those of SplitMix64, equal mapped and alone, uniform, different for different keys."""

from __future__ import annotations

import pytest
import torch

from kshot.numerics import keys, seeding


def splitmix(seed: int, count: int) -> list[int]:
    """Vigna's reference, in Python's integers."""
    found, mask = [], 2**64 - 1
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        found.append(z ^ (z >> 31))
    return found


def test_bits_are_those_of_splitmix():
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
    ]  # published for 1234567
    assert splitmix(1234567, 4) == known
    for seed in (0, 1, 1234567, 2**63 - 1):
        found = keys.bits(torch.tensor(seed), (2, 3)).flatten().tolist()
        assert [value % 2**64 for value in found] == splitmix(seed, 6)
    assert keys.bits(torch.tensor(1), (0,)).shape == (0,)


def test_a_key_is_that_of_a_generator_and_splits_into_others():
    assert int(keys.key(3, "fold", 7)) == seeding.generator(3, "fold", 7).initial_seed()
    own = [int(keys.split(keys.key(seed, "a"), n)) for seed in range(20) for n in range(20)]
    assert len(set(own)) == 400


@pytest.mark.parametrize(
    "draw",
    [
        lambda k: keys.uniform(k, (3, 2)),
        lambda k: keys.integers(keys.split(k, 5), (7,), k % 5 + 1),
        lambda k: keys.order(k, 9),
    ],
)
def test_mapped_numbers_are_those_of_a_loop(draw):
    own = torch.stack([keys.key(seed, "mapped") for seed in range(5)])
    assert torch.equal(torch.vmap(draw)(own), torch.stack([draw(k) for k in own]))


def test_numbers_are_uniform_and_independent():
    count = 40_000
    u = torch.stack([keys.uniform(keys.key(seed, "u"), (count,), torch.float64) for seed in (1, 2)])
    assert ((u >= 0) & (u < 1)).all()
    assert (u.mean(1) - 0.5).abs().max() < 5 * (1 / 12 / count) ** 0.5
    bins = (u * 20).long()
    for row in bins:
        chi = ((row.bincount(minlength=20) - count / 20).square() / (count / 20)).sum()
        assert chi < 50  # 19 degrees of freedom: 1 in 10,000
    centred = u - 0.5
    assert float((centred[0] * centred[1]).mean().abs()) * 12 * count**0.5 < 4
    assert float((centred[0, 1:] * centred[0, :-1]).mean().abs()) * 12 * count**0.5 < 4
    faces = keys.integers(keys.key(0, "die"), (60_000,), 6).bincount()
    assert ((faces - 10_000).square() / 10_000).sum() < 26  # 5 degrees of freedom
    orders = torch.stack([keys.order(keys.key(seed, "order"), 3) for seed in range(600)])
    assert (orders.sort(1).values == torch.arange(3)).all()
    which = (orders * torch.tensor([9, 3, 1])).sum(1).unique(return_counts=True)[1]
    assert len(which) == 6
    assert ((which - 100).square() / 100).sum() < 26
