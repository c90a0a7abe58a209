"""The public contract, for every sampler alike. Fits are tiny: what is learned well is tested elsewhere."""

import copy
import functools
import math
import numbers
import pickle
import time

import joblib
import numpy as np
import pytest
import torch
from cases import crossed, slow
from samplers import KINDS, LOG_Z, ONE_STEP, SMALL_CONTROL, SMALL_MAP, START, D, fitted, make, quadratic
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import InvalidParameterError

from skcds import (
    Consistency,
    ConsistentSamplerDistiller,
    ConsistentSamplerScratch,
    DiffusionSampler,
    PathLoss,
    Pilot,
    Prior,
)
from skcds.density.energy import InvalidEnergyError
from skcds.estimators.sampling import CHUNK_ROWS
from skcds.specifications import Stopping, Training

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
each = pytest.mark.parametrize("kind", KINDS)
SHORT = {"max_iter": 5, "batch_size": 64, "network": SMALL_MAP, "random_state": 0}
each_one_step = pytest.mark.parametrize("kind", ONE_STEP)


def counted(energy):
    """The energy, and a list that grows by the rows of each of its calls."""
    calls = []

    def count(x):
        calls.append(len(x))
        return energy(x)

    return count, calls


@functools.cache
def of_a_lambda(kind):
    """A fit whose energy no pickle can carry; do not change it."""
    return make(kind).fit(lambda x: 0.5 * (x**2).sum(1))


def state_hash(sampler):
    return joblib.hash(sampler.__getstate__())


@each
class TestDimension:
    @pytest.mark.parametrize(
        "params",
        [
            {"bounds": [(-9, 9), None, (None, 9)]},
            {"feature_names": ["a", "b", "c"]},
            {"bounds": np.array([[-9, 9]] * 3)},
        ],
    )
    def test_is_that_of_bounds_or_names(self, kind, params):
        assert make(kind, n_features=None, **params)._find_n_features(quadratic) == 3

    @pytest.mark.parametrize("params", [{}, {"bounds": (-9, 9)}, {"bounds": [None, None]}])
    def test_is_not_known_from_a_pair_for_all(self, kind, params):
        with pytest.raises(ValueError, match="dimension of the density is not known"):
            make(kind, n_features=None, **params)._find_n_features(quadratic)


