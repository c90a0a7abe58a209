"""Gaussians that a fit in many dimensions starts from: Laplace's, the best, those behind bends or triangular maps.

    python benchmarks/gaussians.py --targets lgcp --data FOLDER
    python benchmarks/gaussians.py --targets ionosphere sonar --data FOLDER
    python benchmarks/gaussians.py --targets line200 line1000
    python benchmarks/gaussians.py --targets regression100 regression200 --kinds best "skewed, best" \
        "triangular, of a fair Gaussian" "triangular, a quarter of the draws" "triangular, a tenth of the draws"
    python benchmarks/gaussians.py --targets line1000 field20 field32 --kinds best "skewed, best" sparse \
        "skewed, moments" "sparse, skewed" "sparse, skewed, moments" "sparse, skewed, moments, twice the steps"

A row is a Gaussian with what it took to find it, judged by 4000 draws: the bound of log Z, the standard deviation of
the log weights, and their ESS. "Before" and "after" are Hessians before and after the bends or the block
triangular map of skewness (`best_gaussian`), or before the triangular map of any (`best_triangular`); "cubic" is one
of degree 3, which has 64 dimensions at most. "Of a wide Gaussian" starts from one a quarter too wide. The lines are Cox
processes (`dimensions.py`), the fields such ones on a square. "Sparse" are those with factors by elimination
(`SparseTriangularMap`), others have dense ones. "Moments" are steps behind skewness (`refined`) in place of Hessians.
"""

import argparse
import math
import time
from dataclasses import replace

import numpy as np
import torch
from dimensions import CoxLine
from paper_tables import TARGETS as OF_TABLES
from paper_tables import Unavailable
from regressions import regression

from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.explore.laplace import laplace_standardization, stepped
from skcds.explore.moments import refined
from skcds.explore.skewness import bends, bent, skewed, third_derivatives
from skcds.explore.triangular import best_triangular
from skcds.models.maps import standard_normal_log_prob
from skcds.specifications import HighDimension, Triangular
from skcds.train.particles import effective_share

N, PART = 4000, 500


class CoxField:
    """Poisson counts on a square, whose log rates are those of a Gaussian field with differences of unit variance."""

    def __init__(self, side: int, seed: int = 0):
        self.side, self.n_features, wave = side, side**2, np.sin(np.arange(side) / 5)
        self.counts = torch.from_numpy(np.random.default_rng(seed).poisson(1.5 + np.repeat(wave, side)))

    def __call__(self, x):
        field = x.view(-1, self.side, self.side)
        differences = field.diff(dim=1).square().sum((1, 2)) + field.diff(dim=2).square().sum((1, 2))
        return differences + 0.005 * x.square().sum(1) + (x.exp() - self.counts.to(x) * x).sum(1)


TARGETS = {
    **OF_TABLES,
    "line200": lambda data: ("line200", CoxLine(200)),
    "line1000": lambda data: ("line1000", CoxLine(1000)),
    "line5000": lambda data: ("line5000", CoxLine(5000)),
    "regression100": lambda data: ("regression100", regression(100, 300, 1.0)),
    "regression200": lambda data: ("regression200", regression(200, 400, 0.3)),
    "field20": lambda data: ("field20", CoxField(20)),
    "field32": lambda data: ("field32", CoxField(32)),
    "field64": lambda data: ("field64", CoxField(64)),
}
HEAD = ("target", "Gaussian", "before", "after", "evals", "s", "ELBO", "sd", "ESS", "log Z")
KINDS = {  # name: Hessians before the bends, whether there are any, Hessians after them
    "Laplace's": (0, False, 0),
    "best": (32, False, 0),
    "bent": (16, True, 0),
    "bent, best": (16, True, 16),
    "bent late, best": (32, True, 32),
    "skewed": (16, True, 0),
    "skewed, best": (16, True, 16),
    "skewed, moments": (16, True, 0),
    "skewed, moments, half the draws": (16, True, 0),
    "skewed, moments, twice the draws": (16, True, 0),
    "skewed, moments, twice the steps": (16, True, 0),
    "sparse": (32, False, 0),
    "sparse, skewed": (16, True, 0),
    "sparse, skewed, moments": (16, True, 0),
    "sparse, skewed, moments, twice the steps": (16, True, 0),
    "triangular": (32, False, 0),
    "triangular, of a fair Gaussian": (4, False, 0),
    "triangular, half the draws": (4, False, 0),
    "triangular, a quarter of the draws": (4, False, 0),
    "triangular, a tenth of the draws": (4, False, 0),
    "triangular, half the steps": (4, False, 0),
    "triangular, twice the steps": (4, False, 0),
    "triangular, of a wide Gaussian": (32, False, 0),
    "cubic": (4, False, 0),
    "cubic, half the draws": (4, False, 0),
    "cubic, a quarter of the draws": (4, False, 0),
    "cubic, half the steps": (4, False, 0),
    "cubic, twice the steps": (4, False, 0),
}
USUAL = [kind for kind in KINDS if not kind.startswith("sparse")]
TOO_WIDE = 1.25
TRIANGULAR = {  # kinds behind a triangular map: what is not by default
    "triangular": {},
    "triangular, of a fair Gaussian": {},
    "triangular, half the draws": {"draws": 0.5},
    "triangular, a quarter of the draws": {"draws": 0.25},
    "triangular, a tenth of the draws": {"draws": 0.1, "draws_at_least": 0.1},
    "triangular, half the steps": {"n_steps": 8},
    "triangular, twice the steps": {"n_steps": 32},
    "triangular, of a wide Gaussian": {},
    "cubic": {"n_cubic_steps": 12},
    "cubic, half the draws": {"n_cubic_steps": 12, "cubic_draws": 2.0},
    "cubic, a quarter of the draws": {"n_cubic_steps": 12, "cubic_draws": 1.0},
    "cubic, half the steps": {"n_cubic_steps": 6},
    "cubic, twice the steps": {"n_cubic_steps": 24},
}


