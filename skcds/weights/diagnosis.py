"""A short report on a fitted sampler: by its own weights, and against particles that it did not draw.

A figure counts only as far as it exceeds what chance does to an exact sampler. So every limit is one of the excess over
the noise. The noise is that of independent draws; of the particles, `DEPENDENCE` count as one.
"""

__all__ = ["Check", "Diagnosis", "diagnose", "verdict_of_weights"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .. import metrics
from .._support.devices import to_numpy
from ..explore.modes import LIKELY
from .sample import WeightedSample

VERDICTS = ("ok", "suspect", "failed")
FAR = math.log(100.0)  # log weight of a particle over the mean weight; from here on draws hardly ever get there
OUT_OF_REACH = 0.005, 0.02  # shares of such particles
DEPENDENCE = 4.0  # particles that count as one independent draw: they are states of chains with common ancestors
N_DEVIATIONS = 4.0  # standard errors that are put down to chance
FALSE_ALARM = 1e-3  # probability that chance alone exceeds the noise of the largest of several figures
CROWDED = 0.5  # expected total variation of exact draws; from here on counts in modes tell nothing
UNSEEN = "It cannot see modes that neither the pilot nor the sampler found."


@dataclass(frozen=True)
class Check:
    """One figure of a diagnosis.

    Attributes
    ----------
    name : str
        Name of the figure.
    value : float
        The figure.
    verdict : {"ok", "suspect", "failed"}
        The verdict on it.
    meaning : str
        What the figure is, in words.
    """

    name: str
    value: float
    verdict: str
    meaning: str


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found out about a sampler. It prints as a table.

    Attributes
    ----------
    checks : tuple of Check
        The figures.
    n_draws, n_particles : int
        Number of draws, and of particles of the pilot or of the training, that were looked at.
    """

    checks: tuple[Check, ...]
    n_draws: int
    n_particles: int

    @property
    def verdict(self) -> str:
        """The worst of the checks' verdicts."""
        return max((check.verdict for check in self.checks), key=VERDICTS.index)

    @property
    def reasons(self) -> list[str]:
        """The checks that are not ok, in words."""
        return [f"{check.name}: {check.meaning}" for check in self.checks if check.verdict != "ok"]

    def __getitem__(self, name: str) -> Check:
        """The check of a name."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def __str__(self) -> str:
        rows = [f"{c.name:24s} {c.value:10.4g}  {c.verdict:8s} {c.meaning}" for c in self.checks]
        against = f" and {self.n_particles} particles" if self.n_particles else ""
        return "\n".join([f"{self.verdict} ({self.n_draws} draws{against})", *rows, UNSEEN])


def diagnose(
    weighted: WeightedSample, particles: np.ndarray, log_weights_of_particles: np.ndarray | None,
    standardize: Callable, *, pilot_log_evidence: float | None = None, pilot_se: float = 0.0,
    chance_of_another: float = 0.0, violation_share: float | None = None, target=None,
    energies: np.ndarray | None = None, n_iter: int | None = None, missed=None,
) -> Diagnosis:  # fmt: skip
    """Judge weighted draws by themselves and against particles; see `BaseSampler.diagnose`.

    Parameters
    ----------
    weighted : WeightedSample
        Draws of the sampler.
    particles : ndarray of shape (m, d)
        Points that approximate the target and were not drawn by the sampler, in the coordinates that `standardize`
        leads to; m may be 0.
    log_weights_of_particles : ndarray of shape (m,) or None
        Their exact log weights under the sampler, or None if these are not known.
    standardize : callable
        From the user's coordinates to those in which locations and spreads are compared: standardised, and after a sinh
        transform of the tails.
    pilot_log_evidence : float, optional
        Another estimate of log Z.
    pilot_se : float, default=0.0
        Its standard error.
    chance_of_another : float, default=0.0
        Estimated chance that another climb of the exploration would have ended at a new mode.
    violation_share : float, optional
        Share of violations of injectivity.
    target : object, optional
        The energy. If it knows its modes, they are used (`modes`, `mode_masses`, `well_masses`).
    energies : ndarray of shape (n,), optional
        The energy at the draws.
    n_iter : int, optional
        Iterations of the training.
    missed : Missed, optional
        What fresh climbs found beside the draws.

    Returns
    -------
    Diagnosis
        The report.
    """
    z, n = standardize(weighted.samples), len(weighted.log_weights)
    checks = [] if n_iter is None else [_of_training(n_iter)]
    checks += [*_of_weights(weighted), _of_raw_draws(weighted, z, energies)]
    if pilot_log_evidence is not None:
        gap = weighted.log_evidence - pilot_log_evidence
        excess = abs(gap) - N_DEVIATIONS * math.hypot(weighted.log_evidence_se, pilot_se)
        checks.append(_judge("log Z less the pilot's", gap, (0.1, 0.5), excess, "nats"))
    if chance_of_another:
        meaning = "chance that one more climb of the exploration would have ended at a new mode"
        checks.append(_judge("modes not found yet", chance_of_another, (LIKELY, math.inf), chance_of_another, meaning))
    if len(particles):
        if log_weights_of_particles is not None and weighted.ess:
            checks += _of_lost_mass(weighted, log_weights_of_particles)
        checks += _of_moments(z, particles)
    if violation_share is not None:
        checks.append(_judge("injectivity", violation_share, (0.0, 0.01), violation_share, "share of violations"))
    if missed is not None:
        checks.append(_of_missed_modes(missed))
    checks += _of_modes(weighted.samples, target)
    return Diagnosis(tuple(checks), n, len(particles))


def _of_training(n_iter: int) -> Check:
    """A sampler that was not trained draws from where training would have begun."""
    meaning = "done" if n_iter else "none was done: raise max_energy_evals or max_time"
    return _judge("training iterations", n_iter, (0, 1), 0 if n_iter else 1, meaning)


def _of_weights(weighted: WeightedSample) -> list[Check]:
    """What the draws' weights say of themselves, and of the draws."""
    share, k, limit = weighted.ess / len(weighted.log_weights), weighted.pareto_k, weighted.pareto_k_limit
    outside, distance = float(np.mean(np.isneginf(weighted.log_weights))), weighted.total_variation
    return [
        _judge("normalised ESS", share, (-0.1, -0.01), -share, "ESS / n of the draws' weights"),
        _judge("Pareto k", k, (limit, 1.0), k, f"of the largest weights; reliable to {limit:.2g}"),
        _judge("outside the support", outside, (0.02, 0.5), outside, "share of the draws"),
        _judge("total variation", distance, (0.4, 0.75), distance, "of unweighted draws to the target, by the weights"),
    ]


def verdict_of_weights(weighted: WeightedSample) -> str:
    """The worst verdict that the weights of draws allow, by themselves."""
    return max((check.verdict for check in _of_weights(weighted)), key=VERDICTS.index)


def _of_raw_draws(weighted: WeightedSample, z: np.ndarray, energies: np.ndarray | None) -> Check:
    """Largest Kolmogorov distance between draws with and without their weights, in one dimension each."""
    name, bounds = "draws less weights", (0.05, 0.2)
    if not weighted.ess:
        return Check(name, math.nan, "failed", "no draw has a weight")
    excess_weight, n, columns = weighted.weights - 1 / len(z), len(z), weighted.samples.T
    assert weighted.feature_names is not None  # since it was made
    found = {f"of {j}": kolmogorov(x, excess_weight) for j, x in zip(weighted.feature_names, columns, strict=True)}
    found["of the distance from the centre"] = kolmogorov(np.linalg.norm(z, axis=1), excess_weight)
    if energies is not None:
        found["of the energy"] = kolmogorov(energies, excess_weight)
    what = max(found, key=found.__getitem__)
    noise = math.sqrt(0.5 * math.log(2 * len(found) / FALSE_ALARM) * max(1 / weighted.ess - 1 / n, 0.0))
    return _judge(name, found[what], bounds, found[what] - noise, f"Kolmogorov distance with and without, {what}")


def kolmogorov(x: np.ndarray, excess_weight: np.ndarray) -> float:
    """Largest difference of two weighted empirical distribution functions on the same points.

    Without a systematic difference it is about that of a Brownian bridge, in units of the root of the sum of squares of
    the excess weights.

    Parameters
    ----------
    x : ndarray of shape (n,)
        Points; NaN counts as largest.
    excess_weight : ndarray of shape (n,)
        Differences of the normalised weights, which sum to zero.
    """
    order = np.argsort(x)
    last_of_ties = np.append(x[order][1:] != x[order][:-1], True)
    return float(np.abs(np.cumsum(excess_weight[order])[last_of_ties]).max())


def _of_lost_mass(weighted: WeightedSample, log_weights: np.ndarray) -> list[Check]:
    """Compare what particles see of the distance from sampler to target with what draws see of it.

    Let weights w have mean one under the sampler. Its total variation to the target is the mean of ``max(0, 1 - w)``
    over draws, and the mean of ``max(0, 1 - 1 / w)`` over the target. The draws cannot see mass that they do not reach.
    """
    of_draws, of_particles = weighted.log_weights - weighted.log_evidence, log_weights - weighted.log_evidence
    by_draws, by_particles = -np.expm1(np.minimum(of_draws, 0)), -np.expm1(np.minimum(-of_particles, 0))
    n, m = len(by_draws), len(by_particles) / DEPENDENCE
    slope = np.mean((of_draws < 0) * (1 - by_draws)) + np.mean((of_particles > 0) * (1 - by_particles))  # along log Z
    se = math.sqrt(by_draws.var() / n + by_particles.var() / m + (slope * weighted.log_evidence_se) ** 2)
    lost = float(by_particles.mean() - by_draws.mean())
    far, reached = float(np.mean(of_particles > FAR)), float(weighted.weights[of_draws > FAR].sum())
    beyond = far - reached - N_DEVIATIONS * math.sqrt(OUT_OF_REACH[0] / m)
    return [
        _judge("lost mass", lost, (0.01, 0.05), lost - N_DEVIATIONS * se, "total variation seen by particles only"),
        _judge("particles out of reach", far, OUT_OF_REACH, beyond, "share with a weight over 100"),
    ]


def _of_moments(z: np.ndarray, particles: np.ndarray) -> list[Check]:
    """Means and standard deviations of draws and particles, the largest difference of any coordinate."""
    n, m, d = len(z), len(particles) / DEPENDENCE, z.shape[1]
    n_deviations = math.sqrt(2 * math.log(2 * d / FALSE_ALARM))
    sd, other = z.std(0), particles.std(0)
    shift = np.abs(z.mean(0) - particles.mean(0)) / other
    excess = shift - n_deviations * np.sqrt((sd / other) ** 2 / n + 1 / m)
    ratio = np.abs(np.log(sd / other))
    se = np.sqrt((kurtosis(z) - 1) / (4 * n) + (kurtosis(particles) - 1) / (4 * m))
    factor, beyond = math.exp(ratio.max()), math.exp((ratio - n_deviations * se).max())
    return [
        _judge("location", shift.max(), (0.1, 0.5), excess.max(), "largest shift of a mean, in deviations"),
        _judge("spread", factor, (1.1, 1.5), beyond, "largest ratio of deviations"),
    ]


def _of_missed_modes(missed) -> Check:
    """Mass that fresh climbs found where the draws have too little of it."""
    meaning = f"share of the mass; {missed.n_climbs} climbs ended at {missed.n_modes} modes"
    if missed.x is not None:
        where = np.array2string(to_numpy(missed.x), precision=4, threshold=8)
        meaning += f"; the draws have too little of the mass near {where}"
    return _judge("missed modes", missed.share, (0.01, 0.05), missed.excess, meaning)


def kurtosis(x: np.ndarray) -> np.ndarray:
    """Fourth moment of the standardised columns (d,); 3 for a normal distribution."""
    return np.mean(((x - x.mean(0)) / x.std(0)) ** 4, axis=0)


def _of_modes(X: np.ndarray, target) -> list[Check]:
    """Shares of the draws in modes against the masses that the target knows, beyond what exact draws show."""
    if not callable(getattr(target, "modes", None)):
        return []
    X, checks = X[np.isfinite(X).all(1)], []
    if not len(X):
        return []
    masses, wells = _listed_masses(target), getattr(target, "well_masses", None)
    if wells is not None and hasattr(target, "n_wells"):
        checks.append(_of_wells(target.modes(X), float(wells[1]), target.n_wells))
    if masses is None:
        return checks
    floor = metrics.expected_mode_total_variation(len(X), masses)
    if floor > CROWDED:
        meaning = f"not judged: {len(X)} draws are too few for {len(masses)} modes"
        return [*checks, Check("mode masses", math.nan, "ok", meaning)]
    distance = metrics.mode_total_variation(X, target)
    excess = distance - floor - math.sqrt(-math.log(FALSE_ALARM) / (2 * len(X)))  # McDiarmid's inequality
    meaning = f"total variation to the known ones; {floor:.2g} of exact draws"
    return [*checks, _judge("mode masses", distance, (0.05, 0.2), excess, meaning)]


def _listed_masses(target) -> np.ndarray | None:
    """Probability of every mode, or None if there are too many to list."""
    try:
        masses = getattr(target, "mode_masses", None)
    except ValueError:
        return None
    return None if masses is None else np.asarray(masses, dtype=np.float64)


def _of_wells(labels: np.ndarray, mass: float, n_wells: int) -> Check:
    """For modes that are a product of wells: the share in the right half of each, which few draws tell, too."""
    shares = np.array([np.mean(labels >> well & 1) for well in range(n_wells)])
    error = float(np.abs(shares - mass).max())
    noise = math.sqrt(2 * math.log(2 * n_wells / FALSE_ALARM) * mass * (1 - mass) / len(labels))
    return _judge("well masses", error, (0.05, 0.2), error - noise, "largest error of the share in a half of a well")


def _judge(name: str, value: float, bounds: tuple[float, float], badness: float, meaning: str) -> Check:
    """Suspect beyond the first bound, failed beyond the second or without a number."""
    if math.isnan(badness):
        return Check(name, value, "failed", meaning)
    return Check(name, float(value), VERDICTS[sum(badness > bound for bound in bounds)], meaning)


def subset(particles: np.ndarray, n: int, seed: int) -> np.ndarray:
    """At most n rows picked at random."""
    if len(particles) <= n:
        return particles
    return particles[np.sort(np.random.default_rng(seed).choice(len(particles), n, replace=False))]


def energies_at(x: np.ndarray, energy) -> np.ndarray:
    """Energies (n,) at points (n, d) in the user's coordinates, float64."""
    points = torch.from_numpy(x).to(energy.device)
    if energy.bounds is None:
        return -to_numpy(energy.log_prob(points))
    points = energy.bounds.inverse(points)
    log_det = energy.bounds.call_and_pull_back(points)[1]
    return to_numpy(log_det) - to_numpy(energy.log_prob(points))
