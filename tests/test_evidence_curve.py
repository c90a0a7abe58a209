"""Log Z of a family as a curve, against closed forms."""

import functools
import math
import warnings

import numpy as np
import pytest
from families import contexts, fitted, log_z

from skcds import ConsistentSamplerScratch, Coupling, tempered
from skcds.weights.evidence_curve import evidence_curve

BAR = 5.0  # standard errors: of 60 normal errors one is beyond in 3e-5 of the runs, however they depend on each other
DESIGN = np.random.default_rng(3).standard_normal((6, 5))
PRECISION = np.linalg.inv(4 * DESIGN @ DESIGN.T + 0.25 * np.eye(6))


def linear(n, rng):
    """Data (n, 6) of a linear Gaussian model, and their log Z up to a constant."""
    c = 2 * rng.standard_normal((n, 5)) @ DESIGN.T + 0.5 * rng.standard_normal((n, 6))
    return c, -0.5 * np.einsum("ni,ij,nj->n", c, PRECISION, c)


def cooled(n, rng, d=3):
    """Inverse temperatures (n, 1), and log Z of a Gaussian in d dimensions."""
    c = np.exp(rng.uniform(math.log(0.2), math.log(2), (n, 1)))
    return c, -0.5 * d * np.log(c[:, 0] / (2 * math.pi))


def constant(n, rng):
    c = rng.uniform(-1, 1, (n, 2))
    return c, np.full(n, 2.0)


FORMS = {form.__name__: form for form in (linear, cooled, constant)}


@functools.cache
def curve_of(name, m=100):
    """The curve of estimates with noise of known size."""
    rng = np.random.default_rng(1)
    c, truth = FORMS[name](m, rng)
    se = 0.01 * rng.uniform(0.5, 2, m)
    return evidence_curve(c, [f"c{j}" for j in range(c.shape[1])], truth + se * rng.standard_normal(m), se)


@pytest.mark.parametrize("name", FORMS)
def test_new_contexts(name):
    """60 of them; the error that is told is smaller than that of an estimate, since neighbours tell of it, too."""
    c, truth = FORMS[name](60, np.random.default_rng(2))
    value, se = curve_of(name).predict(c)
    assert np.abs((value - truth) / se).max() < BAR
    assert np.median(se) < np.median(curve_of(name).log_evidence_se)


def test_another_dimension_is_found_out():
    """A log Z that is a fiftieth steeper in log c."""
    c, truth = cooled(60, np.random.default_rng(2), d=3.06)
    value, se = curve_of("cooled").predict(c)
    assert np.abs((value - truth) / se).max() > BAR


@pytest.mark.parametrize("name", FORMS)
def test_residuals_find_a_lost_mode(name):
    """Half of the mass at one context is missing; without it all residuals are below the bar."""
    sound = curve_of(name)
    assert np.abs(sound.residuals).max() < BAR and 0.7 < sound.residuals.std() < 1.3
    log_evidence = sound.log_evidence.copy()
    log_evidence[7] -= math.log(2)
    spoilt = evidence_curve(sound.contexts, sound.context_names, log_evidence, sound.log_evidence_se)
    assert np.abs(spoilt.residuals).argmax() == 7 and spoilt.residuals[7] < -BAR


def test_errors_grow_far_away_and_at_a_step():
    curve = curve_of("cooled")
    assert curve.predict([20.0])[1] > 5 * curve.predict([1.0])[1]
    rng = np.random.default_rng(4)
    c, se = rng.uniform(-1, 1, (100, 1)), np.full(100, 0.01)
    rough = evidence_curve(c, ["c0"], rng.standard_normal(100), se)  # nothing to learn of: errors are of its size
    assert np.median(rough.predict(c)[1]) > 0.5 and rough.predict(rng.uniform(-1, 1, (50, 1)))[1].min() > 0.5


class TestOfASampler:
    def test_a_gaussian_family(self):
        curve = fitted().calibrate(contexts(60, 4), 500, random_state=0).evidence_curve()
        new = contexts(60, 5)
        value, se = curve.predict(new)
        assert np.abs((value - log_z(new)) / se).max() < BAR
        assert np.abs((value - log_z(new) - 0.05) / se).max() > BAR

    def test_all_temperatures_of_a_gaussian(self):
        sampler = ConsistentSamplerScratch(n_features=3, max_iter=60, random_state=0)
        sampler.set_params(start=(0.0, 2.0), network=Coupling(n_transforms=2), start__n_particles=3000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler.fit(tempered(lambda x: 0.5 * (x**2).sum(1)), contexts=lambda n, rng: cooled(n, rng)[0])
        some = cooled(60, np.random.default_rng(5))[0]
        curve = sampler.calibrate(some, 1000, random_state=0).evidence_curve()
        new, truth = cooled(60, np.random.default_rng(6))
        value, se = curve.predict(new)
        assert np.abs((value - truth) / se).max() < BAR
        assert np.abs((value - truth * 1.02) / se).max() > BAR
        assert curve.context_names.tolist() == ["inverse temperature"]

    def test_one_or_many_contexts(self):
        curve = fitted().calibrate(contexts(40, 4), 500, random_state=0).evidence_curve()
        value, se = curve.predict([0.1, 0.2])
        assert isinstance(value, float) and isinstance(se, float)
        assert curve.predict({"c1": 0.2, "c0": 0.1}) == (value, se)
        many = curve.predict(np.array([[0.1, 0.2], [0.3, 0.4]]))
        assert many[0].shape == many[1].shape == (2,) and np.isclose(many[0][0], value)
        assert f"{len(curve.contexts)} contexts" in repr(curve)
        with pytest.raises(ValueError, match="context has to be of shape"):
            curve.predict([0.1])

    def test_estimates_that_are_not_reliable_are_left_out(self):
        found = fitted().calibrate(contexts(40, 4), 500, random_state=0)
        n, (first, second) = len(found.evidence_curve().contexts), np.argsort(found.pareto_k)[:2]
        found.pareto_k[first], found.log_evidence[first] = 0.9, -50.0
        found.log_evidence[second] = -math.inf
        curve = found.evidence_curve()
        assert len(curve.contexts) == n - 2 >= 35 and np.abs(curve.residuals).max() < BAR
        with pytest.raises(ValueError, match="at 30 contexts at least; got "):
            fitted().calibrate(contexts(20, 4), 500, random_state=0).evidence_curve()
