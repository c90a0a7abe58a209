"""Where a fit begins: points or a Gaussian of the user's own, and support that Gaussians around the origin miss."""

import math
import warnings

import numpy as np
import pytest
import torch
from cases import crossed, slow
from samplers import make, quadratic

import skcds
from skcds import Control, Pilot
from skcds.density.bounds import Bounds
from skcds.density.energy import Energy, InvalidEnergyError
from skcds.density.support import candidates
from skcds.estimators import control
from skcds.explore.pilot import run_pilot
from skcds.explore.start import Start


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def shell(x):
    """A box of width 1e-3 around (40, -70, 200), which no start around the origin meets and no gradient leads to."""
    inside = ((x - torch.tensor([40.0, -70.0, 200.0]).to(x)).abs() < 5e-4).all(1)
    return torch.where(inside, 0 * x[:, 0], torch.inf)


class TestParameter:
    @pytest.mark.parametrize(
        "start, message",
        [
            (np.zeros(3), r"points of shape \(m, 3\)"),
            (np.zeros((2, 4)), r"points of shape \(m, 3\)"),
            (np.zeros((0, 3)), r"points of shape \(m, 3\)"),
            (np.full((2, 3), np.nan), "not finite"),
            ("near", "array of numbers"),
            ((1, 2, 3), r"\(location, scale\); got 3"),
            ((np.zeros(2), 1.0), r"location of start .* shape \(3,\)"),
            ((0.0, np.ones(2)), r"scale of start .* shape \(3,\)"),
            ((0.0, 0.0), "scale of start has to be positive"),
        ],
    )
    def test_faults(self, start, message):
        with pytest.raises(ValueError, match=message):
            Start.from_parameter(start, 3)

    def test_a_fit_refuses_faults(self):
        with pytest.raises(ValueError, match="scale of start has to be positive"):
            skcds.DiffusionSampler(3, start=(0.0, 0.0), random_state=0).fit(lambda x: (x**2).sum(1))

    def test_outside_the_bounds(self):
        with pytest.raises(ValueError, match=r"within the bounds: x\[1\] is 2 in row 0"):
            Start.from_parameter([[0.5, 2.0]], 2, Bounds.from_parameter((0, 1), 2))
        with pytest.raises(ValueError, match=r"The location of start has to be within the bounds: x\[1\] is 2"):
            Start.from_parameter((np.array([0.5, 2.0]), 0.1), 2, Bounds.from_parameter((0, 1), 2))

    def test_gaussian(self):
        found = Start.from_parameter((np.array([1.0, 2.0]), 3.0), 2)
        np.testing.assert_allclose(found.points, [[1, 2]])
        np.testing.assert_allclose(found.gaussian.covariance, [9, 9])

    def test_points(self):
        points = np.random.default_rng(0).normal([5, -5], [1, 2], (200, 2))
        found = Start.from_parameter(points, 2)
        np.testing.assert_allclose(found.gaussian.loc, points.mean(0))
        assert Start.from_parameter(points[:3], 2).gaussian is None


@pytest.mark.parametrize("start", [([40, -70, 200], 1e-3), "points", "a point"])
def test_is_where_the_pilot_looks(start):
    """log Z is 3 log(1e-3); standard deviations are .1 with 500 particles.

    One point says nothing of the scale, and the box is flat: the first moves from there all fail. The spread of no
    particle had then become the scale, and the box was refused as a density of infinite mass.
    """
    center = np.array([40.0, -70.0, 200.0])
    if start == "points":
        start = center + np.random.default_rng(0).uniform(-4e-4, 4e-4, (50, 3))
    elif start == "a point":
        start = center[None] + 3e-4
    else:
        start = (np.array(start[0], float), start[1])
    found = Start.from_parameter(start, 3)
    energy = Energy(shell, 3, generator=seeded(0), start=found.points)
    result, x = run_pilot(energy, 500, seeded(0), start=found)
    assert abs(result.log_evidence - 3 * math.log(1e-3)) < 0.6
    assert ((x.numpy() - center).std(0) > 2e-4).all()


def test_without_it_nothing_is_found():  # negative control
    with pytest.raises(InvalidEnergyError, match="start="):
        run_pilot(Energy(shell, 3, generator=seeded(0)), 500, seeded(0))


@pytest.mark.parametrize("kind", ["DiffusionSampler", "ConsistentSamplerDistiller", "ConsistentSamplerScratch"])
def test_all_estimators_take_it(kind):
    """Also a student's teacher that is fitted on the way."""

    def far(x):
        return 0.5 * ((x - 3e5) ** 2).sum(1)

    options = {"start": (3e5, 2.0), "max_iter": 5, "random_state": 0}
    sizes = {"n_features": 2, "n_steps": 8}
    if kind.endswith("Distiller"):
        options["teacher"] = skcds.DiffusionSampler(
            **sizes, start=Pilot(n_particles=200), network=Control(32, 2), max_iter=5, random_state=0
        )
    else:
        networks = "network" if kind == "DiffusionSampler" else "control"
        options |= sizes | {"start": Pilot((3e5, 2.0), 200), networks: Control(32, 2)}
    sampler = getattr(skcds, kind)(**options).fit(far)
    assert abs(sampler.sample(200, random_state=0).mean() - 3e5) < 0.5
    pilot = getattr(sampler, "teacher_", sampler).pilot_
    assert pilot.starting_scale < 7  # from there; from the origin it is 1e5


