"""Do `max_time` and `max_energy_evals` bound a fit? Ten problems, cheap and slow, with and without gradients.

    python benchmarks/limits.py                                    # all problems, DiffusionSampler and student
    python benchmarks/limits.py --problems normal2 slow --seconds 5
    python benchmarks/limits.py --evals 1000 10000

Prints elapsed seconds (a limit is kept where they are within 10 % or 2 s of it), iterations, evaluations as counted
around the energy, and what came of it.
"""

import argparse
import time
import warnings

import numpy as np
import torch

import skcds
from skcds import targets


def normal(x):
    return 0.5 * (x**2).sum(1)


def in_numpy(x):
    return 0.5 * np.square(np.asarray(x)).sum(1)


def slow(seconds):
    """An energy of so many seconds a point, in NumPy."""

    def energy_fn(x):
        x = np.asarray(x)
        time.sleep(seconds * len(x))
        return 0.5 * np.square(x - 3).sum(1)

    return energy_fn


def slow_with_gradient(seconds):
    def energy_fn(x):
        time.sleep(seconds * len(x))
        return 0.5 * ((x - 3) ** 2).sum(1)

    return energy_fn


def student_t_regression():
    """Student-t regression with an unknown number of degrees of freedom, no bounds: (weights, log scale, log nu)."""
    rng = np.random.default_rng(0)
    design = torch.from_numpy(np.column_stack([np.ones(60), rng.standard_normal((60, 3))]))
    y = design @ torch.tensor([1.0, -2, 0.5, 0], dtype=torch.float64) + torch.from_numpy(rng.standard_t(4, 60))

    def energy_fn(x):
        w, log_scale, log_nu = x[:, :4], x[:, 4:5], x[:, 5:6]
        residuals = (y.to(x) - w @ design.to(x).T) / log_scale.exp()
        density = torch.distributions.StudentT(log_nu.exp(), validate_args=False).log_prob(residuals) - log_scale
        return -density.sum(1) + 0.5 * (w**2).sum(1) / 25 + 0.5 * x[:, 4] ** 2 + 0.5 * ((x[:, 5] - 1) / 2) ** 2

    return energy_fn


PROBLEMS = {
    "normal2": (lambda: normal, 2),
    "gmm9": (targets.gmm9, 2),
    "numpy5": (lambda: in_numpy, 5),
    "student6": (student_t_regression, 6),
    "funnel10": (targets.Funnel, 10),
    "breast31": (targets.breast_cancer, 31),
    "slow3": (lambda: slow(1e-3), 3),
    "slower3": (lambda: slow(2e-2), 3),
    "slow_gradient10": (lambda: slow_with_gradient(1e-3), 10),
    "normal500": (lambda: normal, 500),
    "numpy300": (lambda: in_numpy, 300),
}


def estimator(kind, d, seed, **limits):
    if kind == "student":
        teacher = skcds.DiffusionSampler(n_features=d, random_state=seed)
        return skcds.ConsistentSamplerDistiller(teacher, random_state=seed, **limits)
    cls = {"teacher": skcds.DiffusionSampler, "scratch": skcds.ConsistentSamplerScratch}[kind]
    return cls(n_features=d, random_state=seed, **limits)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--kinds", nargs="*", default=["teacher", "student"], choices=["teacher", "student", "scratch"])
    parser.add_argument("--seconds", nargs="*", type=float, default=None)
    parser.add_argument("--evals", nargs="*", type=int, default=[])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    seconds = args.seconds if args.seconds is not None else ([] if args.evals else [5.0, 20.0, 60.0])
    limits = [{"max_time": s} for s in seconds] + [{"max_energy_evals": n} for n in args.evals]
    print(f"{'problem':16s} {'kind':8s} {'limit':>8s} {'elapsed':>8s} {'iterations':>10s} {'evals':>9s} {'ESS/n':>6s} "
          f"{'log Z':>9s}  kept")  # fmt: skip
    for name in args.problems:
        make, d = PROBLEMS[name]
        for limit in limits:
            for kind in args.kinds:
                energy_fn, count = make(), [0]

                def counted(x, energy_fn=energy_fn, count=count):
                    count[0] += len(x)
                    return energy_fn(x)

                start = time.perf_counter()
                fit = estimator(kind, d, args.seed, **limit).fit(counted)
                elapsed = time.perf_counter() - start
                (value,) = limit.values()
                in_time = elapsed <= max(1.1 * value, value + 2)
                kept = count[0] <= value if "max_energy_evals" in limit else in_time
                figures = f"{fit.n_iter_:10d} {count[0]:9.2g} {fit.ess_:6.3f} {fit.log_evidence_:9.3f}"
                print(
                    f"{name:16s} {kind:8s} {value:8.0f} {elapsed:8.1f} {figures}  {kept and fit.n_iter_ > 0}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
