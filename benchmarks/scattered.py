"""Scattered modes: does the pilot find all of the mass of unequal Gaussians that lie far from the origin and apart?

    python benchmarks/scattered.py                      # by tempering, as in default fits
    python benchmarks/scattered.py --evals 25000        # by few evaluations
    python benchmarks/scattered.py --survey             # climbs alone, at once and one by one
    python benchmarks/scattered.py --seeds 100 101 102

Every seed is another density: 3 to 8 Gaussians of random shapes in 2 to 7 dimensions, up to 500 from the origin and 16
to 100 apart.
"""

import argparse
import time
import warnings

import numpy as np
import torch

from skcds.density.energy import Energy
from skcds.explore import modes
from skcds.explore.pilot import run_pilot
from skcds.explore.store import Store
from skcds.specifications import Climbs
from skcds.train.budget import Budget


def mixture(seed: int):
    """Energy of a random mixture, its weights (k,), means (k, d) and log Z."""
    rng = np.random.default_rng(seed)
    d, k = int(rng.integers(2, 8)), int(rng.integers(3, 9))
    weights = rng.dirichlet(np.full(k, 2.0))
    centre, apart = rng.uniform(-1, 1, d) * 10 ** rng.uniform(0, 2.7), 10 ** rng.uniform(1.2, 2)
    means = torch.as_tensor(centre + rng.uniform(-apart, apart, (k, d)))
    factors = np.stack([np.linalg.qr(rng.standard_normal((d, d)))[0] * rng.uniform(0.8, 5, d) for _ in range(k)])
    inverse = torch.as_tensor(np.linalg.inv(factors))
    constant = torch.as_tensor(np.log(weights) - np.log(np.abs(np.linalg.det(factors))))

    def energy(x):
        z = torch.einsum("kij,nkj->nki", inverse.to(x), x[:, None] - means.to(x))
        return -torch.logsumexp(constant.to(x) - 0.5 * (z**2).sum(-1), 1)

    return energy, weights, means, 0.5 * d * np.log(2 * np.pi)


def explored(energy: Energy, generator, evals: int | None, n_particles: int):
    """The pilot's result, points and their weights."""
    if evals is None:
        found, x = run_pilot(energy, n_particles, generator)
        return found, x, torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    store = Store(energy.n_features, energy.device)
    found, _ = run_pilot(energy, n_particles, generator, energy.monitor, store=store)
    return found, store.x, torch.softmax(store.log_weights(), 0)


def surveyed(energy: Energy, generator, means, singly: bool) -> str:
    """Modes that a survey finds, its evaluations and seconds; climbs are made singly by batches of one point."""
    start = time.perf_counter()
    found = modes.survey(energy, generator, climbs=Climbs(batch_size=1) if singly else None).modes
    near = torch.cdist(means, torch.stack([mode.x for mode in found])).min(1).values < 3
    return f"{int(near.sum())} in {energy.n_energy_evals} evaluations and {time.perf_counter() - start:.1f} s"


def compare_surveys(seeds) -> None:
    """A row for each seed."""
    print("| seed | modes | together | one by one |\n|---|---|---|---|")
    for seed in seeds:
        energy_fn, weights, means, _ = mixture(seed)
        cells = []
        for singly in (False, True):
            generator = torch.Generator().manual_seed(seed)
            cells.append(surveyed(Energy(energy_fn, means.shape[1], generator=generator), generator, means, singly))
        print(f"| {seed} | {len(weights)} | {' | '.join(cells)} |", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[*range(100, 106)])
    parser.add_argument("--evals", type=int, help="limit of evaluations")
    parser.add_argument("--survey", action="store_true", help="climbs alone")
    parser.add_argument("--particles", type=int, default=2000)
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if args.survey:
        compare_surveys(args.seeds)
        return
    print("| seed | d | modes | total variation of mode masses | error of log Z | evaluations | s |")
    print("|---|---|---|---|---|---|---|")
    for seed in args.seeds:
        energy_fn, weights, means, log_z = mixture(seed)
        generator, budget = torch.Generator().manual_seed(seed), Budget(None, args.evals, None)
        energy = Energy(energy_fn, means.shape[1], generator=generator, monitor=budget)
        budget.energy, start = energy, time.perf_counter()
        found, x, shares = explored(energy, generator, args.evals, args.particles)
        masses = np.bincount(torch.cdist(x.double(), means).argmin(1), shares, len(weights))
        cells = [seed, means.shape[1], len(weights), f"{np.abs(masses - weights).sum() / 2:.3f}"]
        cells += [f"{found.log_evidence - log_z:+.2f}", energy.n_energy_evals, f"{time.perf_counter() - start:.0f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
