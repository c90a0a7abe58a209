"""What maps learn from the points of an exploration: with scores and without, and with draws that go beyond a map.

    python benchmarks/points.py                # a twisted Gaussian in five dimensions, 17 000 evaluations, three seeds

The twist has curvature .05 and a standard deviation of 10 along it (Haario, Saksman & Tamminen 1999). Every row is of
one exploration; the ESS is that of 20 000 draws of the last good map.
"""

import argparse
import math
import time

import torch

from skcds.density.energy import Energy
from skcds.explore.adaptive import MapProposal, explore
from skcds.explore.store import Store, log_evidence, n_effective
from skcds.specifications import Adaptive, MapFit, Nested

VARIANTS = {
    "neither": {"scores": 0.0, "wide": 0.0},
    "scores": {"wide": 0.0},
    "wide draws": {"scores": 0.0},
    "both": {},
    "both, and approximations along a coordinate (default)": {},
}
N, N_FEATURES = 20_000, 5


def twisted(x):
    """Energy of the twisted Gaussian, whose log Z is 0."""
    bent = x[:, 1] - 0.05 * (x[:, 0] ** 2 - 100)
    square = x[:, 0] ** 2 / 100 + bent**2 + (x[:, 2:] ** 2).sum(1)
    return 0.5 * square + math.log(10) + 0.5 * N_FEATURES * math.log(2 * math.pi)


def row(by: Adaptive, n_evals: int, seed: int) -> str:
    """One exploration, and its figures."""
    generator, store = torch.Generator().manual_seed(seed), Store(N_FEATURES)
    energy = Energy(twisted, N_FEATURES, generator=generator)
    end, start = energy.n_energy_evals + n_evals, time.process_time()
    explore(energy, store, [], generator, lambda: end - energy.n_energy_evals, by=by)
    seconds = time.process_time() - start
    proposal = store.proposals[0] if store.model is None else MapProposal(store.model)  # no good map: where it began
    x = proposal.sample(N, generator)
    log_weights = energy.log_prob(x) - proposal.log_prob(x)
    return (
        f"{seconds:.0f} | {n_effective(store.log_weights()):.0f} | {log_evidence(store.log_weights()):+.3f} | "
        f"{n_effective(log_weights) / N:.3f}"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--evals", type=int, default=17_000)
    arguments = parser.parse_args(arguments)
    print("| maps | seed | s | effective points | log Z | ESS |\n|---|---|---|---|---|---|")
    for name, fields in VARIANTS.items():
        by = Adaptive(map=MapFit(**fields), nested=Nested() if "along" in name else Nested(share=0.0))
        for seed in arguments.seeds:
            print(f"| {name} | {seed} | {row(by, arguments.evals, seed)} |", flush=True)


if __name__ == "__main__":
    main()
