"""Laplace's approximations along a coordinate: what their draws are worth, and fits with and without them.

    python benchmarks/necks.py                            # draws of the approximations: seconds
    python benchmarks/necks.py --fits few --seeds 0 1     # few evaluations, with and without them: minutes for each
    python benchmarks/necks.py --fits few --targets funnel10 --evals 6000
    python benchmarks/necks.py --fits default --max-time 120    # of a `DiffusionSampler` without a limit of evaluations

The approximations begin from 300 exact draws without the neck (of funnels those with a log variance above -2.5, of the
hierarchical model those with a log scale above -.5), which is what an exploration first meets. Fits get no draws.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from skcds import ConsistentSamplerDistiller, DiffusionSampler, Pilot
from skcds.density.energy import Energy
from skcds.explore.nested_laplace import leading_coordinates, nested_laplace
from skcds.specifications import Adaptive, Balance, Centring, Nested

N = 20_000  # draws that are judged


@dataclass(frozen=True)
class Case:
    """A normalised density with exact draws."""

    d: int
    energy: Callable
    draw: Callable  # (n, rng) to (n, d)
    leading: int  # coordinate
    known: float  # its least value among the draws to begin from
    n_evals: int  # of a fit


def funnel(d: int, n_evals: int) -> Case:
    """Neal's, with log variance N(0, 9)."""

    def energy(x):
        v = x[:, 0]
        others = x[:, 1:].square().sum(1) * torch.exp(-v) + (d - 1) * v
        return v.square() / 18 + math.log(3) + 0.5 * others + 0.5 * d * math.log(2 * math.pi)

    def draw(n, rng):
        v = 3 * rng.standard_normal(n)
        return np.column_stack([v, rng.standard_normal((n, d - 1)) * np.exp(v / 2)[:, None]])

    return Case(d, energy, draw, 0, -2.5, n_evals)


def banana(n_evals: int) -> Case:
    """A normal density in four dimensions, bent twice."""

    def energy(x):
        bent = (x[:, 1] - x[:, 0].square(), x[:, 2] - 0.5 * x[:, 0].square())
        square = x[:, 0].square() + bent[0].square() / 0.04 + bent[1].square() / 0.04 + x[:, 3].square()
        return 0.5 * square + 2 * math.log(2 * math.pi) + 2 * math.log(0.2)

    def draw(n, rng):
        x = rng.standard_normal((n, 4))
        x[:, 1], x[:, 2] = x[:, 0] ** 2 + 0.2 * x[:, 1], 0.5 * x[:, 0] ** 2 + 0.2 * x[:, 2]
        return x

    return Case(4, energy, draw, 0, -math.inf, n_evals)


def schools(n_evals: int) -> Case:
    """Eight groups around a mean, N(0, 25), with a scale, half-normal(10): centred, by the log of the scale."""
    y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    s = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    grid = np.linspace(-14, 5, 60_001)
    v = np.exp(2 * grid)[:, None] + s**2
    precision = (1 / v).sum(1) + 1 / 25
    mean = (y / v).sum(1) / precision
    log_p = -0.5 * (np.log(v) + y**2 / v).sum(1) + 0.5 * mean**2 * precision - 0.5 * np.log(precision)
    log_p += -np.exp(2 * grid) / 200 + grid
    log_z = np.log(np.exp(log_p - log_p.max()).sum() * (grid[1] - grid[0])) + log_p.max()
    log_z += np.log(s).sum() + 4.5 * math.log(2 * math.pi)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()

    def energy(x):
        m, log_t, b = x[:, :1], x[:, 1:2], x[:, 2:]
        prior = m.square() / 50 + torch.exp(2 * log_t) / 200 - log_t
        groups = (b - m).square() * torch.exp(-2 * log_t) + 2 * log_t
        data = ((torch.as_tensor(y).to(x) - b) / torch.as_tensor(s).to(x)).square()
        return prior[:, 0] + 0.5 * (groups + data).sum(1) + float(log_z)

    def draw(n, rng):
        k = rng.choice(len(grid), size=n, p=p)
        m = mean[k] + rng.standard_normal(n) / np.sqrt(precision[k])
        t2 = np.exp(2 * grid[k])[:, None]
        variance = 1 / (1 / t2 + 1 / s**2)
        b = variance * (m[:, None] / t2 + y / s**2) + np.sqrt(variance) * rng.standard_normal((n, 8))
        return np.column_stack([m, grid[k], b])

    return Case(10, energy, draw, 1, -0.5, n_evals)


