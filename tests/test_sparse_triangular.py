"""Maps of sparse precisions: elimination, the maps' inverse and gradients, and what they make of skew latent fields."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from autograd_checks import check_by_autograd
from bounds_of_gaussians import gaussian_bound
from cases import slow
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, diags_array, eye_array, kron

import skcds
from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, DiffusionSampler, Pilot, SelfConsistency
from skcds.density.elimination import Elimination
from skcds.density.energy import Energy
from skcds.density.sparse_triangular import SparseTriangularMap
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.explore.hessians import LARGE
from skcds.explore.laplace import laplace_standardization, stepped
from skcds.explore.moments import refined
from skcds.explore.one_mode import OneMode
from skcds.explore.precisions import SparsePrecision
from skcds.explore.result import PilotResult
from skcds.explore.skewness import best_gaussian, skewed
from skcds.explore.triangular import best_triangular
from skcds.specifications import HighDimension, Marginals, Training

D = LARGE + 24


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def chain(d, correlation=0.8):
    """The precision of an autoregressive process with noise."""
    variance, beside = 1 - correlation**2, np.full(d - 1, -correlation / (1 - correlation**2))
    return csr_array(diags_array([np.full(d, (1 + correlation**2) / variance + 1), beside, beside], offsets=[0, 1, -1]))


def lattice(side, coupling=0.24):
    """The precision of a field on a square, whose neighbours depend on each other."""
    path = diags_array([np.ones(side - 1)] * 2, offsets=[1, -1])
    one = eye_array(side)
    return csr_array(eye_array(side**2) - coupling * (kron(path, one) + kron(one, path)))


def any_precision(d, generator):
    """Of a graph with about two random neighbours for each coordinate, and of any scales."""
    numpy = np.random.default_rng(int(torch.randint(10**6, (1,), generator=generator)))
    places = numpy.integers(0, d, (2, 2 * d))
    half = csr_array((numpy.standard_normal(2 * d), (places[0], places[1])), shape=(d, d))
    scale = diags_array(numpy.lognormal(size=d))
    return csr_array(scale @ (half @ half.T + eye_array(d)) @ scale)


def any_map(d, generator, size=0.1):
    """With third derivatives that make each coordinate about as skew, whatever its scale."""
    precision = any_precision(d, generator)
    variance = torch.from_numpy(np.linalg.inv(precision.toarray()).diagonal().copy())
    third = size * normal(generator, d) / variance**1.5
    return SparseTriangularMap.of_precision(normal(generator, d), precision, Elimination(precision), third)


class TestElimination:
    @pytest.mark.parametrize("precision", [chain(100), lattice(9), any_precision(60, seeded())])
    def test_coordinates_of_a_set_are_independent(self, precision):
        """Given all that are left, by the dense precision of these."""
        found, left = Elimination(precision), np.arange(precision.shape[0])
        covariance = np.linalg.inv(precision.toarray())
        for chosen in found.sets:
            marginal = np.linalg.inv(covariance[np.ix_(left, left)])
            at = np.searchsorted(left, chosen)
            block = marginal[np.ix_(at, at)]
            assert np.allclose(block, np.diag(block.diagonal()), atol=1e-9)
            left = np.setdiff1d(left, chosen)
        assert np.array_equal(left, found.rest)

    def test_a_chain_is_halved(self):
        found = Elimination(chain(512))
        assert [len(chosen) for chosen in found.sets] == [256, 128, 64, 32] and len(found.rest) == 32
        assert found.is_sparse

    def test_a_lattice_takes_fewer_numbers_than_a_dense_factor(self):
        assert Elimination(lattice(24)).is_sparse

    @pytest.mark.parametrize("size", [20, 40])
    def test_blocks_that_are_larger_than_small_sets(self, size):
        """Independent blocks, each dense: a set has one of each, a share of one over their size."""
        found = Elimination(csr_array(kron(eye_array(600 // size), np.ones((size, size)))))
        assert found.is_sparse and len(found.rest) < 300

    def test_not_of_a_dense_pattern(self):  # negative control
        assert not Elimination(csr_array(np.ones((50, 50)))).is_sparse

    @pytest.mark.parametrize(
        "precision", [chain(100), lattice(9), any_precision(60, seeded()), csr_array(eye_array(7))]
    )
    def test_root(self, precision):
        factor = Elimination(precision).factor(precision)
        root, order = factor.root(0.0).toarray(), factor.order
        assert np.allclose(root @ root.T, np.linalg.inv(precision.toarray())[np.ix_(order, order)])
        assert np.allclose(np.triu(root, 1), 0) and np.allclose(root.diagonal(), factor.scale)
        n = len(factor.top)
        assert np.allclose(factor.top @ root[:n, :n], np.eye(n))

    @pytest.mark.parametrize("least", [0.1, 0.01])
    def test_root_without_small_entries(self, least):
        """What is left out of a row is each below a share of its norm."""
        factor = Elimination(lattice(12)).factor(lattice(12))
        whole, some = factor.root(0.0), factor.root(least)
        assert some.nnz < whole.nnz
        assert np.abs((whole - some).toarray()).max() < 3 * least * np.sqrt(whole.multiply(whole).sum(1)).max()

    @pytest.mark.parametrize("at", [0, 1, 50])
    @pytest.mark.parametrize("value", [-1.0, np.nan, 0.0])
    def test_none_of_what_is_no_precision(self, at, value):
        wrong = chain(100).tolil()
        wrong[at, at] = value
        assert Elimination(chain(100)).factor(csr_array(wrong)) is None


class TestMap:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 40))
    def test_inverse_determinant_and_gradient(self, seed, d):
        """Of any such map, by `autograd`."""
        generator = seeded(seed)
        found = any_map(d, generator)
        check_by_autograd(found, normal(generator, 4, d))

    @pytest.mark.parametrize("precision", [chain(80), lattice(9), csr_array(eye_array(5))])
    def test_of_a_gaussian(self, precision):
        """Without third derivatives the map is affine, with the covariance of the precision."""
        d = precision.shape[0]
        loc, z = normal(seeded(), d), normal(seeded(1), 6, d)
        found = SparseTriangularMap.of_precision(loc, precision, Elimination(precision))
        covariance = torch.from_numpy(np.linalg.inv(precision.toarray()))
        root = (found(torch.eye(d, dtype=torch.float64)) - loc).T
        assert found.is_affine and torch.allclose(root @ root.T, covariance)
        assert torch.allclose(found(z), loc + z @ root.T) and torch.allclose(found.correlated(z), z @ root.T)
        assert torch.allclose(found.call_and_pull_back(z)[1], 0.5 * torch.logdet(covariance).expand(6))
        assert torch.allclose(found.solve(z), z @ covariance)
        assert torch.allclose(found.variance(), covariance.diagonal(), rtol=1e-4)
        assert np.allclose(found.precision().toarray(), precision.toarray())
        assert found.precision().nnz == precision.nnz
        white = found.whitening() @ (found(z) - loc).numpy().T[found.order]
        assert np.allclose(white.T, z)

    def test_skewness(self):
        """Third moments are those of the derivatives, to first order: the rest is a few times smaller."""
        precision, third = chain(60), torch.zeros(60, dtype=torch.float64)
        third[30] = 0.3
        found = SparseTriangularMap.of_precision(torch.zeros(60), precision, Elimination(precision), third)
        covariance = np.linalg.inv(precision.toarray())
        z = normal(seeded(), 200_000, 60)
        x = found(torch.cat([z, -z])).numpy()
        x -= x.mean(0)
        for j in (30, 31, 33):
            expected = 0.3 * covariance[30, j] ** 3
            error = np.std(x[:, j] ** 3) / len(x) ** 0.5
            assert np.mean(x[:, j] ** 3) == pytest.approx(expected, abs=6 * error + 0.15 * expected)

    def test_far_away(self):
        found, z = any_map(40, seeded()), 100 * normal(seeded(1), 30, 40)
        x, log_det, pull_back = found.call_and_pull_back(z)
        assert x.isfinite().all() and log_det.isfinite().all() and pull_back(x).isfinite().all()

    @pytest.mark.parametrize("ridge", [1e-3, 1e-6, 1e-9])
    @pytest.mark.parametrize("kind", ["path", "square"])
    def test_pattern_of_a_precision_that_is_nearly_singular(self, ridge, kind):
        """No entries come in by rounding, whatever the condition number."""
        path = csr_array(diags_array([np.ones(511)] * 2, offsets=[1, -1]))
        near = path if kind == "path" else kron(path[:20, :20], eye_array(20)) + kron(eye_array(20), path[:20, :20])
        precision = csr_array(diags_array(near.sum(1) + ridge) - near)
        found = SparseTriangularMap.of_precision(torch.zeros(len(near.sum(1))), precision, Elimination(precision))
        assert found.precision().nnz == precision.nnz
        assert np.allclose(found.precision().toarray(), precision.toarray(), rtol=0, atol=1e-11)

    def test_none_of_what_is_no_precision(self):
        precision = chain(50)
        assert SparseTriangularMap.of_precision(torch.zeros(50), -precision, Elimination(precision)) is None
        assert SparsePrecision.of(-precision, Elimination(precision), torch.device("cpu")) is None

    def test_as_a_standardization(self):
        """Alone, and among the other parts by `autograd`."""
        found, generator = any_map(6, seeded(5)), seeded(3)
        alone, z = Standardization.from_sparse(found), normal(generator, 5, 6)
        assert torch.equal(alone(z), found(z)) and not alone.is_gaussian() and not alone.is_affine()
        assert alone.config == {"full": False} | {n: found.config[n] for n in ("n_top", "n_links", "n_root")}
        among = Standardization.from_moments(normal(generator, 6), torch.eye(6) + 0.5)
        among.sparse, among.width[::2] = found, 2.0
        z.requires_grad_()
        x, log_det, pull_back = among.call_and_pull_back(z)
        (gradient,) = torch.autograd.grad((x.sin().sum(1) + log_det).sum(), z)
        with torch.no_grad():
            assert torch.allclose(among(z), x) and torch.allclose(among.inverse(x), z, atol=1e-8)
            assert torch.allclose(pull_back(x.cos()), gradient, atol=1e-8)

    @pytest.mark.parametrize(
        ("name", "value"), [*((n, v) for n in ("order", "links", "places") for v in (-1, 10**6)), ("level", 0)]
    )
    def test_places_out_of_range_are_refused(self, name, value):
        found = any_map(30, seeded())
        state = {key: tensor.clone() for key, tensor in found.state_dict().items()}
        state[name].view(-1)[-1] = value
        with pytest.raises(ValueError, match="places of a sparse matrix"):
            SparseTriangularMap(**found.config).load_state_dict(state)


PRECISION = torch.from_numpy(chain(D, 0.9).toarray()) - torch.eye(D, dtype=torch.float64)


def counts(x):
    """A latent field with a Poisson count of zero at every site."""
    before, after = x[:, :-1], x[:, 1:]
    field = 0.5 * ((after - 0.9 * before) ** 2).sum(1) / 0.19 + 0.5 * x[:, 0] ** 2
    return field + (x - 0.5).exp().sum(1)


def log_z(energy, standardization, seed, n=20_000):
    z = normal(seeded(seed), n, energy.n_features)
    log_weights = StandardizedTarget(energy, standardization).log_prob(z) + 0.5 * z.square().sum(1)
    return float(log_weights.logsumexp(0)) - np.log(n) + 0.5 * energy.n_features * np.log(2 * np.pi)


class TestOfADensity:
    def test_of_a_gaussian(self):
        """Laplace's approximation is exact, and sparse; nothing else is better."""
        energy = Energy(lambda x: counts(x) - (x - 0.5).exp().sum(1), D)
        laplace = laplace_standardization(energy)
        assert laplace.is_gaussian() and laplace.sparse.is_affine
        expected = torch.linalg.inv(torch.from_numpy(laplace.sparse.precision().toarray())).diagonal()
        assert torch.allclose(laplace.variance, expected, rtol=1e-4)
        found, better = best_gaussian(energy, laplace, seeded())
        assert not better and found is laplace

    @pytest.mark.parametrize("seed", [0, *slow(1, 2)])
    def test_gains_most_of_the_gap(self, seed):
        """Steps, skewness, and other moments behind it gain. Standard errors of bounds are .006, of log Z .003."""
        energy, by = Energy(counts, D), HighDimension()
        gaussian = stepped(energy, laplace_standardization(energy), seeded(seed), by, None, range(16))
        assert gaussian.is_gaussian()
        found, better = best_gaussian(energy, laplace_standardization(energy), seeded(seed), by)
        assert better and not found.sparse.is_affine
        plain = best_gaussian(energy, laplace_standardization(energy), seeded(seed), HighDimension(n_moment_steps=0))[0]
        true = log_z(energy, found, seed)
        bounds = [gaussian_bound(energy, s, 10_000, seeded(seed))[0] for s in (gaussian, plain, found)]
        gaps = [true - bound for bound in bounds]
        assert gaps[0] > 0.15 and gaps[1] < 0.6 * gaps[0] and gaps[2] < 0.7 * gaps[1]

    def test_evaluations(self):
        """One Hessian by columns; the others by three groups and a check; draws of means, of bounds and of moments."""
        energy = Energy(counts, D)
        laplace, before = laplace_standardization(energy), energy.n_energy_evals
        by = HighDimension(n_hessians=4, mean_steps=1, n_draws=10, n_skew_draws=20, n_third_draws=4, n_moment_steps=2)
        best_gaussian(energy, laplace, seeded(), by)
        steps, skewness = 2 * (8 + 10), 3 * 4 + 2 * 20
        afterwards = steps, 2 * 20 + 2 * 20  # without skewness, whose bound of so few draws may not be better; with it
        assert energy.n_energy_evals - before in [steps + skewness + after + 2 * 10 for after in afterwards]

    def test_moments_that_are_wrong_are_mended(self):
        """A mean half a standard deviation off, and a precision a tenth too large."""
        energy = Energy(counts, D)
        right, _ = best_gaussian(energy, laplace_standardization(energy), seeded())
        sparse = right.sparse
        precision = sparse.precision()
        wrong = SparseTriangularMap.of_precision(
            sparse.loc + 0.1 * sparse.variance().sqrt(), 1.1 * precision, Elimination(precision), sparse.third
        )
        start, by = Standardization.from_sparse(wrong), HighDimension(n_moment_steps=12)
        bounds = [
            gaussian_bound(energy, s, 4000, seeded())[0] for s in (start, refined(energy, start, seeded(), by), right)
        ]
        assert bounds[0] < bounds[2] - 0.5 and bounds[1] > bounds[2] - 0.05

    def test_nothing_is_mended_far_from_normal(self):
        """Means of what is left of a score are too large for a step, and the start is kept."""
        energy = Energy(counts, D)
        laplace = laplace_standardization(energy)
        far = copy.deepcopy(laplace)
        far.sparse.loc = far.sparse.loc + 30 * far.variance.sqrt()
        assert refined(energy, far, seeded(), HighDimension()) is far

    def test_not_of_a_dense_precision(self):  # negative control
        energy = Energy(lambda x: counts(x) + 0.01 * x.sum(1) ** 2, D)
        laplace = laplace_standardization(energy)
        assert laplace.sparse is None and laplace.full

    def test_of_a_precision_that_becomes_dense(self):
        """Steps go on with dense matrices."""
        energy = Energy(lambda x: counts(x) + 1e-4 * (x.sum(1) + 500).clamp(min=0) ** 3, D)
        laplace = laplace_standardization(energy)
        assert laplace.sparse is not None
        found = stepped(energy, laplace, seeded(), HighDimension(), None, range(16))
        assert found.sparse is None and found.full
        bounds = [gaussian_bound(energy, s, 2000, seeded())[0] for s in (laplace, found)]
        assert bounds[1] > bounds[0]

    def test_limits_end_steps(self):
        energy = Energy(counts, D)
        laplace = laplace_standardization(energy)
        assert refined(energy, laplace, seeded(), HighDimension(), lambda n: True) is laplace

    def test_result_comes_back(self):
        x = normal(seeded(), 20, 30)
        result = PilotResult.of(Standardization.from_sparse(any_map(30, seeded(1))), 0.0, 1.0, 3)
        expected = result.standardization().inverse(x)
        for again in (PilotResult.restored(result.state_dict()), pickle.loads(pickle.dumps(result))):
            assert torch.equal(again.standardization().inverse(x), expected)


