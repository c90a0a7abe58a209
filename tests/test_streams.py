"""Seeds, warm starts, and what of a fit later changes of parameters leave alone."""

import pickle
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from cases import crossed, slow
from samplers import KINDS, SMALL_MAP, D, fitted, make, quadratic
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import skcds
from skcds import Consistency, ConsistentSamplerDistiller, Control, PathLoss, Prior, Residual
from skcds._support import warnings as _warnings
from skcds._support.parallel import best_fit
from skcds._support.warnings import muted, note, warn_user
from skcds.density.function import Density
from skcds.models.maps import OneStepModel, ResidualMap
from skcds.models.networks import count_evaluations, seeded
from skcds.models.shortcut import ShortcutModel

OTHER_CONTROL = {"hidden_features": 16, "n_layers": 3, "variance": "fixed", "langevin": False}


class At:
    """Energy of N(loc, scale^2 I)."""

    def __init__(self, loc, scale=1.0):
        self.loc, self.scale = loc, scale

    def __call__(self, x):
        return 0.5 * (((x - self.loc) / self.scale) ** 2).sum(1)


def unseeded_student(**params):
    student = make(KINDS[1])
    student.teacher.set_params(random_state=None)
    return student.set_params(**params)


def quietly(sampler, energy):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sampler.fit(energy)


def messages(sampler, energy):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        sampler.fit(energy)
    return [str(one.message) for one in found]