@each
class TestFit:
    def test_returns_self_with_results(self, kind):
        sampler = make(kind)
        before = joblib.hash(sampler.get_params())
        assert sampler.fit(quadratic) is sampler
        assert joblib.hash(sampler.get_params()) == before
        assert sampler.n_features_in_ == D
        assert sampler.n_iter_ == len(sampler.loss_curve_) == 20
        assert all(isinstance(loss, float) for loss in sampler.loss_curve_)
        assert sampler.fit_time_ > 0 and 0 < sampler.ess_ <= 1
        assert isinstance(sampler.converged_, bool)
        assert np.isfinite([sampler.log_evidence_, sampler.log_evidence_se_]).all()

    def test_every_evaluation_is_counted(self, kind):
        energy, calls = counted(quadratic)
        sampler = make(kind).fit(energy)
        assert sampler.n_energy_evals_ == sum(calls)
        assert 0 < sampler.n_grad_evals_ < sampler.n_energy_evals_
        assert sampler.n_network_evals_ > 20 * (sampler.batch_size or 512)
        calls.clear()
        assert sampler.sample_weighted(100, random_state=0).n_energy_evals == sum(calls) > 0

    def test_two_fits_agree(self, kind):
        """And leave the global random states alone."""
        second = fitted(kind)
        np.random.seed(7)
        torch.manual_seed(7)
        before = joblib.hash(np.random.get_state()), torch.get_rng_state()
        first = make(kind).fit(quadratic)
        first.sample(10, random_state=0)
        assert joblib.hash(np.random.get_state()) == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        assert state_hash(first) == state_hash(second)
        assert joblib.hash(first) == joblib.hash(second)
        assert state_hash(make(kind, random_state=1).fit(quadratic)) != state_hash(second)

    def test_a_failed_fit_keeps_the_earlier_one(self, kind):
        sampler = copy.deepcopy(fitted(kind))
        before = state_hash(sampler)
        failing = iter([False] * 40)

        def breaks(x):
            if next(failing, True):
                raise ZeroDivisionError("the model broke")
            return quadratic(x)

        with pytest.raises(ZeroDivisionError, match="the model broke"):
            sampler.fit(breaks)
        assert state_hash(sampler) == before
        assert sampler.sample(3).shape == (3, D)

    def test_warm_start_goes_on(self, kind):
        sampler = copy.deepcopy(fitted(kind)).set_params(warm_start=True)
        before = sampler.sample(500, random_state=0)
        sampler.set_params(max_iter=1, learning_rate=1e-9).fit(quadratic)
        assert np.allclose(sampler.sample(500, random_state=0), before, atol=1e-3)
        assert sampler.n_iter_ == 1

    def test_max_energy_evals(self, kind):
        """A fit with half of the evaluations stays within them, and does all of its iterations."""
        limit = fitted(kind).n_energy_evals_ // 2
        sampler = make(kind, max_energy_evals=limit).fit(quadratic)
        assert sampler.n_iter_ == fitted(kind).n_iter_
        assert limit / 4 < sampler.n_energy_evals_ <= limit

    @pytest.mark.parametrize("more", [0, 800])
    def test_few_evaluations(self, kind, more):
        """As the user counts them, probe and judgement included; and there is an iteration for all that."""
        seen = []

        def counted(x):
            seen.append(len(x))
            return quadratic(x)

        limit = more + (500 if kind == "ConsistentSamplerDistiller" else 200)
        sampler = make(kind, max_energy_evals=limit).fit(counted)
        assert sampler.n_iter_ >= 1 and sampler.n_energy_evals_ == sum(seen) <= limit
        assert np.isfinite(sampler.sample(10, random_state=0)).all()

    def test_too_few_evaluations(self, kind):
        with pytest.raises(ValueError, match=r"max_energy_evals has to be at least [25]00"):
            make(kind, max_energy_evals=199).fit(quadratic)

    @pytest.mark.parametrize(
        "bad, error, message",
        [
            ("a string", TypeError, "function"),
            (np.zeros((3, 2)), TypeError, "ndarray"),
            (lambda x: x.sum(1, keepdim=True), InvalidEnergyError, "Drop the last axis"),
            (lambda x: x.sum(), InvalidEnergyError, "Sum over the features"),
            (lambda x: x.sum(1) * float("nan"), InvalidEnergyError, "finite"),
            (lambda x: ((x - x.mean(0)) ** 2).sum(1), InvalidEnergyError, "each row"),
            (lambda x: 1 / 0, ZeroDivisionError, "division"),
        ],
    )
    def test_bad_energy(self, kind, bad, error, message):
        with pytest.raises(error, match=message):
            make(kind).fit(bad)

    @pytest.mark.parametrize(
        "params", [{"max_iter": 0}, {"max_iter": "many"}, {"max_time": -1}, {"learning_rate": 0}, {"random_state": "x"}]
    )
    def test_bad_parameters(self, kind, params):
        with pytest.raises(InvalidParameterError, match=next(iter(params))):
            make(kind, **params).fit(quadratic)


