"""The same fits and draws on the CPU and on a GPU: seconds of the pilot and of an iteration, and draws a second.

    python benchmarks/devices.py
    python benchmarks/devices.py --targets gmm9 --devices cpu cuda

The devices fit and draw in turn in one process; of the draws the first round is not counted.
"""

import argparse
import time
import warnings

import numpy as np
import torch

from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, DiffusionSampler, PathLoss, Pilot, targets

TARGETS = {"gmm9": targets.gmm9, "mw54": targets.mw54, "mw52": targets.mw52}
ITERATIONS = (50, 250)  # of two fits, whose difference is the time of an iteration
N_DRAWS = 1_000_000


def seconds(action) -> float:
    """Of a call whose results are on the CPU."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def fits(target, device, seed, quick=False):
    """Seconds of the fits that ITERATIONS says, for each estimator, and the last student."""
    of_teacher, of_student, of_scratch = [], [], []
    start = Pilot(n_particles=200 if quick else 20_000)
    for n in (1, 2) if quick else ITERATIONS:
        teacher = DiffusionSampler(max_iter=n, loss=PathLoss(tol=0.0), start=start, device=device, random_state=seed)
        of_teacher.append(seconds(lambda teacher=teacher: teacher.fit(target)))
        student = ConsistentSamplerDistiller(teacher, max_iter=n, device=device, random_state=seed)
        of_student.append(seconds(lambda student=student: student.fit(target)))
        scratch = ConsistentSamplerScratch(max_iter=n, start=start, device=device, random_state=seed)
        of_scratch.append(seconds(lambda scratch=scratch: scratch.fit(target)))
    return [of_teacher, of_student, of_scratch], student


def row(name, target, device, rounds, seed, quick=False):
    found, student = fits(target, device, seed, quick)
    n_draws = 100 if quick else N_DRAWS
    an_iteration = [1e3 * (long - short) / (ITERATIONS[1] - ITERATIONS[0]) for short, long in found]
    rest = found[0][0] - 1e-3 * an_iteration[0] * ITERATIONS[0]
    plain = [seconds(lambda: student.sample(n_draws, random_state=0)) for _ in range(rounds + 1)][1:]
    weighted = [seconds(lambda: student.sample_weighted(n_draws, random_state=0)) for _ in range(rounds + 1)][1:]
    cells = [f"{rest:.1f}", *(f"{ms:.1f}" for ms in an_iteration)]
    cells += [f"{n_draws / np.median(times):.1e}" for times in (plain, weighted)]
    print(f"| {name} | {device} | {' | '.join(cells)} | {student.ess_:.2f} |", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--devices", nargs="+", default=every)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny fits, to see that everything runs")
    arguments = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {card}")
    print(
        "| target | device | pilot and judgement of the teacher, s | iteration of the teacher, ms | of the student, ms "
        "| of the scratch sampler, ms | one-step draws a second | weighted | ESS/n |\n" + "|---" * 9 + "|"
    )
    for name in arguments.targets:
        for device in arguments.devices:
            row(name, TARGETS[name](), device, arguments.rounds, arguments.seed, arguments.quick)


if __name__ == "__main__":
    main()
