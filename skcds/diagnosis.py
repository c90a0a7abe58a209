"""A short report on a fitted sampler: by its own weights, and against particles that it did not draw."""

__all__ = ["Check", "Diagnosis", "diagnose"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import metrics
from .importance import WeightedSample

VERDICTS = ("ok", "suspect", "failed")
OUT_OF_REACH = 100.0  # weight of a particle, in units of the mean weight, from which draws hardly ever get there
UNSEEN = "It cannot see modes that neither the pilot nor the sampler found."


@dataclass(frozen=True)
class Check:
    """One figure of a diagnosis.

    Attributes
    ----------
    name : str
        What was looked at.
    value : float
        What was found.
    verdict : {"ok", "suspect", "failed"}
        What that means.
    meaning : str
        In words.
    """

    name: str
    value: float
    verdict: str
    meaning: str


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found out about a sampler; printed, a table.

    Attributes
    ----------
    checks : tuple of Check
        The figures.
    n_draws, n_particles : int
        Draws, and particles of the pilot or of the training, that were looked at.
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
        """What is not well, in words."""
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
    standardize: Callable, *, pilot_log_evidence: float | None = None, violation_share: float | None = None,
    target=None,
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
        Their exact log weights under the sampler, or None where these are not known.
    standardize : callable
        From the user's coordinates to ones with tame tails, in which locations and spreads are compared.
    pilot_log_evidence : float, optional
        Another estimate of log Z.
    violation_share : float, optional
        Share of violations of injectivity.
    target : object, optional
        The energy; its ``modes`` and ``mode_masses`` are used if it has them.

    Returns
    -------
    Diagnosis
        The report.
    """
    n, log_z = len(weighted.log_weights), weighted.log_evidence
    share = weighted.ess / n
    checks = [
        _judge("effective share", share, (-0.1, -0.01), -share, "of the draws' weights"),
        _judge("Pareto k", weighted.pareto_k, (0.7, 1.0), weighted.pareto_k, "of the largest weights; reliable to .7"),
    ]
    outside = float(np.mean(~np.isfinite(weighted.log_weights)))
    checks.append(_judge("outside the support", outside, (0.02, 0.5), outside, "share of the draws"))
    if pilot_log_evidence is not None:
        gap = log_z - pilot_log_evidence
        excess = abs(gap) - 4 * weighted.log_evidence_se
        checks.append(_judge("log Z less the pilot's", gap, (0.1, 0.5), excess, "nats"))
    if len(particles):
        if log_weights_of_particles is not None:
            far = float(np.mean(log_weights_of_particles > log_z + math.log(OUT_OF_REACH)))
            checks.append(_judge("particles out of reach", far, (0.001, 0.01), far, "share with a weight over 100"))
        z, x = particles, standardize(weighted.samples)
        location = float(np.abs((x.mean(0) - z.mean(0)) / z.std(0)).max())
        spread = float(np.exp(np.abs(np.log(x.std(0) / z.std(0))).max()))
        checks.append(_judge("location", location, (0.1, 0.5), location, "largest shift of a mean, in deviations"))
        checks.append(_judge("spread", spread, (1.1, 1.5), spread, "largest ratio of deviations"))
    if violation_share is not None:
        checks.append(_judge("injectivity", violation_share, (0.0, 0.01), violation_share, "share of violations"))
    if getattr(target, "modes", None) is not None and getattr(target, "mode_masses", None) is not None:
        distance = metrics.mode_total_variation(weighted.samples, target)
        checks.append(_judge("mode masses", distance, (0.05, 0.2), distance, "total variation to the known ones"))
    return Diagnosis(tuple(checks), n, len(particles))


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