@pytest.mark.parametrize("kind", [KINDS[0], *slow(*ONE_STEP)])
class TestWhatAllShare:
    """Of the template of a fit, which is the same for all kinds."""

    def test_an_instance_as_random_state_moves_on(self, kind):
        rng = np.random.RandomState(0)
        first, second = (make(kind, random_state=rng, max_iter=2).fit(quadratic).loss_curve_ for _ in range(2))
        assert first != second

    def test_max_time(self, kind):
        sampler = make(kind, max_iter=10**6, max_time=1.5)
        start = time.perf_counter()
        sampler.fit(quadratic)
        assert time.perf_counter() - start < 1.5 + 4  # twice what may be added, for a machine that others keep busy
        assert 0 < sampler.n_iter_ < 10**6

    def test_progress_bar(self, kind, capsys):
        make(kind, max_iter=2).fit(quadratic)
        assert capsys.readouterr().err == ""
        make(kind, max_iter=2, verbose=1).fit(quadratic)
        assert "loss" in capsys.readouterr().err

    def test_warns_when_weights_are_useless(self, kind):
        def far_wells(x):
            return 2.0 * (x**2 - 9.0).square().sum(1)

        with pytest.warns(ConvergenceWarning, match="did not converge") as record:
            assert not make(kind, max_iter=1).fit(far_wells).converged_
        assert record[-1].filename == __file__

    def test_dimension_from_the_energy(self, kind):
        def energy(x):
            return quadratic(x)

        energy.n_features = 2
        assert make(kind, n_features=None).fit(energy).n_features_in_ == 2
        energy.n_features = 2.5
        with pytest.raises(ValueError, match="integer"):
            make(kind, n_features=None).fit(energy)

    def test_unknown_dimension(self, kind):
        with pytest.raises(ValueError, match="n_features"):
            make(kind, n_features=None).fit(quadratic)

    def test_one_dimension(self, kind):
        assert make(kind, n_features=1, max_iter=2).fit(quadratic).sample(4).shape == (4, 1)

    def test_numpy_energy(self, kind):
        few = {"max_iter": 2}
        with_gradient = make(kind, **few).fit(
            lambda x: 0.5 * (np.asarray(x) ** 2).sum(1), grad_fn=lambda x: np.asarray(x)
        )
        assert with_gradient.n_grad_evals_ > 0
        without = make(kind, **few).fit(lambda x: 0.5 * (np.asarray(x) ** 2).sum(1))
        assert without.n_grad_evals_ == 0
        assert without.sample(3).shape == with_gradient.sample(3).shape == (3, D)

    def test_partly_invalid_energy(self, kind):
        def patchy(x):
            return torch.where(x[:, 0] > 2.5, torch.nan, quadratic(x))

        with pytest.warns(RuntimeWarning, match="outside the support"):
            sampler = make(kind, max_iter=5).fit(patchy)
        assert np.isfinite(sampler.sample(100)).all()

    def test_bounded_support(self, kind):
        def boxed(x):
            return torch.where((x.abs() > 3).any(1), torch.inf, quadratic(x))

        weighted = make(kind, max_iter=5).fit(boxed).sample_weighted(500, random_state=0)
        outside = (np.abs(weighted.samples) > 3).any(1)
        assert np.isneginf(weighted.log_weights[outside]).all() and np.isfinite(weighted.log_weights[~outside]).all()


@each
class TestSample:
    @pytest.mark.parametrize("n", [0, 1, 7, np.int64(5)])
    def test_shape(self, kind, n):
        X = fitted(kind).sample(n, random_state=0)
        assert X.shape == (n, D) and X.dtype == np.float64 and np.isfinite(X).all()

    @pytest.mark.parametrize(
        "n, error", [(-1, ValueError), (2.5, TypeError), ("3", TypeError), (None, TypeError), (True, TypeError)]
    )
    def test_bad_n(self, kind, n, error):
        with pytest.raises(error, match="n has to be"):
            fitted(kind).sample(n)

    @pytest.mark.parametrize("n_steps, error", [(0, ValueError), (1.5, TypeError)])
    def test_bad_n_steps(self, kind, n_steps, error):
        with pytest.raises(error, match="n_steps has to be"):
            fitted(kind).sample(3, n_steps=n_steps)

    def test_seeds(self, kind):
        a, b = (fitted(kind).sample(50, random_state=s) for s in (3, 4))
        assert np.array_equal(a, fitted(kind).sample(50, random_state=3))
        assert not np.array_equal(a, b)
        assert np.array_equal(a, fitted(kind).sample(50, random_state=np.random.RandomState(3)))

    def test_prefix_over_chunks(self, kind):
        n = CHUNK_ROWS + 100
        X = fitted(kind).sample(n, random_state=0)
        for m in (100, CHUNK_ROWS, CHUNK_ROWS + 1):
            assert np.allclose(X[:m], fitted(kind).sample(m, random_state=0), atol=1e-5)  # rounding of other batches

    def test_changes_nothing(self, kind):
        before = state_hash(fitted(kind)), fitted(kind).n_energy_evals_
        fitted(kind).sample(10)
        fitted(kind).sample_weighted(10)
        assert (state_hash(fitted(kind)), fitted(kind).n_energy_evals_) == before

    def test_unfitted(self, kind):
        with pytest.raises(NotFittedError):
            make(kind).sample(1)
        with pytest.raises(NotFittedError):
            make(kind).sample_weighted(1)
        with pytest.raises(NotFittedError):
            make(kind).to_arviz(1)
        with pytest.raises(NotFittedError):
            clone(fitted(kind)).sample(1)

    def test_few_steps(self, kind):
        assert fitted(kind).sample(10, n_steps=2, random_state=0).shape == (10, D)


