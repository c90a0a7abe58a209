"""Does training on own draws pay, and which of its two gradients? Maps by themselves, and whole fits, in CPU seconds.

    python benchmarks/own_draws.py --targets breast_cancer                       # both gradients of a map by itself
    python benchmarks/own_draws.py --targets breast_cancer --fits --max-time 60  # fits with own draws and without
    python benchmarks/own_draws.py --targets breast_cancer --fits --max-evals 50000
    python benchmarks/own_draws.py --targets ionosphere sonar --data FOLDER --fits

A map by itself starts as Laplace's approximation, and is trained by the reverse divergence of 128 draws an iteration. A
row of it has the normalised ESS, log Z and the bound of 10 000 draws after each quarter. A row of a fit is that of a
`ConsistentSamplerDistiller` with its teacher. One thread; clocks count the CPU's seconds, so that other processes
matter less.
"""

import argparse
import math
import time
import warnings

import torch

time.perf_counter = time.process_time  # before skcds is imported, whose limits go by it

from paper_tables import TARGETS, Unavailable  # noqa: E402

from skcds import Consistency, ConsistentSamplerDistiller, targets  # noqa: E402
from skcds.density.energy import Energy  # noqa: E402
from skcds.density.standardize import StandardizedTarget  # noqa: E402
from skcds.explore.laplace import laplace_away_from_seams  # noqa: E402
from skcds.models.maps import OneStepModel, coupling_sizes  # noqa: E402
from skcds.models.networks import seeded  # noqa: E402
from skcds.specifications import Likelihood  # noqa: E402
from skcds.train.objectives.reverse_kl import ReverseKLLoss  # noqa: E402
from skcds.train.optimizer import AdamW  # noqa: E402
from skcds.train.particles import effective_share  # noqa: E402

LOG_SNR_MAX, LEARNING_RATE = 6.0, 3e-3
ALL = {"breast_cancer": lambda data: ("breast_cancer", targets.breast_cancer()), **TARGETS}


def map_alone(target, of_draws: bool, n_iter: int, n_draws: int, seed: int) -> list[str]:
    """A map trained from Laplace's approximation: a row after each quarter of the iterations."""
    generator = torch.Generator().manual_seed(seed)
    energy = Energy(target, target.n_features, generator=generator)
    laplace = laplace_away_from_seams(energy, None, 500)
    density = StandardizedTarget(energy, laplace, energy.fast_dtype)
    with seeded(seed):
        sizes = coupling_sizes(target.n_features, LOG_SNR_MAX)
        model = OneStepModel("coupling", target.n_features, LOG_SNR_MAX, laplace.full, **sizes)
    model.standardization = laplace
    objective = ReverseKLLoss(model, density, n_draws, generator, mirrored=True, of_draws=of_draws)
    optimizer, rows, begun, spent = AdamW(model.map.parameters(), LEARNING_RATE), [], energy.n_energy_evals, 0.0
    for i in range(n_iter):
        start = time.perf_counter()
        annealed = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / n_iter))
        optimizer.learning_rate = LEARNING_RATE * min(1.0, (i + 1) / 20) * annealed
        optimizer.zero_grad()
        objective(i).backward()
        torch.nn.utils.clip_grad_norm_(model.map.parameters(), 1.0)
        optimizer.step()
        spent += time.perf_counter() - start
        if (i + 1) % max(1, n_iter // 4) == 0:
            evals = energy.n_energy_evals - begun
            latent = torch.randn(10_000, target.n_features, generator=torch.Generator().manual_seed(seed + 1))
            _, log_weights = model.call_and_log_weight(latent, density)
            begun += len(latent)
            log_z = float(torch.logsumexp(log_weights, 0)) - math.log(len(log_weights))
            cells = i + 1, evals, f"{spent:.0f}", f"{effective_share(log_weights):.3f}", f"{log_z:.3f}"
            rows.append(" | ".join(map(str, (*cells, f"{float(log_weights.mean()):.3f}"))))
    return rows


def fit(target, weight: float, limits: dict, seed: int) -> str:
    """A fit, and 20 000 draws of it."""
    start = time.perf_counter()
    objective = Consistency(likelihood=Likelihood(reverse_kl=weight))
    sampler = ConsistentSamplerDistiller(objective=objective, random_state=seed, **limits).fit(target)
    seconds = time.perf_counter() - start
    weighted = sampler.sample_weighted(20_000, random_state=seed + 1)
    cells = (
        f"{sampler.n_energy_evals_:.2g}",
        f"{seconds:.0f}",
        f"{weighted.ess / 20_000:.3f}",
        f"{weighted.log_evidence:.3f}",
    )
    return " | ".join(map(str, (*cells, sampler.diagnose().verdict)))


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["breast_cancer"], choices=ALL)
    parser.add_argument("--data", help="folder with the data sets that some targets need")
    parser.add_argument("--fits", action="store_true", help="fits, in place of maps by themselves")
    parser.add_argument("--n-iter", type=int, default=600)
    parser.add_argument("--n-draws", type=int, default=128)
    parser.add_argument("--max-time", type=float)
    parser.add_argument("--max-evals", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limits = {"max_time": args.max_time, "max_energy_evals": args.max_evals}
    for name in args.targets:
        try:
            _, target = ALL[name](args.data)
        except Unavailable as reason:
            print(f"{name}: {reason}")
            continue
        for seed in args.seeds:
            if args.fits:
                for weight in (0.0, 1.0):
                    print(
                        f"| {name} | own draws {weight:g} | seed {seed} | {fit(target, weight, limits, seed)} |",
                        flush=True,
                    )
                continue
            for of_draws in (False, True):
                gradient = "by way of draws" if of_draws else "usual"
                for row in map_alone(target, of_draws, args.n_iter, args.n_draws, seed):
                    print(f"| {name} | {gradient} | seed {seed} | {row} |", flush=True)


if __name__ == "__main__":
    main()
