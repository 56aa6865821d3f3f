"""Conjugate gradients: against a direct solution, mapped, and where there is nothing to solve."""

from __future__ import annotations

import pytest
import torch

from kshot.numerics import seeding, tree
from kshot.numerics.linear import conjugate_gradient

SIZE = 12


def system(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = seeding.generator(seed)
    root = torch.randn(SIZE, SIZE, generator=g, dtype=torch.float64)
    return root @ root.T + torch.eye(SIZE), torch.randn(SIZE, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("from_b", [False, True])
def test_as_many_steps_as_unknowns_solve_it(from_b: bool) -> None:
    a, b = system()
    for steps in (0, 3, 3 * SIZE):
        x, image = conjugate_gradient(lambda v: a @ v, b, steps, b if from_b else None)
        torch.testing.assert_close(image, a @ x)
    torch.testing.assert_close(x, torch.linalg.solve(a, b))


def test_each_step_is_the_best_within_its_directions() -> None:
    """After k steps from 0, x is the A-nearest point to the solution in the span of b, A b, ..., A^(k-1) b."""
    a, b = system()
    for k in (1, 2, 5):
        x, _ = conjugate_gradient(lambda v: a @ v, b, k)
        basis = torch.stack([torch.linalg.matrix_power(a, i) @ b for i in range(k)], 1)
        basis = torch.linalg.qr(basis).Q
        torch.testing.assert_close(x, basis @ torch.linalg.solve(basis.T @ a @ basis, basis.T @ b))


def test_what_is_solved_or_curved_the_wrong_way_stands_still() -> None:
    _, b = system()
    for product in (lambda v: v, lambda v: -2 * v):
        assert torch.equal(conjugate_gradient(product, b, 5, b)[0], b)
    a, _ = system()
    short = 1e-6 * b  # its squared length is below `least`
    assert torch.equal(conjugate_gradient(lambda v: a @ v, short, 5, least=1e-10)[0], torch.zeros_like(b))
    _, image = conjugate_gradient(lambda v: a @ v, b, 10 * SIZE, least=1e-6)
    assert 0 < (image - b).square().sum() < 1e-6
    assert torch.equal(conjugate_gradient(lambda v: a @ v, torch.zeros_like(b), 3)[0], torch.zeros_like(b))


def test_mapped_over_systems_each_stops_by_itself() -> None:
    systems = [system(seed) for seed in range(3)]
    a, b = (torch.stack(leaves) for leaves in zip(*systems, strict=True))
    a[1] *= -1  # stands still
    x, _ = torch.vmap(lambda a, b: conjugate_gradient(lambda v: a @ v, b, 2 * SIZE))(a, b)
    torch.testing.assert_close(x[[0, 2]], torch.linalg.solve(a[[0, 2]], b[[0, 2]]))
    assert (x[1] == 0).all()


def test_flat_and_back() -> None:
    like = {"a": torch.zeros(2, 3), "b": [torch.zeros(()), torch.zeros(4, dtype=torch.float64)]}
    vector = torch.arange(11.0, dtype=torch.float64)
    back = tree.unflat(vector, like)
    assert torch.equal(tree.flat(back).double(), vector)
    for leaf, wanted in zip(tree.leaves(back), tree.leaves(like), strict=True):
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