@each
class TestWeights:
    def test_fields(self, kind):
        W = fitted(kind).sample_weighted(2000, random_state=0)
        assert W.samples.shape == (2000, D) and W.log_weights.shape == (2000,)
        assert 1 <= W.ess <= 2000
        assert isinstance(W.pareto_k, numbers.Real)
        assert W.resample(50, random_state=0).shape == (50, D)

    def test_log_evidence_and_bound(self, kind):
        """False alarms: 1e-8 (5.6 standard errors). Weights off by a factor 1.1 are found at these sample sizes."""
        W = fitted(kind).sample_weighted(20_000, random_state=0)
        assert W.pareto_k < 0.5  # so that standard errors hold
        assert W.log_evidence_se < 0.015
        assert abs(W.log_evidence - LOG_Z) < 5.6 * W.log_evidence_se
        assert W.is_bound and W.elbo < LOG_Z + 5.6 * W.elbo_se


def test_energy_shift_moves_log_evidence_alone():
    """From a start that is wider than the density: from its own Gaussian the least rounding decides about particles."""
    plain, shifted = (make(KINDS[0], start=None).fit(lambda x, c=c: quadratic(x) + c) for c in (0.0, 64.0))
    assert np.allclose(*(sampler.sample(100, random_state=0) for sampler in (plain, shifted)), atol=1e-3)
    assert shifted.log_evidence_ + 64.0 == pytest.approx(plain.log_evidence_, abs=1e-3)