CASES = {
    "funnel5": lambda: funnel(5, 30_000), "funnel10": lambda: funnel(10, 100_000),
    "funnel20": lambda: funnel(20, 100_000), "banana4": lambda: banana(20_000), "schools10": lambda: schools(60_000),
}  # fmt: skip


def of_draws(name: str, seed: int) -> str:
    """Effective share of the approximations' draws, and log Z by them."""
    case, rng = CASES[name](), np.random.default_rng(seed)
    x = case.draw(3000, rng)
    x = torch.from_numpy(x[x[:, case.leading] > case.known][:300])
    energy = Energy(case.energy, case.d)
    before, start = energy.n_energy_evals, time.perf_counter()
    mixture = nested_laplace(energy, x, case.leading)
    spent, seconds = energy.n_energy_evals - before, time.perf_counter() - start
    y = mixture.sample(N, torch.Generator().manual_seed(seed))
    log_weights = energy.log_prob(y) - mixture.log_prob(y)
    weights = torch.softmax(log_weights, 0)
    return (
        f"{name} seed {seed}: leading {leading_coordinates(x)}, {len(mixture)} components, {spent} evaluations, "
        f"{seconds:.1f} s, ESS / n {float(1 / weights.square().sum()) / N:.3f}, log Z less the truth "
        f"{float(torch.logsumexp(log_weights, 0)) - math.log(N):+.4f}"
    )


WITH, WITHOUT = (
    Pilot(),
    Pilot(adaptive=Adaptive(nested=Nested(share=0.0)), balance=Balance(along=0.0), centring=Centring(max_features=0)),
)


def of_fit(name: str, kind: str, seed: int, by: Pilot, arguments) -> str:
    """A one-step fit by few evaluations, or a default fit in many steps, with approximations or without."""
    case, start = CASES[name](), time.perf_counter()
    options = {"n_features": case.d, "max_time": arguments.max_time, "random_state": seed, "start": by}
    if kind == "few":
        sampler = ConsistentSamplerDistiller(max_energy_evals=arguments.evals or case.n_evals, **options)
    else:
        sampler = DiffusionSampler(**options)
    sampler.fit(case.energy)
    seconds, spent = time.perf_counter() - start, sampler.n_energy_evals_
    weighted, x = sampler.sample_weighted(N, random_state=seed + 1), sampler.sample(N, random_state=seed + 2)
    truth, levels = case.draw(200_000, np.random.default_rng(seed + 3)), np.linspace(0.05, 0.95, 19)
    below = [(x[:, [j]] < np.quantile(truth[:, j], levels)).mean(0) for j in range(case.d)]
    return (
        f"{name}, {kind}, seed {seed}, {'with' if by is WITH else 'without'}: {seconds:.0f} s, {spent:.2g} evals, "
        f"ESS / n {weighted.ess / N:.3f}, log Z less the truth {weighted.log_evidence:+.4f}, Pareto k "
        f"{weighted.pareto_k:.2f}, largest error of a quantile {np.abs(np.array(below) - levels).max():.3f}"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--max-time", type=float, default=300.0, help="seconds for a fit")
    parser.add_argument("--fits", choices=["few", "default"])
    parser.add_argument("--evals", type=int, help="of a fit by few evaluations, in place of those of its target")
    arguments = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    for name in arguments.targets:
        for seed in arguments.seeds:
            if not arguments.fits:
                print(of_draws(name, seed), flush=True)
                continue
            for by in (WITH, WITHOUT):
                print(of_fit(name, arguments.fits, seed, by, arguments), flush=True)


if __name__ == "__main__":
    main()
