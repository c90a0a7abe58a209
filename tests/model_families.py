"""A conjugate model of two kinds of data in closed form, and what the families of every library have to do with it.

mean_j ~ N(0, 2), y ~ N(DESIGN mean, 1/2), (3,);  rate ~ Gamma(2, 1), k_i ~ Poisson(rate), (2,);
total = rate + y_0 + y_1 + y_2, which is deterministic and reads the data.
"""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import gammaln

from skcds import ConsistentSamplerScratch, Coupling

DESIGN = np.array([[1.0, 0.5], [-0.3, 1.0], [0.4, -0.8]])
COVARIANCE = 4 * DESIGN @ DESIGN.T + 0.25 * np.eye(3)  # of y
Y, K = np.array([0.5, -1.0, 2.0]), np.array([3, 1])
NAMES = ["mean[0]", "mean[1]", "rate (unconstrained)"]
Z = 5.0  # standard errors: 6e-7 two-sided
FALSE_ALARM = 1e-5


def log_z(c):
    """Log evidence (m,) of data (m, 5)."""
    y, k = c[:, :3], c[:, 3:]
    of_counts = gammaln(2 + k.sum(1)) - (2 + k.sum(1)) * np.log(3) - gammaln(k + 1).sum(1)
    return stats.multivariate_normal(np.zeros(3), COVARIANCE).logpdf(y) + of_counts


def standard_normals(c, x):
    """Draws (m, 3) of the posteriors of data (m, 5) become independent standard normals."""
    precision = DESIGN.T @ DESIGN / 0.25 + np.eye(2) / 4
    mean = c[:, :3] @ DESIGN @ np.linalg.inv(precision) / 0.25
    of_mean = (x[:, :2] - mean) @ np.linalg.cholesky(precision)
    of_rate = stats.gamma(2 + c[:, 3:].sum(1), scale=1 / 3).cdf(np.exp(x[:, 2]))
    return np.column_stack([of_mean, stats.norm.ppf(of_rate)])


def p_value(c, x):
    """Of Kolmogorov-Smirnov tests of the three coordinates and of the first two's product, the least times four."""
    z = standard_normals(c, x)
    z = np.column_stack([z, (z[:, 0] + z[:, 1]) / 2**0.5])
    return 4 * min(stats.kstest(column, "norm").pvalue for column in z.T)


def check_energy(family, alone, to_rate=np.exp):
    """The family of data is the library's energy for each, with its gradient and its parameters.

    ``alone(y, k)`` makes that energy.
    """
    assert family.feature_names == NAMES and family.context_names == ["y[0]", "y[1]", "y[2]", "k[0]", "k[1]"]
    assert (family.n_features, family.n_contexts) == (3, 5) and "n_contexts=5" in repr(family)
    rng = np.random.default_rng(0)
    X, data = rng.standard_normal((4, 3)), [(rng.standard_normal(3), np.array(k)) for k in [(0, 2), (5, 1)]]
    C = family.context({"y": np.repeat([y for y, _ in data], 2, 0), "k": np.repeat([k for _, k in data], 2, 0)})
    energies = [alone(*one) for one in data]
    expected = np.concatenate([energy(rows) for energy, rows in zip(energies, (X[:2], X[2:]), strict=True)])
    np.testing.assert_allclose(family(X, C), expected, rtol=1e-10)
    assert not np.allclose(family(X, C[::-1]), expected, rtol=1e-3)
    np.testing.assert_allclose(family.given(C[0])(X[:2]), expected[:2], rtol=1e-10)
    x = torch.tensor(X, requires_grad=True)
    (gradient,) = torch.autograd.grad(family(x, torch.tensor(C)).sum(), x)
    y = torch.tensor(X[:2], requires_grad=True)
    np.testing.assert_allclose(gradient[:2], torch.autograd.grad(energies[0](y).sum(), y)[0], rtol=1e-9)
    values = family.constrain(X, C)
    np.testing.assert_allclose(values["rate"], to_rate(X[:, 2]))
    np.testing.assert_allclose(values["total"], values["rate"] + C[:, :3].sum(1))
    np.testing.assert_array_equal(family.constrain(X, C[0])["total"][:2], values["total"][:2])
    assert family.constrain(X[:0], C[0])["mean"].shape == (0, 2)


def check_simulation(family):
    """Pairs are exact draws of the joint distribution: a false alarm in 1e5; shuffled ones are found out."""
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    C, X = family.simulate(2000, random_state=0)
    assert C.shape == (2000, 5) and X.shape == (2000, 3)
    assert p_value(C, X) > FALSE_ALARM
    assert p_value(C, np.roll(X, 1, 0)) < FALSE_ALARM
    again = family.simulate(2000, random_state=0)
    assert np.array_equal(C, again[0]) and np.array_equal(X, again[1])
    assert not np.array_equal(X, family.simulate(2000, np.random.default_rng(1))[1])
    assert np.array_equal(np.random.get_state()[1], state[0]) and torch.equal(torch.get_rng_state(), state[1])


def check_fit(family):
    """Log Z of new data within 5 standard errors of the closed form: a false alarm in 1e5 of exact samplers.

    The control is the same sampler's weights for the density without its Jacobian.
    """
    C, X = family.simulate(3000, random_state=1)
    sampler = ConsistentSamplerScratch(network=Coupling(n_transforms=2), max_iter=100, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler.fit(family, contexts=C, draws=X)
        new = family.simulate(12, random_state=2)[0]
        found = sampler.sample_weighted(1500, context=new, random_state=0)
        options = {"random_state": 0, "context": new, "energy_fn": lambda x, c: family(x, c) + x[:, 2]}
        spoilt = sampler.sample_weighted(1500, **options)
    assert sampler.feature_names_out_.tolist() == NAMES and sampler.context_names_in_.tolist() == family.context_names
    assert max(w.pareto_k for w in found) < 0.7

    def errors(of):
        return (np.array([w.log_evidence for w in of]) - log_z(new)) / np.array([w.log_evidence_se for w in of])

    assert np.abs(errors(found)).max() < Z
    assert np.abs(errors(spoilt)).max() > Z
    arviz = pytest.importorskip("arviz")
    data = sampler.to_arviz(100, random_state=0, context=new[0])
    assert set(data.posterior.data_vars) == {"mean", "rate", "total"} and arviz is not None
    values = data.posterior
    np.testing.assert_allclose(values["total"], values["rate"] + new[0, :3].sum())


def check_what_is_refused(family):
    for context in (np.zeros(4), np.zeros((3, 4)), np.zeros((3, 5))):
        with pytest.raises(ValueError, match="context has to be"):
            family(np.zeros((2, 3)), context)
    with pytest.raises(ValueError, match="data has to be of the variables y, k; got y"):
        family.context({"y": Y})
    with pytest.raises(ValueError, match="data of k have to be of shape"):
        family.context({"y": Y, "k": [1, 2, 3]})
    with pytest.raises(ValueError, match="equally many data sets"):
        family.context({"y": [Y, Y], "k": K})
    with pytest.raises(ValueError, match="n has to be at least 1"):
        family.simulate(0)
