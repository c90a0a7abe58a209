"""What is it worth that mixtures know the modes? Explorations with them, and with mixtures fitted to points alone.

    python benchmarks/mode_mixtures.py
    python benchmarks/mode_mixtures.py --targets gmm40 --evals 30000 --seeds 0 1 2

Every row is of one exploration, its climbs included: evaluations, effective points, the error of log Z, and the seconds
of one thread. far5 are the mixtures of `surveys.py`, another one for each seed.
"""

import argparse
import math
import time

import torch
from paper_tables import TARGETS
from surveys import D, FarMixture

from skcds.density.energy import Energy
from skcds.explore.adaptive import explore
from skcds.explore.modes import LIKELY, survey
from skcds.explore.store import Store, log_evidence, n_effective
from skcds.specifications import Adaptive, Mixture, Survey

EVALS = {"gmm9": 10_000, "gmm40": 30_000, "mw54": 25_000, "far5": 25_000}
A_CLIMB = 60  # evaluations, about
VARIANTS = {"points": Mixture(n_iter=0), "modes (default)": Mixture()}


def row(name: str, mixture: Mixture, n_evals: int, seed: int) -> str:
    """One exploration, and its figures."""
    target, true, d = FarMixture(seed), 0.5 * D * math.log(2 * math.pi), D
    if name != "far5":
        _, target = TARGETS[name](None)
        true, d = target.log_evidence, target.n_features
    generator, store, by = torch.Generator().manual_seed(seed), Store(d), Adaptive(mixture=mixture)
    energy = Energy(target, d, generator=generator)
    start, before = time.process_time(), energy.n_energy_evals
    found = survey(energy, generator, Survey(n_climbs=int(by.survey.share * n_evals / A_CLIMB)))
    may_miss = found.chance_of_another > LIKELY
    end = before + n_evals
    explore(energy, store, found.modes, generator, lambda: end - energy.n_energy_evals, by=by, may_miss=may_miss)
    log_weights = store.log_weights()
    return (
        f"{len(found.modes)} | {energy.n_energy_evals - before} | {n_effective(log_weights):.0f} | "
        f"{log_evidence(log_weights) - true:+.3f} | {time.process_time() - start:.0f}"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=list(EVALS), choices=list(EVALS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--evals", type=int, help="by default as many as suit the target")
    args = parser.parse_args(arguments)
    print(
        "| target | mixtures | seed | modes | evaluations | effective | log Z | s |\n|---|---|---|---|---|---|---|---|"
    )
    for name in args.targets:
        for variant, mixture in VARIANTS.items():
            for seed in args.seeds:
                figures = row(name, mixture, args.evals or EVALS[name], seed)
                print(f"| {name} | {variant} | {seed} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
