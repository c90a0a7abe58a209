"""Limits bound a fit from call to return, and what comes back has been trained; a fit can be watched and stopped."""

import math
import time
import warnings

import numpy as np
import pytest
from cases import crossed
from samplers import SHORT

import skcds
from skcds import Control, Coupling, Pilot
from skcds._support.errors import Spent
from skcds._support.progress import Progress, _count
from skcds.train.budget import Budget

KINDS = ["DiffusionSampler", "ConsistentSamplerDistiller", "ConsistentSamplerScratch"]


START = Pilot(adaptive=SHORT)


def make(kind, d=2, **options):
    options = {"random_state": 0, "start": START, **options}
    if kind == "ConsistentSamplerDistiller" and "max_energy_evals" in options:
        options["teacher"] = skcds.DiffusionSampler(d, max_iter=20, random_state=0)
    return getattr(skcds, kind)(n_features=d).set_params(**options)


TINY, TWO = Control(hidden_features=16, n_layers=1), Coupling(n_transforms=2)
SMALL = {
    "DiffusionSampler": {"n_steps": 16, "network": TINY},
    "ConsistentSamplerDistiller": {
        "teacher": skcds.DiffusionSampler(2, max_iter=20, random_state=0, n_steps=16, network=TINY), "network": TWO,
    },
    "ConsistentSamplerScratch": {"n_steps": 16, "control": TINY, "network": TWO},
}  # fmt: skip


def normal(x):
    return 0.5 * ((x - 3) ** 2).sum(1)


def in_numpy(x):
    return 0.5 * np.square(np.asarray(x)).sum(1)


def slow(x):
    x = np.asarray(x)
    time.sleep(2e-3 * len(x))
    return in_numpy(x)


def raises_far_out(x):
    if (x.abs() > 20).any():
        raise ValueError("too far")
    return normal(x)


def skew(x):
    """Coordinates are curved, which takes longer than the energy."""
    return (0.5 * x**2 + 0.3 * x.clamp(min=0) ** 3).sum(1) + 0.5 * x.sum(1) ** 2


ENERGIES = {
    "normal": (normal, 2), "numpy": (in_numpy, 5), "slow": (slow, 3), "wide": (normal, 300), "marginals": (normal, 24),
    "skew": (skew, 80),
}  # fmt: skip
COUNTED = {"torch": normal, "numpy": in_numpy, "raises": raises_far_out}


# every energy and every limit with one estimator at least, and every estimator with two energies and all limits
TIMED = [
    ("DiffusionSampler", "normal"), ("DiffusionSampler", "slow"), ("DiffusionSampler", "wide"),
    ("ConsistentSamplerDistiller", "slow"), ("ConsistentSamplerDistiller", "normal"),
    ("ConsistentSamplerScratch", "numpy"), ("ConsistentSamplerScratch", "wide"),
    ("ConsistentSamplerDistiller", "marginals"), ("ConsistentSamplerScratch", "marginals"),
    ("DiffusionSampler", "skew"),
]  # fmt: skip
LIMITS = [500, 3000, 30_000]
LIMITED = [(kind, list(COUNTED)[(i + j) % 3], limit) for i, kind in enumerate(KINDS) for j, limit in enumerate(LIMITS)]
LIMITED.remove(("ConsistentSamplerDistiller", "torch", 30_000))  # the longest, which its teacher has, too


class Energy:
    n_energy_evals, evals_per_second = 0, 1000.0


