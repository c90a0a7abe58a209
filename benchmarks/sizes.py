"""How large should a coupling map be? Students of one teacher, of several sizes: how good, how long, how fast to draw.

    python benchmarks/sizes.py --targets gmm40 mw54 gmm9 --sizes 128,2,6,16 64,2,6,16 64,2,6,32
    python benchmarks/sizes.py --targets gmm9 --sizes 64,2,4,8 --max-iter 50 --quick

Sizes are units and layers of a conditioner, couplings, and bins. The ratio is that of the teacher's 64 steps to the
student's one, both timed on 4096 draws in turn; W2 is that within modes over its floor.
"""

import argparse
import time
import warnings

import numpy as np
from paper_tables import TARGETS

from skcds import ConsistentSamplerDistiller, Coupling, DiffusionSampler, Pilot, metrics

QUICK = {"max_iter": 5, "start": Pilot(n_particles=200), "n_steps": 8}
NAMES = ("hidden_features", "n_layers", "n_transforms", "bins")


def ratio_of_times(teacher, student, n=4096, rounds=5):
    """Smallest time of the teacher's draws over that of the student's."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        teacher.sample(n, random_state=0)
        middle = time.perf_counter()
        student.sample(n, random_state=0)
        times.append((middle - start, time.perf_counter() - middle))
    teacher_time, student_time = np.min(times[1:], axis=0)  # the first round warms up
    return teacher_time / student_time


def row(name, target, teacher, sizes, seed, max_iter):
    """One student, as a line of Markdown."""
    student = ConsistentSamplerDistiller(teacher, random_state=seed, max_iter=max_iter, network=Coupling(**sizes)).fit(
        target
    )
    X = student.sample(20_000, random_state=seed)
    cells = [name, ", ".join(map(str, sizes.values())), f"{student.fit_time_:.0f}", f"{student.ess_:.3f}"]
    cells.append(f"{target.log_evidence - student.elbo_:.2f}" if target.log_evidence is not None else "-")
    if hasattr(target, "modes"):
        cells.append(f"{metrics.mode_total_variation(X, target):.3f}")
        w2 = metrics.wasserstein_ratio(X, target, within_modes=True, random_state=seed)
        cells.append(f"{w2.distance / w2.floor:.2f}")
    else:
        cells += ["-", "-"]
    return "| " + " | ".join([*cells, f"{ratio_of_times(teacher, student):.0f}"]) + " |"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=["gmm9"], choices=list(TARGETS))
    parser.add_argument("--sizes", nargs="*", default=["64,2,4,8", "64,2,4,32"])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--max-iter", type=int, default=2000, help="of every student")
    parser.add_argument("--quick", action="store_true", help="tiny fits, to see that everything runs")
    parser.add_argument("--data", help="folder with ionosphere.csv")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    print("| target | sizes | fit, s | ESS | log Z - ELBO | mode TV | W2 | 64 steps over one |")
    print("|---|---|---|---|---|---|---|---|")
    for wanted in args.targets:
        name, target = TARGETS[wanted](args.data)
        teacher = DiffusionSampler(random_state=args.seed, **(QUICK if args.quick else {})).fit(target)
        for given in args.sizes:
            sizes = dict(zip(NAMES, map(int, given.split(",")), strict=True))
            print(row(name, target, teacher, sizes, args.seed, args.max_iter), flush=True)


if __name__ == "__main__":
    main()