def fitted(cls, **options):
    start = Pilot(n_particles=500, high_dimension=HighDimension(fewest_particles=300, max_numbers=30_000))
    options = {"n_features": D, "start": start, "n_steps": 4, "max_iter": 3, "random_state": 0} | options
    sampler = cls(**options).fit(counts)
    assert sampler.pilot_.sparse is not None and sampler.pilot_.covariance.shape == (D,)
    return sampler


@pytest.fixture(scope="module")
def scratch():
    training = Training(marginals=Marginals(n_iter=50, n_refits=0), n_judged=2000)
    return fitted(ConsistentSamplerScratch, objective=SelfConsistency(training=training))


class TestSampler:
    def test_files_and_pickles(self, scratch, tmp_path):
        scratch.save(tmp_path / "sampler.skcds")
        x = scratch.sample(20, random_state=3)
        for other in (skcds.load(tmp_path / "sampler.skcds"), pickle.loads(pickle.dumps(scratch)), copy.copy(scratch)):
            assert np.array_equal(x, other.sample(20, random_state=3))

    def test_densities_at_any_points(self, scratch):
        x, log_q = scratch.sample(100, random_state=3, return_log_density=True)
        assert np.allclose(scratch.score_samples(x), log_q, atol=1e-2)
        assert scratch._model.config["n_transforms"] == 0  # and the file of it is read

    def test_quality(self, scratch):
        """With three iterations it is that of the coordinates: an ESS of .9 beside one of .02 by Laplace's."""
        weighted = scratch.sample_weighted(4000, random_state=1)
        assert weighted.ess / 4000 > 0.8
        assert scratch.diagnose().verdict == "ok"

    def test_a_gaussian_is_known_by_few_evaluations(self):
        """The pilot's run needs no wider start where Laplace's approximation is exact, and so comes to an end."""
        sampler = ConsistentSamplerScratch(n_features=D, max_energy_evals=6000, random_state=0)
        sampler.fit(lambda x: 0.5 * x.square().sum(1))
        assert sampler.diagnose().verdict == "ok" and sampler.pilot_.n_temperatures == 1
        assert sampler.pilot_.log_evidence == pytest.approx(0.5 * D * np.log(2 * np.pi), abs=1e-3)

    def test_teacher_and_student(self, tmp_path):
        teacher = fitted(DiffusionSampler)
        student = ConsistentSamplerDistiller(teacher, max_iter=3, random_state=0).fit(counts)
        student.save(tmp_path / "student.skcds")
        x = student.sample(20, random_state=3)
        assert np.array_equal(x, skcds.load(tmp_path / "student.skcds").sample(20, random_state=3))
        least = {teacher: 0.03, student: 0.8}  # four steps of a chain are few: .13 to .35 with four seeds
        assert all(s.sample_weighted(2000, random_state=1).ess / 2000 > share for s, share in least.items())