@each
class TestStreams:
    n = 2 * CHUNK_ROWS + 100

    @pytest.mark.parametrize("batch_size", [1000, CHUNK_ROWS, 3 * CHUNK_ROWS])
    def test_batches_are_the_sample(self, kind, batch_size):
        steps = {"n_steps": 2}
        X = fitted(kind).sample(self.n, random_state=3, **steps)
        batches = list(fitted(kind).iter_samples(self.n, batch_size, random_state=3, **steps))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (self.n // batch_size)
        assert np.array_equal(np.concatenate(batches), X)
        assert len({id(batch) for batch in batches}) == len(batches)  # each its own

    def test_none(self, kind):
        assert list(fitted(kind).iter_samples(0)) == []

    @pytest.mark.parametrize("n, options", [(-1, {}), (5, {"batch_size": 0}), (5, {"n_steps": 0})])
    def test_bad_arguments_at_once(self, kind, n, options):
        with pytest.raises(ValueError):
            fitted(kind).iter_samples(n, **options)

    def test_unfitted(self, kind):
        with pytest.raises(NotFittedError):
            make(kind).iter_samples(5)

    def test_is_lazy(self, kind):
        """A batch of 10^12 draws in all is there at once."""
        batch = next(fitted(kind).iter_samples(10**12, 10, random_state=0))
        np.testing.assert_allclose(batch, fitted(kind).sample(10, random_state=0), atol=1e-4)  # rounding

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_out(self, kind, dtype, tmp_path):
        out = np.memmap(tmp_path / "draws", dtype, "w+", shape=(50, D))
        assert fitted(kind).sample(50, random_state=0, out=out) is out
        assert np.array_equal(out, fitted(kind).sample(50, random_state=0).astype(dtype))

    @pytest.mark.parametrize(
        "out, error", [(np.empty((4, D)), ValueError), (np.empty((5, D), int), TypeError), ([], TypeError)]
    )
    def test_bad_out(self, kind, out, error):
        with pytest.raises(error, match="out has to be"):
            fitted(kind).sample(5, out=out)

    def test_read_only_out(self, kind):
        out = np.empty((5, D))
        out.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            fitted(kind).sample(5, out=out)


@each
class TestPickle:
    def test_round_trip(self, kind):
        loaded = pickle.loads(pickle.dumps(fitted(kind)))
        assert np.array_equal(loaded.sample(20, random_state=0), fitted(kind).sample(20, random_state=0))
        assert loaded.sample_weighted(5).log_weights.shape == (5,)  # the energy came by reference
        assert not hasattr(loaded, "fit_time_")

    def test_lambda_as_energy(self, kind, tmp_path):
        sampler = of_a_lambda(kind)
        joblib.dump(sampler, tmp_path / "sampler.joblib")
        loaded = joblib.load(tmp_path / "sampler.joblib")
        with pytest.raises(ValueError, match="energy_fn="):
            loaded.sample_weighted(5)
        W = loaded.sample_weighted(5, energy_fn=lambda x: 0.5 * (x**2).sum(1), random_state=0)
        assert np.allclose(W.log_weights, sampler.sample_weighted(5, random_state=0).log_weights, atol=1e-4)

    def test_state_is_arrays(self, kind):
        def has_tensor(value):
            if isinstance(value, dict):
                return any(map(has_tensor, value.values()))
            if isinstance(value, list | tuple):
                return any(map(has_tensor, value))
            return isinstance(value, torch.Tensor | torch.nn.Module)

        assert not has_tensor(fitted(kind).__getstate__())

    def test_unfitted(self, kind):
        assert (
            pickle.loads(pickle.dumps(make(kind))).get_params(deep=False).keys()
            == make(kind).get_params(deep=False).keys()
        )


@each_one_step
class TestOneStep:
    def test_needs_neither_energy_nor_gradient(self, kind):
        energy, calls = counted(quadratic)
        sampler = make(kind, max_iter=2).fit(energy)
        calls.clear()
        sampler.sample(100, random_state=0)
        sampler.sample(100, n_steps=2, random_state=0, **({"method": "map"} if "Scratch" in kind else {}))
        assert calls == []

    def test_one_network_evaluation_a_draw(self, kind):
        sampler, rows = fitted(kind), []
        handle = sampler._model.map.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
        sampler.sample(CHUNK_ROWS + 1, random_state=0)
        sampler.sample(100, random_state=0)
        handle.remove()
        assert sum(rows[:-1]) == CHUNK_ROWS + 1 and rows[-1] == 100

    def test_weighted_draws_are_the_draws(self, kind):
        assert np.array_equal(
            fitted(kind).sample_weighted(300, random_state=5).samples, fitted(kind).sample(300, random_state=5)
        )

    def test_draws_survive_without_energy(self, kind):
        loaded = pickle.loads(pickle.dumps(of_a_lambda(kind)))
        assert np.array_equal(loaded.sample(20, random_state=0), of_a_lambda(kind).sample(20, random_state=0))


class TestDiffusionSampler:
    def test_max_energy_evals_ends_training(self):
        """Where scores are read all the same, training ends when the evaluations are used up."""
        sampler = make("DiffusionSampler", max_iter=10**5, max_energy_evals=50_000, network__langevin=True)
        sampler.fit(quadratic)
        assert 5 < sampler.n_iter_ < 10**4
        assert sampler.n_energy_evals_ < 150_000  # and what is drawn after it

    def test_student_of_a_teacher_that_reads_the_score(self):
        """Its trajectories and the scores that it needs are paid from its own budget."""
        teacher = fitted("DiffusionSampler")
        assert teacher._model.needs_score
        never = Consistency(training=Training(stopping=Stopping(min_iter=1000)))
        options = {"max_iter": 100, "batch_size": 32, "network": SMALL_MAP, "objective": never}
        student = ConsistentSamplerDistiller(teacher, **options, max_energy_evals=15_000)
        student.fit(quadratic)
        assert student.n_iter_ > 20 and student.n_energy_evals_ < 30_000

    def test_the_loss_on_paths_has_its_share(self):
        """Score matching, of 300 iterations, leaves a quarter of the evaluations, and what follows is trained."""
        options = {"max_iter": 600, "max_energy_evals": 30_000, "start__n_particles": 2500}
        sampler = make(
            "DiffusionSampler", **options, batch_size=32, loss=PathLoss(share=0.5, batch_size=16, tol=0.0)
        ).fit(quadratic)
        assert len(sampler.loss_curve_) > 300

    READS = [
        ({}, True), ({"max_energy_evals": 50_000}, False), ({"max_energy_evals": 10**7}, True),
        ({"max_energy_evals": 50_000, "network__langevin": True}, True), ({"network__langevin": False}, False),
        ({"start": "prior", "max_energy_evals": 1000}, False),
        ({"start": "prior", "max_energy_evals": 10**7}, True),
    ]  # fmt: skip

    @pytest.mark.parametrize(
        "kind, case",
        crossed(
            [*(("DiffusionSampler", case) for case in range(7)), *(("ConsistentSamplerScratch", k) for k in (1, 5, 6))],
            ["DiffusionSampler", "ConsistentSamplerScratch"],
            range(7),
        ),
    )
    def test_score_is_read_where_evaluations_allow(self, kind, case):
        options, reads = self.READS[case]
        if kind == "ConsistentSamplerScratch":  # it is its control that may read the score
            options = {name.replace("network", "control"): value for name, value in options.items()}
        assert make(kind, max_iter=1, **options).fit(quadratic)._model.needs_score == reads

    @pytest.mark.parametrize("langevin", [True, False])
    def test_energy_is_needed_only_with_the_score(self, langevin):
        sampler = make("DiffusionSampler", network__langevin=langevin).fit(lambda x: 0.5 * (x**2).sum(1))
        loaded = pickle.loads(pickle.dumps(sampler))
        if langevin:
            with pytest.raises(ValueError, match="sample needs the energy"):
                loaded.sample(5)
        else:
            assert np.array_equal(loaded.sample(5, random_state=0), sampler.sample(5, random_state=0))

    @pytest.mark.parametrize("n_steps", [4, 8, 20])
    def test_weights_are_exact_for_any_number_of_steps(self, n_steps):
        """False alarms: 1e-8."""
        W = fitted("DiffusionSampler").sample_weighted(20_000, n_steps=n_steps, random_state=1)
        assert W.pareto_k < 0.7
        assert abs(W.log_evidence - LOG_Z) < 5.6 * W.log_evidence_se
        assert W.elbo < LOG_Z + 5.6 * W.elbo_se

    def test_ode(self):
        X = fitted("DiffusionSampler").sample(100, method="ode", random_state=0)
        assert np.array_equal(X, fitted("DiffusionSampler").sample(100, method="ode", random_state=0))
        with pytest.raises(ValueError, match="'sde' or 'ode'"):
            fitted("DiffusionSampler").sample(5, method="euler")

    @pytest.mark.parametrize(
        "params",
        [
            {"start": Prior(500)},
            {"network__variance": "fixed"},
            {"start": Prior(500), "network__variance": "fixed", "network__langevin": False},
        ],
    )
    def test_published_method(self, params):
        sampler = make("DiffusionSampler", **params).fit(lambda x: 0.5 * (x**2).sum(1))
        assert (sampler.pilot_ is None) == ("start" in params)
        W = sampler.sample_weighted(20_000, random_state=0)
        assert abs(W.log_evidence - LOG_Z) < 5.6 * W.log_evidence_se  # false alarms: 1e-8

    def test_warm_start_in_another_dimension(self):
        sampler = copy.deepcopy(fitted("DiffusionSampler")).set_params(warm_start=True)
        with pytest.raises(ValueError, match="3 dimensions"):
            sampler.set_params(n_features=2).fit(quadratic)


class TestSpoiledControl:
    """Training that lowers the bound on log Z is undone; on a Gaussian the untrained control is nearly exact."""

    def bound(self, learning_rate=0.2, **training):
        sampler = DiffusionSampler(
            2,
            n_steps=16,
            max_iter=30,
            learning_rate=learning_rate,
            random_state=0,
            start=Pilot(begin=(3.0, 2.0), n_particles=500),
            loss=PathLoss(share=0, training=Training(n_judged=2000, n_compared=400, **training)),
        )
        sampler.fit(lambda x: 0.5 * ((x - 3) ** 2).sum(1))
        return sampler.sample_weighted(2000, random_state=0).elbo - math.log(2 * math.pi)

    @pytest.mark.parametrize("learning_rate", [*slow(0.2), 1.0])  # far off, and to infinity
    def test_is_not_kept(self, learning_rate):
        assert -0.2 < self.bound(learning_rate) < 0.1

    def test_would_be_far_off(self):  # negative control
        assert -0.2 < self.bound(0.04) < 0.1
        assert self.bound(0.04, regression_margin=1e9) < -1


class TestDistiller:
    @pytest.mark.parametrize("wrap", [lambda teacher: teacher, FrozenEstimator])
    def test_fitted_teacher_is_used_as_it_is(self, wrap):
        teacher = fitted("DiffusionSampler")
        before = state_hash(teacher)
        student = ConsistentSamplerDistiller(wrap(teacher), **SHORT).fit(quadratic)
        assert student.teacher_ is teacher and state_hash(teacher) == before

    def test_unfitted_teacher_is_cloned(self):
        teacher = DiffusionSampler(n_steps=8, max_iter=5, random_state=0, start=START, network=SMALL_CONTROL)
        student = ConsistentSamplerDistiller(teacher, n_features=D, **SHORT).fit(quadratic)
        assert not hasattr(teacher, "n_features_in_") and student.teacher_.n_features_in_ == D
        assert student.n_energy_evals_ > student.teacher_.n_energy_evals_

    def test_no_teacher(self):
        student = ConsistentSamplerDistiller(n_features=2, **SHORT, max_time=2).fit(quadratic)
        assert student.teacher_.n_features_in_ == 2

    def test_teacher_of_another_dimension(self):
        student = ConsistentSamplerDistiller(fitted("DiffusionSampler"), n_features=2)
        with pytest.raises(ValueError, match="teacher samples 3 features, and n_features=2"):
            student.fit(quadratic)

    def test_something_else_as_teacher(self):
        with pytest.raises(TypeError, match="DiffusionSampler"):
            ConsistentSamplerDistiller(teacher=3, n_features=2).fit(quadratic)

    @pytest.mark.parametrize("refine", [True, *slow(False)])
    def test_residual_network(self, refine):
        kind = "ConsistentSamplerDistiller"
        student = (
            fitted(kind, "residual")
            if refine
            else make(kind, network="residual", objective="consistency").fit(quadratic)
        )
        W = student.sample_weighted(500, random_state=0)
        assert np.array_equal(W.samples, student.sample(500, random_state=0))
        assert W.is_bound == (W.violation_share == 0)

    def test_a_fold_is_reported(self, monkeypatch):
        student = pickle.loads(pickle.dumps(fitted("ConsistentSamplerDistiller", "residual")))
        monkeypatch.setattr(
            student._model.map, "forward", lambda x, level, to=None: torch.cat([x[:, :1] ** 2, x[:, 1:]], 1)
        )
        with pytest.warns(ConvergenceWarning, match="not injective"):
            W = student.sample_weighted(500, random_state=0)
        assert not W.is_bound and W.violation_share > 0.4  # half of the determinants are negative


class TestScratch:
    @pytest.mark.parametrize("method", ["map", "chain"])
    @pytest.mark.parametrize("n_steps", [1, 2, 4, 8])
    def test_weights_are_exact_in_any_number_of_steps(self, n_steps, method):
        """False alarms: 1e-8."""
        W = fitted("ConsistentSamplerScratch").sample_weighted(20_000, n_steps=n_steps, method=method, random_state=1)
        assert W.is_bound and W.pareto_k < 0.7
        assert abs(W.log_evidence - LOG_Z) < 5.6 * W.log_evidence_se
        assert W.elbo < LOG_Z + 5.6 * W.elbo_se

    @pytest.mark.parametrize("method", ["map", "chain"])
    @pytest.mark.parametrize("n_steps", [2, 8])
    def test_weighted_draws_are_the_draws(self, n_steps, method):
        sampler, kwargs = fitted("ConsistentSamplerScratch"), {"n_steps": n_steps, "method": method, "random_state": 5}
        assert np.array_equal(sampler.sample_weighted(300, **kwargs).samples, sampler.sample(300, **kwargs))

    def test_chain_by_default(self):
        sampler = fitted("ConsistentSamplerScratch")
        draws = {m: sampler.sample(20, n_steps=8, method=m, random_state=0) for m in (None, "map", "chain")}
        assert np.array_equal(draws[None], draws["chain"]) and not np.allclose(draws[None], draws["map"])

    def test_no_chain_for_a_residual_map(self):
        sampler = fitted("ConsistentSamplerScratch", "residual")
        with pytest.raises(ValueError, match="network='coupling'"):
            sampler.sample(5, n_steps=2, method="chain")

    @pytest.mark.parametrize("n_steps", [3, 6, 16])
    def test_illegal_number_of_steps(self, n_steps):
        with pytest.raises(ValueError, match=f"one of 1, 2, 4, 8; got {n_steps}"):
            fitted("ConsistentSamplerScratch").sample(3, n_steps=n_steps)

    def test_illegal_method(self):
        with pytest.raises(ValueError, match="'map', 'chain' or None; got 'ode'"):
            fitted("ConsistentSamplerScratch").sample(3, method="ode")

    def test_grid_has_to_be_a_power_of_two(self):
        with pytest.raises(ValueError, match="power of two; got 48"):
            ConsistentSamplerScratch(n_features=2, n_steps=48).fit(quadratic)

    def test_warm_start_on_another_grid(self):
        sampler = copy.deepcopy(fitted("ConsistentSamplerScratch")).set_params(warm_start=True)
        with pytest.raises(ValueError, match="n_steps=8, and n_steps=16"):
            sampler.set_params(n_steps=16).fit(quadratic)

    @pytest.mark.parametrize(
        "network, start, objective",
        [
            ("coupling", Prior(500), "separate"),
            ("residual", Pilot(None, 500), "separate"),
            *slow(("residual", Prior(500), "joint")),
        ],
    )
    def test_options(self, network, start, objective):
        options = {"network": network, "start": start, "objective": objective, "max_iter": 10}
        sampler = make("ConsistentSamplerScratch", **options).fit(quadratic)
        assert (sampler.pilot_ is None) == isinstance(start, Prior)
        X = sampler.sample(300, random_state=0)
        assert X.shape == (300, D) and np.isfinite(X).all()
        assert sampler.sample(10, n_steps=4, random_state=0).shape == (10, D)
        loaded = pickle.loads(pickle.dumps(sampler))
        assert np.array_equal(
            loaded.sample(10, n_steps=2, random_state=0), sampler.sample(10, n_steps=2, random_state=0)
        )
        W = sampler.sample_weighted(300, n_steps=2, random_state=0)
        assert W.is_bound == (W.violation_share == 0)

    def test_residual_network_reads_no_score(self):
        sampler = make("ConsistentSamplerScratch", network="residual", max_iter=2).fit(lambda x: 0.5 * (x**2).sum(1))
        loaded = pickle.loads(pickle.dumps(sampler))
        for n_steps in (1, 2, 4, 8):
            assert loaded.sample(5, n_steps=n_steps).shape == (5, D)