class TestBudget:
    def test_admits_up_to_the_limit(self):
        budget = Budget(None, 100, Energy())
        budget.admit(90, 10)
        with pytest.raises(Spent):
            budget.admit(90, 11)

    def test_parts(self):
        budget = Budget(None, 100, Energy())
        with budget.part(1.0, 0.5):
            with pytest.raises(Spent):
                budget.admit(0, 51)
            with budget.part(1.0, 0.9), pytest.raises(Spent):  # no part goes beyond the one around it
                budget.admit(0, 51)
        budget.admit(0, 51)

    def test_reserve_is_open_to_the_judgement_only(self):
        budget = Budget(None, 1000, Energy())
        budget.reserve()
        with pytest.raises(Spent):
            budget.admit(0, 901)
        with budget.judgement():
            budget.admit(0, 1000)
            with pytest.raises(Spent):
                budget.admit(0, 1001)

    @pytest.mark.parametrize("kind, by_paths", [("DiffusionSampler", True), ("ConsistentSamplerScratch", False)])
    def test_time_for_paths_is_kept_where_they_judge(self, kind, by_paths, monkeypatch):
        """A judgement in one step takes none, and training has the time."""
        kept, slow = [], 10.0  # seconds a path
        cls = getattr(skcds, kind)

        def look(run, n_steps):
            run.seconds_a_path = slow

        def recipe(self, run):
            kept.append(run.budget.time_reserve / run.budget.max_time)
            raise KeyError("enough")

        for module in ("diffusion", "scratch"):
            monkeypatch.setattr(f"skcds.estimators.{module}.gauge", look)
        monkeypatch.setattr(cls, "_recipe", recipe)
        with pytest.raises(KeyError, match="enough"):
            make(kind, max_time=60.0).fit(lambda x: 0.5 * (x**2).sum(1))
        assert kept == [0.25 if by_paths else pytest.approx(0.1)]

    def test_time(self):
        budget = Budget(0.05, None, Energy())
        budget.admit(10**9, 1)
        time.sleep(0.06)
        with pytest.raises(Spent):
            budget.admit(0, 1)
        with budget.judgement():
            budget.admit(0, 1)

    def test_untimed(self):
        """What every fit needs is done however late it is, but not with evaluations that are not there."""
        budget = Budget(1e-9, 100, Energy())
        with budget.untimed():
            budget.admit(0, 100)
            with pytest.raises(Spent):
                budget.admit(0, 101)
        with pytest.raises(Spent):
            budget.admit(0, 1)

    def test_time_is_one_of_evaluations(self):
        """Half of the seconds left at the measured rate."""
        assert Budget(10.0, None, Energy()).energy_evals_left() == pytest.approx(5000, rel=0.01)
        assert Budget(10.0, 700, Energy()).energy_evals_left() == 700
        assert Budget(None, None, Energy()).energy_evals_left() == math.inf


class TestFits:
    @pytest.mark.parametrize("kind, name", crossed(TIMED, KINDS, ENERGIES))
    def test_max_time(self, kind, name):
        """One second, within two more and some for a busy machine; the pilot alone had taken minutes."""
        energy_fn, d = ENERGIES[name]
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = make(kind, d, max_time=1.0).fit(energy_fn)
        assert time.perf_counter() - start < 1 + 4  # twice the two seconds that are promised on a free machine
        assert sampler.n_iter_ >= 1 and np.isfinite(sampler.sample(10, random_state=0)).all()

    @pytest.mark.parametrize("kind, name, limit", crossed(LIMITED, KINDS, COUNTED, LIMITS))
    def test_max_energy_evals(self, kind, name, limit):
        count, energy_fn = [0], COUNTED[name]

        def counted(x):
            count[0] += len(x)
            return energy_fn(x)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = make(kind, max_energy_evals=limit, max_iter=5, **SMALL[kind]).fit(counted)
        assert count[0] == sampler.n_energy_evals_ <= limit and sampler.n_iter_ >= 1


