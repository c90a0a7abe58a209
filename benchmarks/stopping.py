"""What does a student lose by a training that ends where more would bring little?

    python benchmarks/stopping.py
    python benchmarks/stopping.py --targets gmm9 funnel --seeds 0 1

Students of one teacher of 300 iterations, as they end by default, and with all of their iterations.
"""

import argparse
import time
import warnings

from skcds import Consistency, ConsistentSamplerDistiller, DiffusionSampler
from skcds.specifications import Stopping, Training
from skcds.targets import Funnel, gmm9, gmm40, mw54

TARGETS = {"gmm9": gmm9, "funnel": lambda: Funnel(10), "mw54": mw54, "gmm40": gmm40}
RULES = {"default": Stopping(), "all iterations": Stopping(tol=0.0, patience=1000)}
N = 50_000


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=["gmm9", "funnel"], choices=[*TARGETS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--iterations", type=int, default=2000, help="of a student, at most")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    print("| target | seed | ends | iterations | s | evaluations | ESS | error of log Z |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.targets:
        for seed in args.seeds:
            target = TARGETS[name]()
            teacher = DiffusionSampler(target.n_features, max_iter=300, random_state=seed).fit(target)
            for rule, stopping in RULES.items():
                objective, start = Consistency(training=Training(stopping=stopping)), time.perf_counter()
                student = ConsistentSamplerDistiller(
                    teacher, objective=objective, max_iter=args.iterations, random_state=seed
                ).fit(target)
                cells = [name, seed, rule, student.n_iter_, f"{time.perf_counter() - start:.0f}"]
                draws = student.sample_weighted(N, random_state=seed + 1)
                error = draws.log_evidence - target.log_evidence
                cells += [f"{student.n_energy_evals_:.1e}", f"{draws.ess / N:.3f}", f"{error:+.4f}"]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
