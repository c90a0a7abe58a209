"""Non-centred coordinates: the map and its gradients, what it makes of funnels and ridges, and where it is taken."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from cases import slow
from hypothesis import given, settings
from hypothesis import strategies as st

import skcds
from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, DiffusionSampler, Pilot
from skcds.density.energy import Energy
from skcds.density.noncentred import NonCentred
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.explore.centring import non_centred
from skcds.explore.nested_laplace import conditional_gaussians, scattered_gaussians
from skcds.explore.pilot import run_pilot
from skcds.explore.result import PilotResult
from skcds.explore.tempered_run import standardization_of, standardize
from skcds.specifications import Centring, Climbs, Tempering
from skcds.targets import Funnel, gmm9
from skcds.train.particles import effective_share

D = 3
QUICK = {"tempering": Tempering(n_moves=3), "climbs": Climbs(n_after=4, n_further=0)}  # of a pilot


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def energy_of(function, d=D):
    return Energy(function, d, generator=seeded(9))


def ridge(x):
    """The second coordinate is near the square of the first; normalised."""
    bent = 3 * (x[:, 1] - x[:, 0].square())
    rest = x[:, 2:].square().sum(1)
    return 0.5 * (x[:, 0].square() + bent.square() + rest) + 0.5 * x.shape[1] * math.log(2 * math.pi) - math.log(3)


def ridge_draws(n, seed=0):
    z = torch.randn(n, D, generator=seeded(seed), dtype=torch.float64)
    z[:, 1] = z[:, 0] ** 2 + z[:, 1] / 3
    return z


def funnel_draws(n, seed=0):
    return torch.as_tensor(Funnel(D).sample(n, random_state=seed))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 7), st.integers(3, 9), st.integers(1, 2))
def test_inverse_determinant_and_gradient(seed, d, m, n_leading):
    """Of any such map, along one coordinate or two, on points within and beyond its knots, by `autograd`."""
    generator = seeded(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    leading = [(seed + i) % d for i in range(n_leading)]
    found = NonCentred(d, m * n_leading)
    found.coordinate[:] = torch.tensor(leading).repeat_interleave(m)
    found.knots = torch.linspace(-1, 1, m, dtype=torch.float64).repeat(n_leading)
    m *= n_leading
    found.loc, found.unit = normal(d), normal(d).exp()
    found.location, found.log_scale = normal(m, d), 0.5 * normal(m, d)
    found.regression = 0.3 * normal(m, d, d).tril(-1)
    found.location[:, leading] = found.log_scale[:, leading] = 0
    found.regression[:, leading] = found.regression[:, :, leading] = 0
    assert found.leading == tuple(leading)
    y = (1.5 * normal(6, d)).requires_grad_()
    x, log_det, pull_back = found.call_and_pull_back(y)
    assert torch.allclose(found(found.inverse(x)), x, atol=1e-8)  # y itself is not told where a scale is e^-24
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda p: found(p[None])[0], point) for point in y])
    assert torch.allclose(log_det, torch.linalg.slogdet(jacobian)[1], atol=1e-8)
    score = normal(6, d)
    (expected,) = torch.autograd.grad((x * score).sum() + log_det.sum(), y)
    assert torch.allclose(pull_back(score), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("draws, energy", [(funnel_draws, Funnel(D)), (ridge_draws, ridge)])
def test_a_funnel_and_a_ridge_are_gaussians_in_them(draws, energy):
    """By Laplace's approximations, which are exact for both: the density is that of standardised coordinates.

    So is every log weight of a Gaussian of the known moments, but for the interpolation between knots.
    """
    energy, x = energy_of(energy), draws(2000)
    found = NonCentred.of_gaussians(0, *conditional_gaussians(energy, x, 0))
    y = found.inverse(draws(20_000, 1))
    moments = Standardization.from_moments(y.mean(0), torch.cov(y.T), noncentred=found)
    target, z = StandardizedTarget(energy, moments), torch.randn(5000, D, generator=seeded(1), dtype=torch.float64)
    log_weights = target.log_prob(z) + 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    assert float(log_weights.std()) < 0.15
    assert abs(float(log_weights.mean())) < 0.05
    _, score = target.log_prob_and_score(z)
    assert torch.allclose(score, -z, atol=0.6)


@pytest.mark.parametrize("size", [1e3, 1e30, 1e300, math.inf])
def test_far_points_are_outside_the_support(size):
    """Without NaN in log densities and scores, which would be in all weights of a chain."""
    energy, x = energy_of(Funnel(D)), funnel_draws(500)
    found = NonCentred.of_gaussians(0, *conditional_gaussians(energy, x, 0))
    y = found.inverse(x)
    moments = Standardization.from_moments(y.mean(0), torch.cov(y.T), noncentred=found)
    signs = torch.tensor([[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0], [1.0, -1.0, 0.0]]).double()
    log_prob, score = StandardizedTarget(energy, moments).log_prob_and_score(size * signs)
    assert (log_prob < -100).all() and not score.isnan().any()


def test_two_funnels_are_gaussians_in_them():
    """By approximations given both leading coordinates, from lines along either; before, a Gaussian is none."""
    x = torch.cat([funnel_draws(2000, seed) for seed in (1, 2)], 1)
    energy = energy_of(lambda x: Funnel(D)(x[:, :D]) + Funnel(D)(x[:, D:]), 2 * D)
    leading, loc, covariance = scattered_gaussians(energy, x, [0, D])
    found = NonCentred.of_scattered(leading, loc, covariance, 8)
    assert found.leading == (0, D)
    z = torch.randn(5000, 2 * D, generator=seeded(1), dtype=torch.float64)
    y = found.inverse(torch.cat([funnel_draws(20_000, seed) for seed in (3, 4)], 1))
    for noncentred, least, most in ((found, 0.7, 1.0), (None, 0.0, 0.1)):
        points = y if noncentred is not None else x
        moments = Standardization.from_moments(points.mean(0), torch.cov(points.T), noncentred=noncentred)
        log_weights = StandardizedTarget(energy, moments).log_prob(z) + 0.5 * z.square().sum(1)
        assert least <= effective_share(log_weights) <= most


def test_too_few_gaussians_are_refused():
    covariance = torch.eye(D, dtype=torch.float64).repeat(10, 1, 1)
    assert NonCentred.of_scattered([0, 1], torch.zeros(10, D).double(), covariance, 8) is None


@pytest.mark.parametrize("draws", [funnel_draws, ridge_draws])
def test_regression_on_points(draws):
    """Without a gradient: residuals of 20 000 fresh points are standard normal, in five parts of the leading one.

    Of 4000 points of a part a variance has a standard deviation of .022; splines of four knots are not exact.
    """
    found = NonCentred.fitted(draws(4000), 0)
    x = draws(20_000, 1)
    y = found.inverse(x)[x[:, 0].argsort()][:, 1:]
    for part in y.chunk(5):
        assert torch.allclose(part.mean(0), torch.zeros(D - 1, dtype=x.dtype), atol=0.15)
        assert torch.allclose(part.var(0), torch.ones(D - 1, dtype=x.dtype), atol=0.3)
    spread = torch.stack([part.var(0) for part in x[x[:, 0].argsort()][:, 1:].chunk(5)])
    assert not torch.allclose(spread / spread.mean(0), torch.ones_like(spread), atol=0.3) or draws is ridge_draws


def test_regression_on_points_that_say_nothing():
    """Constant leading coordinates, and fewer points than coefficients."""
    x = funnel_draws(100)
    x[:, 0] = 1.0
    assert NonCentred.fitted(x, 0) is None
    few = NonCentred.fitted(funnel_draws(5), 0)
    assert few is None or few(torch.zeros(3, D)).isfinite().all()


def test_singular_approximations_are_refused():
    covariance = torch.eye(D, dtype=torch.float64).repeat(3, 1, 1)
    covariance[1, 2, 2] = 0.0
    at, loc = torch.arange(3.0).double(), torch.zeros(3, D, dtype=torch.float64)
    assert NonCentred.of_gaussians(0, at, loc, covariance) is None


class TestWhereTheyAreTaken:
    @pytest.mark.parametrize("draws, energy", [(funnel_draws, Funnel(D)), (ridge_draws, ridge)])
    @pytest.mark.parametrize("has_gradient", [True, False])
    def test_in_funnels_and_on_ridges(self, draws, energy, has_gradient):
        function = energy if has_gradient else lambda x: energy(torch.as_tensor(x)).numpy()
        density = energy_of(function)
        assert density.has_gradient == has_gradient
        found = non_centred(density, draws(4000), 20_000, seeded())
        assert found is not None and found.leading == (0,)

    @pytest.mark.parametrize("seed", range(3))
    def test_not_for_gaussians_and_separate_modes(self, seed):
        generator = seeded(seed)
        x = torch.randn(4000, D, generator=generator, dtype=torch.float64)
        assert non_centred(energy_of(lambda x: 0.5 * x.square().sum(1)), x, 20_000, generator) is None
        modes = torch.as_tensor(gmm9().sample(4000, random_state=seed))
        assert non_centred(energy_of(gmm9(), 2), modes, 20_000, generator) is None

    def test_not_with_few_evaluations(self):
        density = energy_of(Funnel(D))
        before = density.n_energy_evals
        assert non_centred(density, funnel_draws(4000), 300, seeded()) is None
        assert density.n_energy_evals == before

    @pytest.mark.parametrize("n_draws", [1000, 20_000])
    def test_evaluations_are_bounded(self, n_draws):
        """Those of one more knot may come on top."""
        density = energy_of(Funnel(D))
        before = density.n_energy_evals
        non_centred(density, funnel_draws(4000), n_draws, seeded())
        assert density.n_energy_evals - before <= n_draws + 100

    @pytest.mark.parametrize("seed", [0, *slow(1, 2)])
    def test_by_the_pilot(self, seed):
        """Its particles are those of the funnel, and close to normal in the coordinates that it leaves."""
        result, x = run_pilot(energy_of(Funnel(D)), 2000, seeded(seed))
        z = result.standardization().inverse(x)
        assert result.noncentred.leading == (0,)
        kurtosis = (z / z.std(0)).pow(4).mean(0)
        assert (kurtosis < 4).all()
        plain = standardize(x, (torch.zeros(D).double(), torch.full((D,), math.inf).double())).inverse(x)
        assert ((plain / plain.std(0)).pow(4).mean(0)[1:] > 6).all()

    def test_not_above_the_largest_dimension(self):
        pilot = Pilot(centring=Centring(max_features=D - 1), **QUICK)
        assert run_pilot(energy_of(Funnel(D)), 500, seeded(), pilot=pilot)[0].noncentred is None


@pytest.fixture(scope="module")
def fitted():
    """One sampler of each kind, whose coordinates are non-centred."""
    options = {"random_state": 0, "max_iter": 30}
    start = Pilot(n_particles=1000, **QUICK)
    teacher = DiffusionSampler(n_features=D, start=start, n_steps=8, **options).fit(Funnel(D))
    student = ConsistentSamplerDistiller(teacher, **options).fit(Funnel(D))
    scratch = ConsistentSamplerScratch(n_features=D, start=start, n_steps=8, **options).fit(Funnel(D))
    for sampler in (teacher, student, scratch):
        assert sampler._model.standardization.noncentred is not None
    return teacher, student, scratch


@pytest.mark.parametrize("place", range(3))
class TestSamplers:
    def test_draw_well_after_a_few_iterations(self, fitted, place):
        """In the coordinates that are there without them a Gaussian has an ESS of .01."""
        weighted = fitted[place].sample_weighted(4000, random_state=1)
        assert weighted.ess > 2000
        assert weighted.log_evidence == pytest.approx(0.0, abs=0.1)

    def test_files_and_pickles(self, fitted, place, tmp_path):
        sampler = fitted[place]
        sampler.save(tmp_path / "sampler.skcds")
        x = sampler.sample(50, random_state=3)
        for other in (skcds.load(tmp_path / "sampler.skcds"), pickle.loads(pickle.dumps(sampler)), copy.copy(sampler)):
            other_x = other.sample(50, random_state=3, **({"energy_fn": Funnel(D)} if place != 1 else {}))
            assert np.array_equal(x, other_x)
        if place != 1:
            loaded = skcds.load(tmp_path / "sampler.skcds").pilot_.noncentred
            assert torch.equal(loaded.log_scale, sampler.pilot_.noncentred.log_scale)

    def test_densities_at_any_points(self, fitted, place):
        if place == 0:
            return
        x, log_q = fitted[place].sample(200, random_state=3, return_log_density=True)
        assert np.allclose(fitted[place].score_samples(x), log_q, atol=1e-2)

    def test_a_warm_start_goes_on(self, fitted, place):
        if place == 1:
            return
        again = copy.deepcopy(fitted[place]).set_params(warm_start=True, max_iter=3).fit(Funnel(D))
        assert again._model.standardization.noncentred is not None


def test_a_file_whose_coordinates_do_not_fit_is_refused(fitted, tmp_path):
    """One with another number of knots than the weights have."""
    from skcds.io.reader import ModelFileError, from_bytes
    from skcds.io.writer import to_bytes

    sampler = copy.deepcopy(fitted[0])
    sampler.pilot_.noncentred.config = sampler.pilot_.noncentred.config | {"n_knots": 3}
    with pytest.raises(ModelFileError, match="have to be"):
        from_bytes(to_bytes(sampler))


def test_pilot_results_come_back_from_their_state():
    x = funnel_draws(2000)
    standardization = standardization_of(x, noncentred=NonCentred.fitted(x, 0))
    result = PilotResult.of(standardization, 0.0, 1.0, 3)
    for again in (PilotResult.restored(result.state_dict()), pickle.loads(pickle.dumps(result))):
        assert torch.equal(again.standardization().inverse(x), result.standardization().inverse(x))


@pytest.mark.parametrize("cls", [DiffusionSampler, ConsistentSamplerScratch])
def test_a_fit_goes_on_from_its_checkpoint(cls, tmp_path):
    """After an error of the energy in training, with the coordinates that the pilot found."""
    options = {
        "n_features": D,
        "start": Pilot(n_particles=1000, **QUICK),
        "n_steps": 8,
        "random_state": 0,
        "max_iter": 6,
    }
    calls = []

    def energy(x, last=math.inf):
        calls.append(len(x))
        if len(calls) > last:
            raise RuntimeError("stop")
        return Funnel(D)(x)

    whole = cls(**options).fit(energy)
    last, path = len(calls) - 2, tmp_path / "fit"
    calls.clear()
    with pytest.raises(Exception, match="stop"):
        cls(**options).fit(lambda x: energy(x, last), checkpoint=path)
    again = cls(**options).fit(Funnel(D), checkpoint=path)
    assert again.pilot_.noncentred is not None
    assert np.array_equal(whole.sample(20, random_state=0), again.sample(20, random_state=0))