class TestWarmStart:
    """Draws of a warm start lie where the new density is.

    The mean of 2000 draws of N(50, I) strays from 50 by .7 and more with a chance of 1e-200; small fits bring another
    tenth or two. Draws in the old coordinates are off by 50, or by the ratio of the scales.
    """

    @pytest.mark.parametrize("kind, moved", crossed([(KINDS[0], 1), (KINDS[1], 0), (KINDS[2], 0)], KINDS, [0, 1]))
    def test_moved_energy(self, kind, moved):
        loc, scale = [(50.0, 1.0), (-3.0, 0.01)][moved]
        sampler = make(kind, warm_start=True) if kind != KINDS[1] else unseeded_student(warm_start=True)
        quietly(sampler, At(0.0))
        found = messages(sampler, At(loc, scale))
        X = sampler.sample(2000, random_state=0)
        assert np.abs((X.mean(0) - loc) / scale).max() < 0.7
        assert 0.5 < (X.std(0) / scale).min() <= (X.std(0) / scale).max() < 2
        assert sampler.ess_ > 0.3
        assert any("starts anew" in message for message in found) == (kind != KINDS[1])  # a map is carried over

    def test_an_energy_that_was_changed_in_place(self):
        energy = At(0.0)
        sampler = quietly(make(KINDS[0], warm_start=True), energy)
        energy.loc = 50.0
        quietly(sampler, energy)
        assert np.abs(sampler.sample(2000, random_state=0).mean(0) - 50).max() < 0.7

    @pytest.mark.parametrize("kind, loc", [(KINDS[0], 0.3), (KINDS[2], 0.0)])
    def test_an_energy_near_by_goes_on(self, kind, loc):
        sampler = quietly(make(kind, warm_start=True), At(0.0))
        pilot = sampler.pilot_
        assert not any("starts anew" in message for message in messages(sampler, At(loc)))
        assert sampler.pilot_ is pilot

    @pytest.mark.parametrize("loc, anew", [(1.0, False), (50.0, True)])
    def test_without_the_old_densities(self, tmp_path, loc, anew):
        fitted(KINDS[0]).save(tmp_path / "a")
        loaded = skcds.load(tmp_path / "a").set_params(warm_start=True)
        assert any("starts anew" in message for message in messages(loaded, At(loc))) == anew
        assert np.abs(loaded.sample(2000, random_state=0).mean(0) - loc).max() < 0.7

    @pytest.mark.parametrize("kind, n", crossed([(KINDS[0], 200), (KINDS[2], 900)], [KINDS[0], KINDS[2]], [200, 900]))
    def test_another_number_of_particles(self, kind, n):
        """Fewer are taken from all over the old ones, more are copies that moves part; it had been ignored.

        Bounds are 6 standard errors of n draws; the first 200 of 500 ordered ones are off by 10.
        """
        sampler = pickle.loads(pickle.dumps(fitted(kind))).set_params(warm_start=True, start__n_particles=n, max_iter=1)
        order = sampler.particles_[:, 0].argsort()
        sampler.particles_, sampler._particles_log_prob = sampler.particles_[order], sampler._particles_log_prob[order]
        assert not any("starts anew" in message for message in messages(sampler, quadratic))
        x = sampler.particles_
        assert x.shape == (n, D) and len(np.unique(x[:, 0])) > 0.9 * n
        assert np.abs(x.mean(0) - 1).max() < 6 / n**0.5

    @pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]])
    def test_a_limit_that_allows_for_some_particles(self, kind):
        """Their old densities are taken along; it had ended in an error about the sizes of tensors."""
        sampler = pickle.loads(pickle.dumps(fitted(kind)))
        sampler.set_params(warm_start=True, max_energy_evals=1500, max_iter=1)
        assert not any("starts anew" in message for message in messages(sampler, quadratic))
        assert 100 <= len(sampler.particles_) < 500 and sampler.n_energy_evals_ <= 1500

    def test_a_map_is_carried_over(self):
        """Without training to speak of, the draws are the old ones in the new coordinates.

        Standardisations by a few hundred particles differ by some .05 of a scale, and draws are up to four away.
        """
        student = quietly(make(KINDS[1], warm_start=True), At(0.0))
        before = student.sample(500, random_state=0)
        student.set_params(learning_rate=1e-9, max_iter=1)
        quietly(student, At(50.0))
        difference = np.abs(student.sample(500, random_state=0) - 50 - before)
        assert np.median(difference) < 0.2 and difference.max() < 1

    @pytest.mark.parametrize(
        "kind, change",
        [
            *((kind, {f"network__{size}": 3}) for kind in KINDS for size in ("hidden_features", "n_layers")),
            *((KINDS[0], {f"network__{field}": value}) for field, value in OTHER_CONTROL.items()),
            *((KINDS[2], {f"control__{field}": value}) for field, value in OTHER_CONTROL.items()),
            (KINDS[0], {"reference": "dds"}),
            *((kind, {"network": "residual"}) for kind in KINDS[1:]),
            *((kind, {f"network__{size}": 5}) for kind in KINDS[1:] for size in ("n_transforms", "bins")),
        ],
    )
    def test_other_networks_are_refused(self, kind, change):
        sampler = pickle.loads(pickle.dumps(fitted(kind))).set_params(warm_start=True, **change)
        ((name, value),) = change.items()
        with pytest.raises(ValueError, match=f"{name}=.*, and {name}={value!r} is asked for.*warm_start=False"):
            sampler.fit(quadratic)

    @pytest.mark.parametrize("kind", KINDS)
    def test_other_networks_are_fitted_anew(self, kind):
        sampler = pickle.loads(pickle.dumps(fitted(kind))).set_params(network__n_layers=3, max_iter=2)
        assert quietly(sampler, quadratic).n_iter_ == 2

    @pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]])
    def test_a_control_that_reads_scores_needs_them(self, kind):
        sampler = pickle.loads(pickle.dumps(fitted(kind))).set_params(warm_start=True)
        with pytest.raises(ValueError, match=r"reads the gradient.*grad_fn"):
            sampler.fit(lambda x: 0.5 * ((np.asarray(x) - 1) ** 2).sum(1))