def found(energy: Energy, kind: str, generator):
    """The Gaussian of a kind."""
    before, is_bent, after = KINDS[kind]
    high, gaussian, is_sparse = HighDimension(), laplace_standardization(energy), kind.startswith("sparse")
    gaussian = gaussian if is_sparse else dense(gaussian)
    gaussian = stepped(energy, gaussian, generator, high, None, range(before)) if before else gaussian
    if is_bent and "skewed" in kind:
        third = third_derivatives(energy, gaussian, high.n_third_draws, generator)
        gaussian = gaussian if third is None else skewed(gaussian, third) or gaussian
        if "moments" in kind:
            high = replace(high, n_moment_steps=2 * high.n_moment_steps) if "twice the steps" in kind else high
            high = replace(high, moment_draws=0.5 * high.moment_draws) if "half" in kind else high
            high = replace(high, moment_draws=2 * high.moment_draws) if "twice the draws" in kind else high
            gaussian = refined(energy, gaussian, generator, high)
        elif after:
            gaussian = stepped(energy, gaussian, generator, high, None, range(before, before + after))
    elif is_bent:
        bend = bends(energy, gaussian, high.n_skew_draws, generator)
        gaussian = gaussian if bend is None else bent(gaussian, bend)
        gaussian = stepped(energy, gaussian, generator, high, None, range(before, before + after))
    if kind.endswith("wide Gaussian"):
        gaussian = Standardization.from_moments(gaussian.loc, TOO_WIDE**2 * gaussian.covariance)
    if kind in TRIANGULAR:
        by = Triangular(**{"n_cubic_steps": 0} | TRIANGULAR[kind])
        gaussian, _ = best_triangular(energy, gaussian, generator, by)
    return gaussian


def dense(gaussian: Standardization) -> Standardization:
    """The same Gaussian with a dense factor."""
    if gaussian.sparse is None:
        return gaussian
    precision = torch.from_numpy(gaussian.sparse.precision().toarray())
    return Standardization.from_moments(gaussian.sparse.loc, torch.linalg.inv(precision))


def row(name: str, target, kind: str, seed: int, n: int) -> tuple:
    """One Gaussian, as cells of a table."""
    generator = torch.Generator().manual_seed(seed)
    energy = Energy(target, target.n_features, generator=generator)
    start, counted = time.perf_counter(), energy.n_energy_evals
    gaussian = found(energy, kind, generator)
    seconds, counted = time.perf_counter() - start, energy.n_energy_evals - counted
    seen = StandardizedTarget(energy, gaussian)
    z = torch.randn(n, target.n_features, generator=generator, dtype=torch.float64)
    log_weights = torch.cat([seen.log_prob(part) - standard_normal_log_prob(part) for part in z.split(PART)])
    spread, log_z = float(log_weights.std()), float(torch.logsumexp(log_weights, 0)) - math.log(n)
    return (
        name, kind, KINDS[kind][0], KINDS[kind][2], f"{counted:,}", f"{seconds:.1f}",
        f"{float(log_weights.mean()):.2f} ± {spread / math.sqrt(n):.2f}", f"{spread:.2f}",
        f"{effective_share(log_weights):.3f}", f"{log_z:.2f}",
    )  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=["lgcp"], choices=list(TARGETS))
    parser.add_argument("--kinds", nargs="*", default=USUAL, choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=N, help="draws that judge")
    parser.add_argument("--data", help="folder with ionosphere.csv, sonar.csv and finnish_pines.csv")
    args = parser.parse_args(arguments)
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for wanted in args.targets:
        try:
            name, target = TARGETS[wanted](args.data)
        except Unavailable as reason:
            print(f"{wanted} is left out: {reason}.")
            continue
        for kind in args.kinds:
            print("| " + " | ".join(map(str, row(name, target, kind, args.seed, args.n))) + " |", flush=True)


if __name__ == "__main__":
    main()
