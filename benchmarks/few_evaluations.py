"""What few evaluations of an energy buy: one-step fits within a budget, against the truth.

    python benchmarks/few_evaluations.py                       # nine modes, 10 000 evaluations; 32 wells, 25 000
    python benchmarks/few_evaluations.py --targets funnel      # in 10 dimensions, 100 000
    python benchmarks/few_evaluations.py --targets gmm9 --seeds 0 1 --max-time 200

Evaluations are counted around the energy, the probe and the judgement included.
"""

import argparse
import time
import warnings

import numpy as np

from skcds import ConsistentSamplerDistiller, targets

CASES = {"gmm9": (targets.gmm9, 10_000), "mw54": (targets.mw54, 25_000), "funnel": (targets.Funnel, 100_000)}
N = 20_000  # draws that a fit is judged by


def judge(make, budget: int, seed: int, max_time: float) -> str:
    """One fit, and a line of figures."""
    target, count = make(), [0]

    def energy(x):
        count[0] += len(x)
        return target(x)

    start = time.perf_counter()
    student = ConsistentSamplerDistiller(
        n_features=target.n_features, max_energy_evals=budget, max_time=max_time, random_state=seed
    ).fit(energy)
    seconds, n_evals = time.perf_counter() - start, count[0]  # the weights below take more
    weighted = student.sample_weighted(N, random_state=seed + 1)
    line = (
        f"seed {seed}: {n_evals} evaluations, {seconds:.0f} s, ESS / n {weighted.ess / N:.3f}, error of log Z "
        f"{weighted.log_evidence - target.log_evidence:+.3f}"
    )
    if not hasattr(target, "modes"):
        return line
    masses = np.asarray(target.mode_masses)
    found = np.bincount(target.modes(student.sample(N, random_state=seed + 2)), minlength=len(masses)) / N
    return f"{line}, total variation of mode masses {np.abs(found - masses).sum() / 2:.3f}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=["gmm9", "mw54"], choices=list(CASES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--max-time", type=float, default=200.0, help="seconds for a fit")
    parser.add_argument("--evals", type=int, help="limit of evaluations, in place of those of each target")
    arguments = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    for name in arguments.targets:
        for seed in arguments.seeds:
            make, budget = CASES[name]
            print(name, judge(make, arguments.evals or budget, seed, arguments.max_time), flush=True)


if __name__ == "__main__":
    main()
