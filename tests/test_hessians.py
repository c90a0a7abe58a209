"""Hessians by differences of gradients, and those of sparse energies by few of these."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from skcds.density.energy import Energy
from skcds.explore.hessians import LARGE, Hessians, colouring
from skcds.explore.laplace import laplace_standardization, stepped
from skcds.specifications import HighDimension

D = 96
MANY = LARGE + 44


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chain(x):
    """Neighbours depend on each other: entries beside the diagonal, of a different size everywhere."""
    return (x.exp() - x).sum(1) + ((x[:, 1:] - 0.7 * x[:, :-1]) ** 4).sum(1) + (x**2).sum(1)


def dense(x):
    return chain(x) + 0.01 * x.sum(1) ** 4


def sometimes_far(x):
    """The first coordinate and the last depend on each other where the sum of both is large."""
    return chain(x) + (x[:, 0] + x[:, -1] - 3).clamp(min=0) ** 3


def energy_of(function, d=D):
    energy = Energy(function, d, generator=seeded())
    energy.n_energy_evals = 0
    return energy


def points(n, scale=0.3, d=D):
    return scale * torch.randn(n, d, generator=seeded(1), dtype=torch.float64)


def true_hessian(function, x):
    return torch.autograd.functional.hessian(lambda point: function(point[None])[0], x)


@pytest.mark.parametrize("function", [chain, dense, sometimes_far])
def test_of_any_energy(function):
    energy = energy_of(function)
    hessians = Hessians(energy)
    for x in points(5):
        expected = true_hessian(function, x)
        found = hessians(x)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(found, found.T)


def test_of_a_sparse_one_by_few_evaluations():
    """Three groups of columns, and another vector; two evaluations for each."""
    energy = energy_of(chain)
    hessians, counts = Hessians(energy), []
    for x in points(4):
        before = energy.n_energy_evals
        hessians(x)
        counts.append(energy.n_energy_evals - before)
    assert counts == [2 * D] + [2 * (3 + 1)] * 3


def test_steps_to_the_best_gaussian_take_them():
    energy = energy_of(chain)
    start, before = laplace_standardization(energy), energy.n_energy_evals
    by = HighDimension(mean_steps=1, n_draws=2)
    found = stepped(energy, start, seeded(), by, None, range(6))
    assert energy.n_energy_evals - before == 2 * D + 5 * 8 + 6 * 2
    assert found is not start


def test_of_a_dense_one_nothing_changes():
    energy = energy_of(dense)
    hessians = Hessians(energy)
    for x in points(4):
        before = energy.n_energy_evals
        hessians(x)
        assert energy.n_energy_evals - before == 2 * D
    assert hessians.groups is None


def test_entries_that_appear_are_seen():
    """The Hessian where they do is right, and dense; what comes after knows them."""
    energy = energy_of(sometimes_far)
    hessians, (*near, far) = Hessians(energy), points(4)
    far[0] = far[-1] = 2.0
    for x in near:
        hessians(x)
    assert not hessians.pattern[0, D - 1]
    before = energy.n_energy_evals
    assert torch.allclose(hessians(far), true_hessian(sometimes_far, far), rtol=1e-5, atol=1e-5)
    assert energy.n_energy_evals - before == 2 * (3 + 1) + 2 * D
    assert hessians.pattern[0, D - 1] and hessians.groups[0] != hessians.groups[-1]
    assert hessians(far)[0, -1] == pytest.approx(6.0, rel=1e-4)  # 6 (2 + 2 - 3), by groups


def test_a_wrong_pattern_is_noticed():  # negative control
    """Each in the place of one on the diagonal: all columns are one group then."""
    energy = energy_of(chain)
    hessians = Hessians(energy, csr_array(np.eye(D)))
    x = points(1)[0]
    assert hessians.groups.max() == 0
    assert torch.allclose(hessians(x), true_hessian(chain, x), rtol=1e-5, atol=1e-6)
    assert energy.n_energy_evals == 2 * (1 + 1) + 2 * D and hessians.groups.max() == 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_make_no_groups(value):
    class Target:
        def log_prob_and_score(self, x):
            return x[:, 0], torch.where(x[:, :1] > 0, value, -x)

    hessians, x = Hessians(Target()), torch.full((D,), -1.0, dtype=torch.float64)
    x[0] = 0
    assert not hessians(x).isfinite().all() and hessians.groups is None
    x[0] = -1
    assert torch.allclose(hessians(x), torch.eye(D, dtype=torch.float64)) and hessians.groups.max() == 0


class TestOfManyFeatures:
    """Sparse matrices, and no dense one on the way."""

    def test_sparse_ones(self):
        hessians = Hessians(energy_of(chain, MANY))
        for x in points(3, d=MANY):
            found = hessians(x)
            assert isinstance(found, csr_array) and found.nnz == 3 * MANY - 2
            assert np.allclose(found.toarray(), true_hessian(chain, x), rtol=1e-5, atol=1e-6)
        assert hessians.elimination.is_sparse

    def test_dense_ones(self):
        hessians, x = Hessians(energy_of(dense, MANY)), points(1, d=MANY)[0]
        assert torch.allclose(hessians(x), true_hessian(dense, x), rtol=1e-5, atol=1e-5)
        assert hessians.elimination is None

    def test_that_become_dense(self):
        def becomes_dense(x):
            return chain(x) + 0.01 * (x.sum(1) - 100).clamp(min=0) ** 3

        hessians, (near, far) = Hessians(energy_of(becomes_dense, MANY)), points(2, d=MANY)
        far += 1.0
        assert isinstance(hessians(near), csr_array)
        found = hessians(far)
        assert torch.allclose(found, true_hessian(becomes_dense, far), rtol=1e-4, atol=1e-4)
        assert hessians.elimination is None

    def test_entries_that_appear_join_the_pattern(self):
        hessians, (near, far) = Hessians(energy_of(sometimes_far, MANY)), points(2, d=MANY)
        far[0] = far[-1] = 2.0
        assert hessians(near)[0, MANY - 1] == 0
        assert hessians(far)[0, MANY - 1] == pytest.approx(6.0, rel=1e-4)
        assert isinstance(hessians(near), csr_array) and hessians.pattern.nnz == 3 * MANY

    def test_a_pattern_without_groups_has_no_elimination(self):
        """Where all coordinates begin to depend on the last one, the order that was known before is of no use."""

        def arrow(x):
            return chain(x) - chain(x).detach() + x.square().sum(1) + x[:, -1] * (x[:, :-1] ** 2).sum(1)

        hessians, x = Hessians(energy_of(arrow, MANY)), points(1, d=MANY)[0]
        assert isinstance(hessians(torch.zeros_like(x)), csr_array) and hessians.elimination is not None
        assert torch.allclose(hessians(x), true_hessian(arrow, x), rtol=1e-5, atol=1e-5)
        assert hessians.elimination is None

    def test_entries_of_minus_one_stay(self):
        """Patterns are sums of ones, which entries of a Hessian do not cancel."""
        path = csr_array(np.diag(np.full(MANY, 2.0)) - np.diag(np.ones(MANY - 1), 1) - np.diag(np.ones(MANY - 1), -1))
        hessians = Hessians(energy_of(chain, MANY), path)
        hessians._know(-path)
        assert hessians.pattern.nnz == 3 * MANY - 2

    def test_scales_that_differ(self):
        """Coordinates a thousand times as wide as others keep their entries."""
        width = torch.ones(MANY, dtype=torch.float64)
        width[::3] = 1e3
        hessians, x = Hessians(energy_of(lambda x: chain(x / width.to(x)), MANY)), width * points(1, d=MANY)[0]
        expected = true_hessian(lambda x: chain(x / width.to(x)), x) * width[:, None] * width
        assert np.allclose(hessians(x).toarray() * np.outer(width, width), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("width", [0, 1, 3])
def test_groups_have_no_row_in_common(width):
    place = np.arange(D)
    pattern = np.abs(place[:, None] - place) <= width
    groups = colouring(csr_array(pattern), D)
    assert groups.max() == 2 * width  # as few as there can be
    for group in range(2 * width + 1):
        assert pattern[:, groups == group].sum(1).max() <= 1
    assert colouring(csr_array(pattern), 2 * width) is None


def test_groups_of_a_lattice():
    side = 8
    place = np.arange(side**2)
    row, column = place // side, place % side
    far = sum(np.minimum((k[:, None] - k) % side, (k - k[:, None]) % side) for k in (row, column))
    pattern = far <= 1
    groups = colouring(csr_array(pattern), side**2)
    assert 5 <= groups.max() + 1 <= 13
    assert all(pattern[:, groups == group].sum(1).max() <= 1 for group in range(groups.max() + 1))