class TestSeeds:
    def test_an_unseeded_teacher_follows_the_student(self):
        first, second = (quietly(unseeded_student(max_iter=2), quadratic).sample(20, random_state=0) for _ in range(2))
        assert np.array_equal(first, second)
        other = quietly(unseeded_student(max_iter=2, random_state=1), quadratic).sample(20, random_state=0)
        assert not np.array_equal(first, other)

    @pytest.mark.parametrize("seed", [0, None, *slow("instance", "generator")])
    def test_teachers_of_several_fits_differ(self, seed):
        seeds = {"instance": np.random.RandomState(0), "generator": np.random.default_rng(0)}
        student = make(KINDS[1], n_init=2, max_iter=2)
        student.teacher.set_params(random_state=seeds.get(seed, seed), max_iter=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, fits = best_fit(student, Density(quadratic), None, 0)
            _, again = best_fit(clone(student), Density(quadratic), None, 0)
        particles = [fit.teacher_.particles_ for fit in fits]
        assert not np.array_equal(*particles)
        assert all(map(np.array_equal, particles, [fit.teacher_.particles_ for fit in again]))

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_generator_moves_on(self, kind):
        rng, same = np.random.default_rng(0), np.random.default_rng(0)
        first, second = (quietly(make(kind, random_state=rng, max_iter=2), quadratic) for _ in range(2))
        again = quietly(make(kind, random_state=same, max_iter=2), quadratic)
        assert np.array_equal(first.sample(5, random_state=0), again.sample(5, random_state=0))
        assert first.loss_curve_ == again.loss_curve_ != second.loss_curve_  # of a Gaussian maps may be the same
        draws = [fitted(kind).sample(5, random_state=rng) for _ in range(2)]
        assert not np.array_equal(*draws)

    def test_a_generator_is_saved(self, tmp_path):
        rng = np.random.default_rng(0)
        rng.integers(5, dtype=np.uint32)
        sampler = pickle.loads(pickle.dumps(fitted(KINDS[0]))).set_params(random_state=rng)
        sampler.save(tmp_path / "a")
        loaded = skcds.load(tmp_path / "a").random_state
        assert np.array_equal(loaded.integers(9, size=20, dtype=np.uint32), rng.integers(9, size=20, dtype=np.uint32))

    def test_a_generator_draws_from_targets(self):
        for target in (skcds.targets.Funnel(), skcds.targets.Gaussian(np.zeros(2), np.eye(2))):
            rng = np.random.default_rng(0)
            first, second = target.sample(5, random_state=rng), target.sample(5, random_state=rng)
            assert np.array_equal(first, target.sample(5, random_state=np.random.default_rng(0)))
            assert not np.array_equal(first, second)


UNREAD = {  # values that differ from those of `make`
    "n_features": 7, "bounds": (0, 1), "feature_names": ["a", "b", "c"], "start": (9.0, 2.0), "n_steps": 4,
    "reference": "pis", "loss": PathLoss("kl", 0.5, 3), "control": Control(5, 7, "fixed", False), "batch_size": 3,
    "learning_rate": 0.5, "periodic": [0], "max_iter": 3, "max_time": 3.0, "max_energy_evals": 3, "n_init": 3,
    "warm_start": True, "verbose": 1, "random_state": 9, "network": Residual(5, 7), "teacher": None, "device": "cpu",
    "objective": Consistency(False, 5.0, 3), "n_jobs": 1,
}  # fmt: skip


class TestFittedValues:
    """A parameter that is set after a fit changes the next fit, and nothing of this one."""

    def seen(self, sampler):
        weighted = sampler.sample_weighted(50, random_state=1)
        frame = sampler.sample(3, random_state=0, as_frame=True)
        diagnosis = sampler.diagnose(200, random_state=0)
        parts = [frame, weighted.samples, weighted.log_weights, [check.value for check in diagnosis.checks]]
        return [list(frame.columns), *(np.asarray(part).tolist() for part in parts)]

    @pytest.mark.parametrize("kind", [*slow(KINDS[0], KINDS[1]), KINDS[2]])
    def test_no_parameter_is_read_after_the_fit(self, kind):
        sampler = pickle.loads(pickle.dumps(fitted(kind)))
        before, changed = self.seen(sampler), []
        params = sampler.get_params(deep=False)
        assert set(params) <= set(UNREAD)
        for name, value in params.items():
            sampler.set_params(**{name: UNREAD[name]})
            for copy in (sampler, pickle.loads(pickle.dumps(sampler))):
                changed += [name] * (self.seen(copy) != before)
            sampler.set_params(**{name: value})
        assert not changed

    def test_a_file_keeps_the_steps_of_the_fit(self, tmp_path):
        sampler = pickle.loads(pickle.dumps(fitted(KINDS[0]))).set_params(n_steps=3)
        sampler.save(tmp_path / "a")
        loaded = skcds.load(tmp_path / "a")
        assert (loaded.n_steps, loaded.n_steps_) == (3, 8)

    def test_a_student_learns_from_the_steps_that_its_teacher_was_fitted_with(self):
        teacher = pickle.loads(pickle.dumps(fitted(KINDS[0])))
        draws = []
        for n_steps in (8, 3):
            options = {"max_iter": 3, "random_state": 0, "network": SMALL_MAP, "batch_size": 64}
            student = ConsistentSamplerDistiller(teacher.set_params(n_steps=n_steps), **options)
            draws.append(quietly(student, quadratic).sample(10, random_state=0))
        assert np.array_equal(*draws)


class TestThreads:
    def test_muted_is_of_one_thread(self):
        """While one thread mutes, another's warnings come through, and the filters of the process stay."""
        inside, done, filters = threading.Event(), threading.Event(), list(warnings.filters)

        def mute():
            with muted(ConvergenceWarning):
                inside.set()
                done.wait(10)
                warn_user("never", ConvergenceWarning)

        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            filters = list(warnings.filters)
            thread = threading.Thread(target=mute)
            thread.start()
            inside.wait(10)
            assert warnings.filters == filters
            warn_user("heard", ConvergenceWarning)
            done.set()
            thread.join()
        assert [str(one.message) for one in found] == ["heard"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_reading_draws_no_random_numbers(self, kind, tmp_path, monkeypatch):
        data = pickle.dumps(fitted(kind))
        fitted(kind).save(tmp_path / "a")

        def forbidden(*args, **options):
            raise AssertionError("random numbers were drawn or seeded")

        for module, name in [(torch.nn.init, "kaiming_uniform_"), (torch.nn.init, "uniform_"), (torch, "manual_seed"),
                             (torch, "set_rng_state"), (torch.Tensor, "uniform_")]:  # fmt: skip
            monkeypatch.setattr(module, name, forbidden)
        before = torch.get_rng_state()
        pickled, loaded = pickle.loads(data), skcds.load(tmp_path / "a")
        assert torch.equal(torch.get_rng_state(), before)
        expected = fitted(kind).sample(3, random_state=0)
        assert np.array_equal(pickled.sample(3, random_state=0), expected)
        options = {"energy_fn": quadratic} if kind == KINDS[0] else {}
        assert np.array_equal(loaded.sample(3, random_state=0, **options), expected)

    def test_fits_in_threads_are_those_of_one(self):
        from joblib import parallel_config

        def fit(n_jobs):
            with parallel_config("threading"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sampler = make(KINDS[0], n_init=3, n_jobs=n_jobs, max_iter=1, start__n_particles=100)
                return [one.loss_curve_ for one in best_fit(sampler, Density(quadratic), None, 0)[1]]

        assert fit(3) == fit(1)

    def test_compiled_functions_of_pymc_are_called_by_one_thread_at_a_time(self):
        from concurrent.futures import ThreadPoolExecutor

        from skcds.adapters._pymc import _PyMCEnergy

        class Compiled(_PyMCEnergy):
            constrained_names, storage = ("x",), None

            def __init__(self):
                pass

            def _call(self, function, X):
                self.storage = X
                time.sleep(0.001)
                return [self.storage]

            _both = _value = _parameters = None

        energy = Compiled()
        points = [torch.full((2,), float(k)) for k in range(50)]
        with ThreadPoolExecutor(5) as pool:
            values = pool.map(lambda x: energy._log_prob_and_score(x, False)[0], points)
            assert all(torch.equal(value, x.double()) for value, x in zip(values, points, strict=True))
            values = pool.map(lambda x: energy._constrain(x)["x"], points)
            assert all(torch.equal(value, x) for value, x in zip(values, points, strict=True))


class TestCounts:
    @pytest.mark.parametrize("n", [1, 7, 100])
    def test_of_jacobians(self, n):
        with seeded(0):
            one_step = ResidualMap(3, 6.0, 8, 2)
            walked = ShortcutModel("residual", 8, 3, 6.0, True, 8, 2, False, False)
        x = torch.zeros(n, 3)
        with count_evaluations() as count:
            one_step.jacobian(x, torch.zeros(1))
        assert count.rows == n
        with count_evaluations() as count:
            walked.composed(4).jacobian(x)
        assert count.rows == 4 * n

    def test_of_weights(self):
        with seeded(0):
            model = OneStepModel("residual", 2, 6.0, True, hidden=8, n_layers=2)
        with count_evaluations() as count:
            model.map.call_and_log_det(torch.zeros(50, 2), model.start())
        assert count.rows == 50


class Holed(At):
    """NaN beyond 1.5 in the first coordinate: 7 % of the points, which is warned of."""

    def __call__(self, x):
        return torch.where(x[:, 0] > 1.5, torch.nan, super().__call__(x))


class TestWarnings:
    @pytest.mark.parametrize("seed", [0, *slow(1, 2)])
    def test_nan_is_warned_of_once(self, seed):
        student = unseeded_student(max_iter=1, random_state=seed)
        student.teacher.set_params(max_iter=1, network__langevin=False)
        assert sum("NaN" in message for message in messages(student, Holed(0.0))) == 1

    def test_an_interruption_is_warned_of_once(self):
        calls = []

        def interrupting(x):
            calls.append(len(x))
            if len(calls) == 400:
                raise KeyboardInterrupt
            return quadratic(x)

        student = unseeded_student()
        student.teacher.set_params(max_iter=2000)
        found = [message for message in messages(student, interrupting) if "interrupted" in message]
        assert len([message for message in found if message.startswith("The fit of")]) == 1

    @pytest.mark.parametrize("seed", [0, *slow(1, 2)])
    @pytest.mark.slow
    def test_a_teacher_that_did_not_converge_is_named(self, seed):
        student = make(KINDS[1], network="residual", objective="consistency", max_iter=1, random_state=seed)
        student.teacher.set_params(start=Prior(500), max_iter=1, network__langevin=False, random_state=seed)
        found = [message for message in messages(student, At(20.0, 0.1)) if "did not converge" in message]
        assert len(found) == 1 and "ConsistentSamplerDistiller" in found[0]
        assert "Its teacher did not converge either" in found[0]

    @pytest.mark.parametrize(
        "limits, named", [({"max_energy_evals": 20_000}, "max_energy_evals"), ({"max_time": 0.3}, "max_time"), ({}, "")]
    )
    def test_advice_names_the_cause(self, limits, named):
        sampler = make(KINDS[0], start=Prior(500), max_iter=10**6 if limits else 2, network__langevin=False, **limits)
        (found,) = [message for message in messages(sampler, At(20.0, 0.1)) if "did not converge" in message]
        assert (f"when {named} was used up: raise it" in found) == bool(limits)
        assert ("Raise max_iter" in found) == (not limits)

    def test_methods_that_need_the_energy_name_themselves(self, tmp_path):
        fitted(KINDS[0]).save(tmp_path / "a")
        loaded = skcds.load(tmp_path / "a")
        for name, arguments in [("to_arviz", [10]), ("score", []), ("diagnose", []), ("sample_weighted", [10])]:
            with pytest.raises(ValueError, match=f"^{name} needs the energy"):
                getattr(loaded, name)(*arguments)


class TestNotes:
    @pytest.mark.parametrize(
        "kind", [ValueError, TypeError, skcds.density.energy.InvalidEnergyError, ZeroDivisionError]
    )
    @pytest.mark.parametrize("args", [("broken",), ()])
    @pytest.mark.parametrize("has_notes", [True, False])
    def test_are_part_of_what_is_shown(self, kind, args, has_notes, monkeypatch):
        import traceback

        monkeypatch.setattr(_warnings, "HAS_NOTES", has_notes and _warnings.HAS_NOTES)
        error = kind(*args)
        note(error, "This happened in iteration 3.")
        shown = "".join(traceback.format_exception_only(kind, error))
        assert "This happened in iteration 3." in shown and "".join(args) in shown

    def test_leave_other_arguments_alone(self, monkeypatch):
        monkeypatch.setattr(_warnings, "HAS_NOTES", False)
        for error in (KeyError("key"), OSError(2, "none such"), ValueError("a", 3)):
            args, kind = error.args, type(error)
            note(error, "somewhere")
            assert error.args == args and type(error) is kind

    def test_a_fit_says_where_it_broke(self, monkeypatch):
        monkeypatch.setattr(_warnings, "HAS_NOTES", False)
        calls = iter([False] * 5)

        def breaks(x):
            if next(calls, True):
                raise ZeroDivisionError("the model broke")
            return quadratic(x)

        with pytest.raises(ZeroDivisionError, match=r"the model broke\n.*points of shape[\s\S]*in the pilot"):
            make(KINDS[0]).fit(breaks)


def test_fits_without_folds_are_preferred(monkeypatch):
    """The bound of a map that folds counts mass twice."""
    from skcds._support import parallel

    class Fit:
        def __init__(self, elbo, share):
            self.elbo_, self.ess_, self.violation_share_ = elbo, 0.5, share

    fits = [Fit(3.0, 0.2), Fit(1.0, 0.0), Fit(2.0, 0.0), Fit(np.nan, 0.0)]
    assert max(fits, key=parallel._merit) is fits[2]
    assert max(fits[:1] + [Fit(4.0, 0.1)], key=parallel._merit).elbo_ == 4.0
