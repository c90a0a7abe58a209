"""JAX log densities as energies."""

import sys

import numpy as np
import pytest
import torch
from test_adapters import check_contract, points, value_and_gradient

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from skcds.adapters import from_jax  # noqa: E402
from skcds.density.energy import InvalidEnergyError  # noqa: E402

COVARIANCE = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.4], [0.0, -0.4, 0.5]])
PRECISION = np.linalg.inv(COVARIANCE)  # a NumPy array, and so in double precision


def log_normal(x):
    """Correlated normal, of one point."""
    return -0.5 * (x - 1) @ PRECISION @ (x - 1)


def log_normal_of_batch(x):
    return -0.5 * ((x - 1) @ PRECISION * (x - 1)).sum(-1)


both = pytest.mark.parametrize("log_prob, batched", [(log_normal, False), (log_normal_of_batch, True)])


@both
class TestEnergy:
    def test_contract(self, log_prob, batched):
        check_contract(from_jax(log_prob, 3, batched=batched))

    @pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1024, 1025, 2500])
    def test_values_and_gradients_in_double_precision(self, log_prob, batched, n):
        """To 1e-12; in single precision it is 1e-7, which is found out."""
        X = points(n, 3, seed=n)
        value, gradient = value_and_gradient(from_jax(log_prob, 3, batched=batched), X)
        np.testing.assert_allclose(value, -log_normal_of_batch(X), rtol=1e-12)
        np.testing.assert_allclose(gradient, (X - 1) @ PRECISION, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(from_jax(log_prob, 3, batched=batched)(X), value, rtol=1e-12)
        single = -log_normal_of_batch(X.astype(np.float32).astype(np.float64))
        assert not np.allclose(value, single, rtol=1e-12, atol=0)

    def test_few_shapes_are_compiled(self, log_prob, batched):
        shapes = []

        def traced(x):
            shapes.append(x.shape)
            return log_prob(x)

        energy = from_jax(traced, 3, batched=batched)
        sizes = [1, 3, 64, 65, 100, 128, 129, 300, 600, 1000, 1024, 1025, 3000]
        for n in sizes:
            energy(points(n, 3))
        assert len(shapes) <= 1 + 5  # the check, and 64, 128, ..., 1024
        before = len(shapes)
        for n in sizes:
            value_and_gradient(energy, points(n, 3))
        assert 0 < len(shapes) - before <= 5


class TestSettings:
    @pytest.mark.parametrize("enabled", [False, True])
    def test_the_precision_of_jax_stays(self, enabled):
        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", enabled)
        try:
            energy = from_jax(log_normal, 3)
            value_and_gradient(energy, points(5, 3))
            assert jax.config.jax_enable_x64 == enabled
            assert jnp.ones(1).dtype == (np.float64 if enabled else np.float32)
            np.testing.assert_allclose(energy(points(5, 3)), -log_normal_of_batch(points(5, 3)), rtol=1e-12)
        finally:
            jax.config.update("jax_enable_x64", before)

    def test_single_precision_of_the_function(self):
        energy = from_jax(lambda x: log_normal(x.astype(jnp.float32)), 3)
        value, gradient = value_and_gradient(energy, points(5, 3))
        assert value.dtype == gradient.dtype == np.float64
        np.testing.assert_allclose(value, -log_normal_of_batch(points(5, 3)), rtol=1e-4)

    def test_compiled_functions_and_methods(self):
        class Model:
            def log_prob(self, x):
                return log_normal(x)

        assert from_jax(jax.jit(log_normal), 3)(points(5, 3)) == pytest.approx(-log_normal_of_batch(points(5, 3)))
        assert from_jax(Model().log_prob, 3).__name__ == "log_prob"

    def test_outside_the_support(self):
        energy = from_jax(lambda x: jnp.where(x[0] > 0, -x[0], -jnp.inf), 1)
        value, gradient = value_and_gradient(energy, np.array([[1.0], [-1.0]]))
        assert value.tolist() == [1.0, np.inf] and gradient.tolist() == [[1.0], [0.0]]


class TestErrors:
    @pytest.mark.parametrize(
        "log_prob, batched, message",
        [
            (lambda x: -(x**2), False, r"shape \(\) .*shape \(3,\); got shape \(3,\).*Sum over the features"),
            (lambda x: -(x**2).sum(keepdims=True), False, r"got shape \(1,\) .*Drop the last axis"),
            (lambda x: -(x**2).sum(), True, r"got shape \(\) .*pass batched=False"),
            (lambda x: -(x**2).sum(1, keepdims=True), True, "Drop the last axis"),
            (lambda x: None, False, "got NoneType"),
            (lambda x: (x.sum(), x), False, "got tuple"),
            (lambda x: 1j * x.sum(), False, "dtype complex128"),
            (lambda x: (x > 0).sum(), False, "dtype int"),
        ],
    )
    def test_wrong_results(self, log_prob, batched, message):
        with pytest.raises(InvalidEnergyError, match=message):
            from_jax(log_prob, 3, batched=batched)

    def test_errors_of_the_function(self):
        with pytest.raises(IndexError) as caught:
            from_jax(lambda x: -x[:, 0], 3)
        assert sys.version_info < (3, 11) or "batched=True gives it a batch" in " ".join(caught.value.__notes__)
        with pytest.raises(TypeError, match="log_prob has to be a function"):
            from_jax(np.ones(3), 3)

    def test_second_derivatives(self):
        energy = from_jax(log_normal, 3)
        with pytest.raises(NotImplementedError, match="JAX function log_normal has a first derivative and no second"):
            torch.autograd.functional.hessian(lambda x: energy(x).sum(), torch.ones(1, 3, dtype=torch.float64))
