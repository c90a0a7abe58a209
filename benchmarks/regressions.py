"""Posteriors of logistic regressions with more coefficients than the usual data sets: fits with large triangular maps.

    python benchmarks/regressions.py
    python benchmarks/regressions.py --sizes 100 --max-time 30 --without

A row is a fit of a one-step sampler: the ESS and the bound of its draws, and where it is, log Z. "Without" leaves out
triangular maps in more than 64 dimensions (`Triangular.max_features`), which have one number for each triple of
coefficients. Data are standard normal, labels those of ten coefficients of one.
"""

import argparse
import time
import warnings

import numpy as np

from skcds import ConsistentSamplerScratch, Pilot
from skcds.specifications import Triangular
from skcds.targets import BayesianLogisticRegression

SIZES = {72: (200, 1.0), 100: (300, 1.0), 200: (400, 0.3)}  # coefficients: rows, and the prior's standard deviation
SMALL = 64
HEAD = ("d", "rows", "prior sd", "triangular map", "s", "evals", "us a draw", "ESS", "ELBO", "log Z", "k", "verdict")


def regression(d: int, n_rows: int, prior_sd: float, seed: int = 0) -> BayesianLogisticRegression:
    """A posterior of d coefficients without an intercept."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_rows, d))
    y = rng.random(n_rows) < 1 / (1 + np.exp(-X[:, :10].sum(1)))
    return BayesianLogisticRegression(X, y.astype(float), prior_sd, intercept=False)


def row(d: int, without: bool, max_time: float, seed: int, n: int) -> tuple:
    """One fit, as cells of a table."""
    n_rows, prior_sd = SIZES[d]
    start = Pilot(triangular=Triangular(max_features=SMALL)) if without else None
    sampler = ConsistentSamplerScratch(n_features=d, max_time=max_time, random_state=seed, start=start)
    sampler.fit(regression(d, n_rows, prior_sd))
    begun = time.perf_counter()
    sampler.sample(n, random_state=seed + 1)
    microseconds = 1e6 * (time.perf_counter() - begun) / n
    weighted = sampler.sample_weighted(n, random_state=seed + 2)
    return (
        d, n_rows, prior_sd, "no" if sampler.pilot_.triangular is None else "yes", f"{sampler.fit_time_:.0f}",
        f"{sampler.n_energy_evals_:.2g}", f"{microseconds:.0f}", f"{weighted.ess / n:.3f}",
        f"{weighted.elbo:.2f} ± {weighted.elbo_se:.2f}",
        f"{weighted.log_evidence:.2f} ± {weighted.log_evidence_se:.2f}", f"{weighted.pareto_k:.2f}",
        sampler.diagnose().verdict,
    )  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--max-time", type=float, default=150.0, help="seconds for each fit")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--n", type=int, default=10_000, help="draws that judge")
    parser.add_argument("--without", action="store_true", help="fits without large maps alone")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for d in args.sizes:
        for seed in args.seeds:
            for without in (True,) if args.without else (True, False):
                print("| " + " | ".join(map(str, row(d, without, args.max_time, seed, args.n))) + " |", flush=True)


if __name__ == "__main__":
    main()