# -------------------------------------------------------------------- support of which nothing is told


def ordered(d, bad):
    """Normal order statistics: cut-points, whose energy is `bad` for values out of order."""
    return lambda x: torch.where((x.diff(dim=1) > 0).all(1), 0.5 * (x**2).sum(1), bad)


def simplex(d, bad):
    """Dirichlet(2, ..., 2), the last share left out."""

    def energy_fn(x):
        rest = 1 - x.sum(1)
        value = -(x.clamp(min=1e-12).log().sum(1) + rest.clamp(min=1e-12).log())
        return torch.where((x > 0).all(1) & (rest > 0), value, bad)

    return energy_fn


def positive(d, bad):
    return lambda x: torch.where((x > 0).all(1), x.sum(1), bad)


LOG_Z = {
    ordered: lambda d: 0.5 * d * math.log(2 * math.pi) - math.lgamma(d + 1),
    simplex: lambda d: -math.lgamma(2 * (d + 1)),
    positive: lambda d: 0.0,
}


def test_candidates_are_in_double_precision():
    """As all points are: singles would be evaluated in single precision."""
    assert {points.dtype for points in candidates(seeded(0), 3, 5)} == {torch.float64}


@pytest.mark.parametrize("d", [1, 3])
def test_the_first_candidates_are_uniform_in_the_simplex(d):
    """Coordinates have means 1 / (d + 1) and variances d / ((d + 1)^2 (d + 2)), to within 5.6 standard errors."""
    n = 4000
    x = next(candidates(seeded(0), d, n))
    assert (x > 0).all() and (x.sum(1) < 1).all()
    assert (x.mean(0) - 1 / (d + 1)).abs().max() < 5.6 * math.sqrt(d / ((d + 1) ** 2 * (d + 2) * n))


def test_candidates_are_of_every_kind():
    """At each scale as they come, positive, ascending, descending, and negative; of the first in the unit cube, too."""
    batches = list(candidates(seeded(0), 3, 50))
    steps = [x.diff(dim=1) for x in batches]
    assert len(batches) == 37 and sum(bool((x < 0).all()) for x in batches) == 5
    assert sum(bool((x > 0).all()) for x in batches) == 17
    assert [sum(bool((sign * step > 0).all()) for step in steps) for sign in (1, -1)] == [10, 10]


SUPPORTS = [(ordered, 3), (ordered, 7), (simplex, 3), (simplex, 10), (positive, 8)]


@pytest.mark.parametrize("support, bad", crossed([(1, math.nan), (2, math.inf)], range(5), [math.nan, math.inf]))
def test_support_is_looked_for(support, bad):
    """NaN and +inf alike, which were refused as "nan at every one of 7 standard normal points".

    Standard deviations of log Z are .1 to .2 with 1000 particles.
    """
    make, d = SUPPORTS[support]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        energy = Energy(make(d, bad), d, generator=seeded(0))
        result, x = run_pilot(energy, 1000, seeded(0))
    assert abs(result.log_evidence - LOG_Z[make](d)) < 0.9
    assert energy.log_prob(x).isfinite().all()


@pytest.mark.parametrize("seed", [0, *slow(1)])
def test_logarithms_of_numpy(seed):
    """A beta density whose NumPy energy is NaN outside (0, 1), at most points; NumPy's own warnings are silenced."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        energy = Energy(lambda x: -np.log(x[:, 0]) - 2 * np.log(1 - x[:, 0]), 1, generator=seeded(seed))
        result, x = run_pilot(energy, 500, seeded(seed))
    assert abs(result.log_evidence + math.log(12)) < 0.3 and abs(float(x.mean()) - 0.4) < 0.1
    messages = [str(w.message) for w in caught]
    assert not [m for m in messages if "encountered" in m] and energy.n_float_errors > 0
    assert len([m for m in messages if "outside the support" in m]) == 1


class TestFewParticles:
    """A pilot that ran out of time leaves few particles, of which a map would learn noise."""

    def fitted(self, monkeypatch, **limits):
        def short(*args, run_pilot=control.run_pilot):
            pilot, x = run_pilot(*args)
            return pilot, x[:50]

        monkeypatch.setattr(control, "run_pilot", short)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make("ConsistentSamplerScratch", max_iter=2, **limits).fit(quadratic)

    def test_become_as_many_as_are_asked_for(self, monkeypatch):
        """Copies that moves part; the mean of 50 is off by .14, whatever is made of them."""
        x = self.fitted(monkeypatch).particles_
        assert len(np.unique(x, axis=0)) == len(x) == 500
        assert np.abs(x.mean(0) - 1).max() < 6 * 0.15 and np.abs(x.std(0) - 1).max() < 0.5

    def test_stay_few_where_evaluations_are(self, monkeypatch):
        """Moves of 500 would take more than a quarter of what is left."""
        assert len(self.fitted(monkeypatch, max_energy_evals=1_000_000, batch_size=10).particles_) == 500
        monkeypatch.setattr(control, "POPULATION_SHARE", 1e-4)
        assert len(self.fitted(monkeypatch, max_energy_evals=1_000_000, batch_size=10).particles_) == 50
