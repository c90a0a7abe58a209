"""Which log Z do the points of an exploration tell? Under the mixture of all proposals, and round by round.

    python benchmarks/evidence_by_rounds.py
    python benchmarks/evidence_by_rounds.py --targets mw54 line25 --seeds 0 1 2 3 4 5 6 7

Every row is of one exploration: its points, and by either kind of weights how many are effective, and the error of
log Z with the standard error that the weights tell. line25 is the Cox process of `dimensions.py` at 25 places.
"""

import argparse

import torch
from dimensions import CoxLine
from paper_tables import TARGETS

from skcds.density.energy import Energy
from skcds.explore.adaptive import explore
from skcds.explore.modes import LIKELY, survey
from skcds.explore.rounds import weights_by_rounds
from skcds.explore.store import Store, n_effective
from skcds.importance import log_evidence
from skcds.specifications import Adaptive, Survey

EVALS = {"gmm9": 10_000, "gmm40": 30_000, "mw54": 25_000, "line25": 20_000}
A_CLIMB = 20  # evaluations for each coordinate and one more, about


def exploration(target, d: int, n_evals: int, seed: int) -> Store:
    """The points of one exploration, as a fit by few evaluations makes it."""
    generator, store, by = torch.Generator().manual_seed(seed), Store(d), Adaptive()
    energy = Energy(target, d, generator=generator)
    end = energy.n_energy_evals + n_evals
    found = survey(energy, generator, Survey(n_climbs=int(by.survey.share * n_evals / (A_CLIMB * (d + 1)))))
    may_miss = found.chance_of_another > LIKELY
    explore(energy, store, found.modes, generator, lambda: end - energy.n_energy_evals, by=by, may_miss=may_miss)
    return store


def row(name: str, n_evals: int, seed: int) -> str:
    """One exploration, and its figures."""
    target = CoxLine(25) if name == "line25" else TARGETS[name](None)[1]
    store = exploration(target, target.n_features, n_evals, seed)
    cells = [str(len(store))]
    for log_weights in (store.log_weights(), weights_by_rounds(store)):
        log_z, se = log_evidence(log_weights.numpy())
        cells += [f"{n_effective(log_weights):.0f}", f"{log_z - target.log_evidence:+.4f} ± {se:.4f}"]
    return " | ".join(cells)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=list(EVALS), choices=list(EVALS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--evals", type=int, help="by default as many as suit the target")
    args = parser.parse_args(arguments)
    print("| target | seed | points | effective, together | log Z | effective, by rounds | log Z |")
    print("|---|---|---|---|---|---|---|")
    for name in args.targets:
        for seed in args.seeds:
            print(f"| {name} | {seed} | {row(name, args.evals or EVALS[name], seed)} |", flush=True)


if __name__ == "__main__":
    main()
