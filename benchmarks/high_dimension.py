"""One-step samplers in many dimensions, with each of the levers for these taken away: what a map costs, and is worth.

    python benchmarks/high_dimension.py --targets mw32 --max-time 300 --max-evals 5e6
    python benchmarks/high_dimension.py --targets mw64 --max-time 170
    python benchmarks/high_dimension.py --targets mw128 --max-time 240
    python benchmarks/high_dimension.py --targets lgcp --data FOLDER --max-time 420 --levers all laplace
    python benchmarks/high_dimension.py --targets mw32 --max-time 20 --levers all none --quick

A row is a fit of `ConsistentSamplerScratch` with a limit of time, judged by 10 000 weighted draws, with d, numbers of
the map, milliseconds a draw (of a thousand), evaluations, and the largest memory of the process in all fits so far.
Levers that are parts of the pilot have no switch: compare with an earlier version.
"""

import argparse
import resource
import time
import warnings

import numpy as np
from paper_tables import TARGETS, Unavailable

from skcds import ConsistentSamplerScratch, Coupling, Pilot, SelfConsistency
from skcds.specifications import HighDimension, Likelihood, Marginals, Training

NO_MARGINALS = SelfConsistency(training=Training(marginals=Marginals(n_iter=0)))
LEVERS = {  # name: parameters of the sampler
    "all": {},
    "laplace": {"start": Pilot(high_dimension=HighDimension(n_hessians=0))},
    "particles": {"objective": SelfConsistency(likelihood=Likelihood(most_features=10**6))},
    "couplings": {"network": Coupling(n_transforms=4, elementwise=False)},
    "no first fit": {"objective": NO_MARGINALS},
    "none": {"network": Coupling(n_transforms=4, elementwise=False), "objective": NO_MARGINALS},
}
HEAD = (
    "target",
    "levers",
    "d",
    "numbers",
    "ms a draw",
    "evals",
    "s",
    "GB",
    "ELBO",
    "ESS",
    "log Z",
    "true",
    "k",
    "worst well",
)


def row(name, target, lever, limits, seed, n):
    """One fit, as cells of a table."""
    sampler = ConsistentSamplerScratch(random_state=seed, **limits, **LEVERS[lever]).fit(target)
    sampler.sample(1000, random_state=seed + 1)
    start = time.perf_counter()
    sampler.sample(1000, random_state=seed + 2)
    milliseconds = time.perf_counter() - start
    weighted = sampler.sample_weighted(n, random_state=seed + 3)
    numbers = sum(parameter.numel() for parameter in sampler._model.map.parameters())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    true, worst = target.log_evidence, "-"
    if hasattr(target, "sides"):
        sides = target.sides(sampler.sample(n, random_state=seed + 4)).mean(0)
        worst = f"{np.abs(sides - target.well_masses[1]).max():.3f}"
    return (
        name, lever, target.n_features, f"{numbers:,}", f"{milliseconds:.3f}", f"{sampler.n_energy_evals_:.2g}",
        f"{sampler.fit_time_:.0f}", f"{memory:.1f}", f"{weighted.elbo:.2f} ± {weighted.elbo_se:.2f}",
        f"{weighted.ess / n:.3f}", f"{weighted.log_evidence:.2f} ± {weighted.log_evidence_se:.2f}",
        "-" if true is None else f"{true:.2f}", f"{weighted.pareto_k:.2f}", worst,
    )  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=["mw32", "mw64", "mw128"], choices=list(TARGETS))
    parser.add_argument("--levers", nargs="*", default=["all"], choices=list(LEVERS))
    parser.add_argument("--max-time", type=float, default=300.0, help="seconds for each fit")
    parser.add_argument("--max-evals", type=float, help="evaluations of the energy for each fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="folder with ionosphere.csv, sonar.csv and finnish_pines.csv")
    parser.add_argument("--quick", action="store_true", help="few draws, to see that everything runs")
    args = parser.parse_args(arguments)
    limits = {"max_time": args.max_time, "max_energy_evals": args.max_evals and int(args.max_evals)}
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for wanted in args.targets:
        try:
            name, target = TARGETS[wanted](args.data)
        except Unavailable as reason:
            print(f"{wanted} is left out: {reason}.")
            continue
        for lever in args.levers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cells = row(name, target, lever, limits, args.seed, 500 if args.quick else 10_000)
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
