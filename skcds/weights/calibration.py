"""A report on a sampler of a family: how good its weights are over contexts, and whether known draws fit."""

__all__ = ["Calibration", "calibrated", "ranks_of"]

from dataclasses import dataclass

import numpy as np
from scipy.stats import kstest

from ..io.export import to_frame
from .diagnosis import VERDICTS, verdict_of_weights
from .evidence_curve import EvidenceCurve, evidence_curve
from .importance import pareto_k_limit
from .sample import WeightedSample

OK_SHARE, FAILED_SHARE = 0.95, 0.05  # of the contexts, for a verdict on all
FALSE_ALARM = 1e-3  # probability that ranks of exact draws are called suspect
SHOWN = 5  # contexts that are named


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """What `calibrate` found out about a sampler of a family. It prints as a table.

    Attributes
    ----------
    contexts : ndarray of shape (m, n_contexts)
        The contexts that were looked at.
    context_names, feature_names : ndarray of str
        Names of the numbers of a context, and of the coordinates.
    n_draws : int
        Draws for each context.
    ess : ndarray of shape (m,)
        Normalised effective sample sizes, ESS / n, of their weights.
    pareto_k : ndarray of shape (m,)
        Shapes of the weights' tails.
    log_evidence, log_evidence_se : ndarray of shape (m,)
        Estimates of log Z(c), with standard errors.
    verdicts : ndarray of str of shape (m,)
        "ok", "suspect" or "failed", by the weights as in `BaseSampler.diagnose`.
    ranks : ndarray of shape (m, n_features) or None
        Share of the weighted draws below the known draw, in each coordinate. It is uniform from 0 to 1 for an exact
        sampler (simulation-based calibration; Talts et al. 2018). None without known draws.
    """

    contexts: np.ndarray
    context_names: np.ndarray
    feature_names: np.ndarray
    n_draws: int
    ess: np.ndarray
    pareto_k: np.ndarray
    log_evidence: np.ndarray
    log_evidence_se: np.ndarray
    verdicts: np.ndarray
    ranks: np.ndarray | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Share of the contexts with each verdict."""
        return {verdict: float(np.mean(self.verdicts == verdict)) for verdict in VERDICTS}

    @property
    def rank_p_value(self) -> float:
        """Probability that ranks of exact draws are as far from uniform in the worst coordinate; NaN without ranks.

        It is that of a Kolmogorov-Smirnov test, times the number of coordinates.
        """
        if self.ranks is None:
            return float("nan")
        return float(min(1.0, self.ranks.shape[1] * min(kstest(column, "uniform").pvalue for column in self.ranks.T)))

    @property
    def verdict(self) -> str:
        """Verdict on all: "ok" if 95 % of the contexts are and ranks look uniform, "failed" if over 5 % are."""
        shares = self.shares
        if shares["failed"] > FAILED_SHARE:
            return "failed"
        fits = self.ranks is None or self.rank_p_value >= FALSE_ALARM
        return "ok" if shares["ok"] >= OK_SHARE and fits else "suspect"

    def worst(self, n: int = SHOWN) -> list[dict[str, float]]:
        """The contexts with the smallest ESS, by name, with their `ess` and `pareto_k`.

        Parameters
        ----------
        n : int, default=5
            How many.
        """
        rows = np.argsort(self.ess, kind="stable")[:n]
        return [
            dict(zip(self.context_names, self.contexts[row].tolist(), strict=True))
            | {"ess": float(self.ess[row]), "pareto_k": float(self.pareto_k[row])}
            for row in rows
        ]

    def evidence_curve(self) -> EvidenceCurve:
        """Log Z as a smooth function of the context, by regression on the estimates with their errors.

        Contexts whose weights have a Pareto k above its limit are left out, since their errors are not reliable.

        Returns
        -------
        EvidenceCurve
            Its `predict` has log Z and its standard error at any context, without drawing.

        Raises
        ------
        ValueError
            When there are fewer than 30 reliable estimates.
        """
        kept = np.isfinite(self.log_evidence) & np.isfinite(self.log_evidence_se)
        kept &= self.pareto_k <= pareto_k_limit(self.n_draws)
        return evidence_curve(
            self.contexts[kept], self.context_names, self.log_evidence[kept], self.log_evidence_se[kept]
        )

    def to_frame(self):
        """A row for each context, as a pandas data frame.

        Returns
        -------
        pandas.DataFrame
            The contexts, then `ess`, `pareto_k`, `log_evidence`, `log_evidence_se` and `verdict`. With ranks also
            ``rank of x0`` and so on.

        Raises
        ------
        ImportError
            Without pandas.
        """
        columns = {
            "ess": self.ess, "pareto_k": self.pareto_k, "log_evidence": self.log_evidence,
            "log_evidence_se": self.log_evidence_se, "verdict": self.verdicts,
        }  # fmt: skip
        if self.ranks is not None:
            columns |= {
                f"rank of {name}": column for name, column in zip(self.feature_names, self.ranks.T, strict=True)
            }
        return to_frame(self.contexts, self.context_names, **columns)

    def __str__(self) -> str:
        shares = ", ".join(f"{share:.0%} {verdict}" for verdict, share in self.shares.items())
        quantiles = np.quantile(self.ess, (0.05, 0.5))
        lines = [
            f"{self.verdict} ({len(self.contexts)} contexts, {self.n_draws} draws each: {shares})",
            f"ESS / n       mean {self.ess.mean():.3f}, median {quantiles[1]:.3f}, worst twentieth {quantiles[0]:.3f}",
            f"Pareto k      largest {self.pareto_k.max():.2f}",
        ]
        if self.ranks is not None:
            lines.append(f"ranks         p = {self.rank_p_value:.2g} that they are uniform in every coordinate")
        for found in self.worst():
            where = ", ".join(f"{name} = {found[name]:.4g}" for name in self.context_names[:8])
            lines.append(f"worst         ESS / n {found['ess']:.3f} at {where}")
        return "\n".join(lines)


def calibrated(
    weighted: list[WeightedSample], contexts: np.ndarray, context_names, draws: np.ndarray | None = None
) -> Calibration:
    """Make a report from weighted draws for each of the contexts (m, k), and known draws (m, d) of their densities.

    Parameters
    ----------
    weighted : list of WeightedSample
        One a context, all of one size.
    contexts : ndarray of shape (m, k)
        The contexts.
    context_names : sequence of str
        Names of their numbers.
    draws : ndarray of shape (m, d), optional
        An exact draw for each.
    """
    n = len(weighted[0].log_weights)
    ranks = None
    if draws is not None:
        ranks = np.array([ranks_of(x, one) for x, one in zip(draws, weighted, strict=True)])
    return Calibration(
        contexts, np.asarray(context_names), np.asarray(weighted[0].feature_names), n,
        np.array([one.ess / n for one in weighted]), np.array([one.pareto_k for one in weighted]),
        np.array([one.log_evidence for one in weighted]), np.array([one.log_evidence_se for one in weighted]),
        np.array([verdict_of_weights(one) for one in weighted]), ranks,
    )  # fmt: skip


def ranks_of(x: np.ndarray, weighted: WeightedSample) -> np.ndarray:
    """Share (d,) of weighted draws below a point (d,) in each coordinate; NaN where no draw has a weight."""
    if not weighted.ess:
        return np.full(len(x), np.nan)
    return np.clip(weighted.weights @ (weighted.samples < x), 0.0, 1.0)