def test_late_trajectories():
    """A student whose teacher reads the score is trained although the time is over before its first trajectory."""

    def slow(x):
        time.sleep(0.01)
        return normal(x)

    teacher = skcds.DiffusionSampler(n_steps=20, network=Control(langevin=True))
    student = skcds.ConsistentSamplerDistiller(teacher, n_features=2, max_time=0.05, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert student.fit(slow).n_iter_ >= 1


def test_too_little():
    """Where a single draw takes more evaluations than are allowed, the error says so, and an earlier fit is kept."""
    sampler = skcds.DiffusionSampler(
        n_features=2, max_energy_evals=200, max_iter=1, random_state=0, network=Control(langevin=True)
    )
    with pytest.raises(ValueError, match="max_energy_evals=200 is too little for DiffusionSampler"):
        sampler.fit(normal)
    assert not hasattr(sampler, "n_iter_")


class TestInterruption:
    @pytest.mark.parametrize(
        "kind, after",
        [*(("DiffusionSampler", n) for n in (3000, 30_000, 100_000)), ("ConsistentSamplerScratch", 30_000)],
    )
    def test_in_the_pilot_keeps_its_particles(self, kind, after):
        """A Gaussian fitted to them is a sampler: untrained, and said to be."""
        count = [0]

        def pressed(x):
            before, count[0] = count[0], count[0] + len(x)
            if before < after <= count[0]:
                raise KeyboardInterrupt
            return normal(x)

        with pytest.warns(UserWarning, match="was interrupted after 0 iterations"):
            sampler = make(kind, **SMALL[kind] | {"n_steps": 8}).fit(pressed)
        assert sampler.interrupted_ and sampler.n_iter_ == 0
        x = sampler.sample(500, random_state=0)
        assert np.abs(x.mean(0) - 3).max() < 1 and np.abs(np.log(x.std(0))).max() < 1
        assert sampler.diagnose(500, random_state=0).verdict != "ok"

    def test_before_there_is_a_particle_raises(self):
        def pressed(x):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make("DiffusionSampler").fit(pressed)


class TestProgress:
    def test_is_there_from_the_first_second(self, capsys):
        """Phase, evaluations and their rate, before the first run of the pilot is over."""
        seen = []

        def watched(x):
            time.sleep(1e-3 * len(x))
            seen.append(capsys.readouterr().err)
            return in_numpy(np.asarray(x))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make("DiffusionSampler", verbose=1, max_time=60.0, max_energy_evals=2_000, max_iter=50).fit(watched)
        early, everything = "".join(seen[: len(seen) // 2]), "".join(seen)
        assert "DiffusionSampler, first look" in early and "evaluations" in early and "/s)" in early and "left" in early
        assert "climbs" in everything and "exploration" in everything

    def test_phases_and_figures(self, capsys):
        sizes = {"start": Pilot(n_particles=300), "n_steps": 8, "network": Control(16, 1), "batch_size": 100}
        teacher = skcds.DiffusionSampler(2, **sizes, max_iter=200, random_state=0)
        small = {"network": Coupling(16, 1, 2), "batch_size": 100}
        make("ConsistentSamplerDistiller", verbose=2, max_iter=5, teacher=teacher, **small).fit(normal)
        text = capsys.readouterr().err
        for phase in ("first look", "climbs", "race of starting scales", "tempering", "score matching", "judgement",
                      "ConsistentSamplerDistiller, distillation"):  # fmt: skip
            assert phase in text
        assert "log Z" in text and "ESS/n" in text and "loss" in text

    def test_silence(self, capsys):
        small = {"start": Pilot((3.0, 2.0), 300), "network": Control(16, 1), "n_steps": 8, "batch_size": 100}
        make("DiffusionSampler", max_iter=5, **small).fit(normal)
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("verbose, kept", [(1, 0), (2, 1)])
    def test_lines_of_phases(self, verbose, kept, capsys):
        """One line for all of them, or one for each."""
        progress = Progress(verbose, "fit")
        for name in ("one", "two"):
            progress.phase(name)
        assert capsys.readouterr().err.count("\n") == kept
        progress.close()

    def test_counts(self):
        assert [_count(n) for n in (7, 9999, 25_000)] == ["7", "9999", "2.5e4"]

    def test_time_left(self, monkeypatch):
        progress = Progress(1, "fit")
        progress.phase("one")
        progress.phase_start -= 10
        progress.note(0.5)
        assert "0:10 left" in progress.text()
        progress.deadline = time.perf_counter() + 61
        assert "1:01 left" in progress.text()
        progress.close()

    def test_a_failed_fit_takes_its_line_away(self, capsys):
        with pytest.raises(ValueError, match="falls without end"):
            make("DiffusionSampler", verbose=1).fit(lambda x: -normal(x))
        assert capsys.readouterr().err.endswith(("\r", "\n", " "))