class TestLimits:
    """What ends steps to the best Gaussian: evaluations that are left and time, and no guess of a rate."""

    @staticmethod
    def one_mode(energy, evals_left, seconds=np.inf):
        budget = SimpleNamespace(seconds_left=lambda until: seconds, progress=SimpleNamespace(phase=lambda name: None))
        pilot = SimpleNamespace(
            energy=energy, generator=seeded(), budget=budget, by=Pilot(), time_share=1.0,
            evals_left=lambda: evals_left, left=lambda: pytest.fail("a guess of how many there may be"),
        )  # fmt: skip
        return OneMode(pilot)

    @pytest.mark.parametrize(("evals_left", "seconds", "better"), [(np.inf, np.inf, True), (np.inf, 0.0, False)])
    def test_no_guess_ends_steps(self, evals_left, seconds, better):
        energy = Energy(counts, D)
        laplace = laplace_standardization(energy)
        found = self.one_mode(energy, evals_left, seconds)._best_gaussian(laplace, HighDimension())
        assert found[1] is better

    def test_few_evaluations_are_enough_for_sparse_hessians(self):
        """Fewer than a dense one takes."""
        energy = Energy(counts, D)
        laplace, by = laplace_standardization(energy), HighDimension(n_skew_draws=0, n_hessians=4)
        assert self.one_mode(energy, 2 * D - 1)._best_gaussian(laplace, by)[1]

    def test_steps_by_moments_leave_enough_for_comparisons(self):
        energy, asked = Energy(counts, D), []
        start = skewed(laplace_standardization(energy), torch.full((D,), -0.3, dtype=torch.float64))
        before = energy.n_energy_evals
        by = HighDimension(n_skew_draws=20, n_draws=10)
        assert refined(energy, start, seeded(), by, lambda n: asked.append(n) or True) is start
        assert asked == [20 + 2 * 20 + 2 * 10] and energy.n_energy_evals == before

    @pytest.mark.parametrize("coordinates", [Standardization(D, full=False), Standardization(D)])
    def test_rows_take_what_density_and_coordinates_take(self, coordinates):
        """A density of a second, and one that takes nothing, within ten seconds."""
        rows = [
            self.one_mode(SimpleNamespace(n_features=D, evals_per_second=rate), np.inf, 10.0)._rows_left(coordinates)
            for rate in (1.0, 1e18)
        ]
        assert 5 < rows[0] < 10 and 10 < rows[1] < 1e10
        assert self.one_mode(SimpleNamespace(n_features=D), np.inf)._rows_left(coordinates) == np.inf

    def test_a_triangular_map_is_tried_behind_a_skew_one(self):
        """Which has no full matrix; not behind coordinates that are independent."""
        energy = Energy(lambda x: (x.exp() - x).sum(1), 24)
        gaussian = laplace_standardization(energy)
        behind, diagonal = skewed(gaussian, torch.full((24,), -1.0, dtype=torch.float64)), Standardization(24, False)
        counted = []
        for start in (behind, diagonal):
            before = energy.n_energy_evals
            best_triangular(energy, start, seeded())
            counted.append(energy.n_energy_evals - before)
        assert behind.skewed is not None and counted[0] > 0 and counted[1] == 0
