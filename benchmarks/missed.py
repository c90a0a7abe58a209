"""Does a thorough diagnosis name modes that draws lack, and nothing where they lack none?

    python benchmarks/missed.py
    python benchmarks/missed.py --seeds 200 201 --evals 5000

Exact draws of the random mixtures of benchmarks/scattered.py: all of them, without the second largest mode, and without
the smallest. Then exact draws of targets whose shape misleads climbs: a funnel, wells, many close modes.
"""

import argparse
import math
import time
import warnings

import numpy as np
import torch
from scattered import mixture

from skcds.density.energy import Energy
from skcds.explore.missed import find_missed
from skcds.targets import Funnel, ManyWell, gmm40

N = 5000


def draws_of(seed: int, without: list[int]) -> np.ndarray:
    """Exact draws (N, d) of a random mixture of `scattered`, some of its modes left out."""
    rng = np.random.default_rng(seed)
    d, k = int(rng.integers(2, 8)), int(rng.integers(3, 9))
    weights = rng.dirichlet(np.full(k, 2.0))
    centre, apart = rng.uniform(-1, 1, d) * 10 ** rng.uniform(0, 2.7), 10 ** rng.uniform(1.2, 2)
    means = centre + rng.uniform(-apart, apart, (k, d))
    factors = np.stack([np.linalg.qr(rng.standard_normal((d, d)))[0] * rng.uniform(0.8, 5, d) for _ in range(k)])
    weights[without] = 0
    which = rng.choice(k, N, p=weights / weights.sum())
    return means[which] + np.einsum("nij,nj->ni", factors[which], rng.standard_normal((N, d)))


def row(name, energy_fn, d: int, x: np.ndarray, log_evidence: float, lost: float, seed: int, n_evals: int) -> bool:
    """Print what was found; whether it is what was lost, to .02 of the mass."""
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    energy = Energy(energy_fn, d, generator=generator)
    before, log_weights = energy.n_energy_evals, torch.full((len(x),), log_evidence, dtype=torch.float64)
    found = find_missed(energy, torch.as_tensor(x), log_weights, n_evals, generator)
    cells = [name, d, f"{lost:.3f}", f"{found.share:.3f}", found.n_climbs, found.n_modes]
    cells += [energy.n_energy_evals - before, f"{time.perf_counter() - start:.1f}"]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return abs(found.share - lost) < 0.02


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[*range(200, 214)])
    parser.add_argument("--evals", type=int, default=20_000)
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    print("| draws | d | lost mass | found | climbs | modes | evaluations | s |\n|---|---|---|---|---|---|---|---|")
    named, lost_ones, quiet, complete = 0, 0, 0, 0
    for seed in args.seeds:
        energy_fn, weights, means, log_z = mixture(seed)
        order = np.argsort(weights)
        for without in ([], [int(order[-2])], [int(order[0])]):
            lost = float(weights[without].sum())
            x = draws_of(seed, without)
            right = row(seed, energy_fn, means.shape[1], x, log_z + math.log1p(-lost), lost, seed, args.evals)
            named, lost_ones = named + (right and bool(without)), lost_ones + bool(without)
            quiet, complete = quiet + (right and not without), complete + (not without)
    for target in (Funnel(10), ManyWell(5, 5, 4.0), gmm40()):
        x, name = target.sample(N, random_state=0), type(target).__name__
        quiet += row(name, target, target.n_features, x, float(target.log_evidence), 0.0, 0, args.evals)
        complete += 1
    print(f"\n{named} of {lost_ones} lost modes named; {quiet} of {complete} complete samples with nothing missed")


if __name__ == "__main__":
    main()
