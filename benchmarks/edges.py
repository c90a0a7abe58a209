"""Is log Z right for densities that bounds cut, and for a peak on a wide background?

    python benchmarks/edges.py
    python benchmarks/edges.py --seeds 0 1 --seconds 25 --without-stretch

Densities in two dimensions, whose log Z quadrature tells. The error is in units of the standard error that the weighted
draws claim: beyond 3 a fit is wrong, and its figures do not say so.
"""

import argparse
import math
import time
import warnings

import numpy as np
import torch

from skcds import ConsistentSamplerDistiller, Coupling

NODES, FAR = 3000, 9.0  # of quadrature in each coordinate, and where one without bounds ends
N = 200_000


def ridge(correlation: float, bounds):
    """A correlated Gaussian, cut by bounds."""
    precision = torch.tensor(np.linalg.inv([[1, correlation], [correlation, 1]]))
    return lambda x: 0.5 * torch.einsum("ni,ij,nj->n", x.double(), precision, x.double()), bounds


def peak(background: float, width: float = 0.02):
    """A Gaussian in the unit square, with a share of the mass spread all over it."""

    def energy(x):
        squares = ((x.double() - 0.5) ** 2).sum(1)
        log_peak = -0.5 * squares / width**2 - math.log(2 * math.pi * width**2) + math.log(1 - background)
        return -torch.logaddexp(log_peak, torch.full_like(log_peak, math.log(background)))

    return energy, [(0, 1), (0, 1)]


def cauchy(width: float = 0.01):
    """A product of Cauchy densities in the unit square."""
    return lambda x: (1 + ((x.double() - 0.4) / width) ** 2).log().sum(1), [(0, 1), (0, 1)]


def corner():
    """A density that is largest in a corner, and steep there."""

    def energy(x):
        x = x.double()
        return 8 * x.sum(1) - 3 * torch.log1p(5 * (x[:, 0] - x[:, 1]) ** 2)

    return energy, [(0, 1), (0, 1)]


PROBLEMS = {
    "ridge, one bound": ridge(0.95, [(0, None), None]),
    "thin ridge, one bound": ridge(0.99, [(0.5, None), None]),
    "ridge in a box": ridge(0.95, [(0, 2), (-0.5, 3)]),
    "peak, background .01": peak(0.01),
    "peak, background .05": peak(0.05),
    "peak, background .3": peak(0.3),
    "Cauchy": cauchy(),
    "corner": corner(),
}


def log_evidence(energy, bounds) -> float:
    """By Gauss's quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    axes, logs = [], []
    for pair in bounds:
        low, high = pair or (None, None)
        low, high = -FAR if low is None else low, FAR if high is None else high
        axes.append(torch.as_tensor(0.5 * (high - low) * nodes + 0.5 * (high + low)))
        logs.append(torch.as_tensor(np.log(0.5 * (high - low) * weights)))
    rows = [
        torch.logsumexp(logs[1] - energy(torch.stack([x.expand(NODES), axes[1]], 1)), 0) + log_weight
        for x, log_weight in zip(axes[0], logs[0], strict=True)
    ]
    return float(torch.logsumexp(torch.stack(rows), 0))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=[*PROBLEMS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--seconds", type=float, default=25.0, help="of a fit, teacher included")
    parser.add_argument("--without-stretch", action="store_true", help="couplings of splines alone")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    print("| density | seed | error of log Z | in standard errors | ESS | Pareto k | verdict | s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.problems:
        energy, bounds = PROBLEMS[name]
        truth = log_evidence(energy, bounds)
        for seed in args.seeds:
            network, start = Coupling(stretch=not args.without_stretch), time.perf_counter()
            sampler = ConsistentSamplerDistiller(
                n_features=2, bounds=bounds, network=network, max_time=args.seconds, random_state=seed
            ).fit(energy)
            seconds = time.perf_counter() - start
            draws = sampler.sample_weighted(N, random_state=seed + 1)
            error = draws.log_evidence - truth
            cells = [name, seed, f"{error:+.4f}", f"{error / draws.log_evidence_se:+.1f}", f"{draws.ess / N:.3f}"]
            cells += [f"{draws.pareto_k:.2f}", sampler.diagnose(random_state=seed).verdict, f"{seconds:.0f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
