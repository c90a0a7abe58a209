"""What each part of the recipe gives: one row a variant, over targets and seeds.

    python benchmarks/ablation.py --targets gmm9 mw54 --seeds 0 1 2 --max-time 40

Variants of the teacher: step variances learned or fixed, the target's score read or not, log-variance iterations, no
pilot. With ``--max-time`` all fits take as long: the learning rate anneals over the time.
Variants of the student: consistency and likelihood together, either alone, the paper's method as published, and the row
to beat: the same flow fitted to the pilot's particles without any teacher.
"""

import argparse
import time
import warnings

import numpy as np
import torch

from skcds import Consistency, ConsistentSamplerDistiller, Control, Coupling, DiffusionSampler, PathLoss, targets
from skcds.density.energy import Energy
from skcds.density.standardize import StandardizedTarget
from skcds.explore.pilot import run_pilot
from skcds.importance import WeightedSample
from skcds.models.maps import OneStepModel
from skcds.models.networks import seeded
from skcds.train.budget import Budget
from skcds.train.objectives.base import Objective
from skcds.train.particles import Population
from skcds.train.phases import Phase
from skcds.train.run import Run

TEACHERS = {
    "teacher": {},
    "teacher, fixed variance (paper)": {"network": Control(variance="fixed")},
    "teacher, 10 % log-variance iterations": {"loss": PathLoss(share=0.1)},
    "teacher, score not read": {"network": Control(langevin=False)},
    "teacher, no pilot (paper)": {"start": "prior", "network": Control(variance="fixed")},
}
FLOW = "flow without teacher"
N_DRAWS = 20_000
STUDENTS = {
    "student": {},
    "student, splines that do not stretch": {"network": Coupling(stretch=False)},
    "student, likelihood alone": {"objective": Consistency(weight=0.0)},
    "student, consistency alone": {"objective": "consistency"},
    "student, residual + reverse KL": {"network": "residual"},
    "student, residual (paper)": {"network": "residual", "objective": "consistency"},
}


def flow_without_teacher(target, seed, max_time=None, max_iter=2000):
    """The student's map and refinement on the pilot's particles: draws, log weights, seconds, evaluations."""
    start, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    energy = Energy(target, target.n_features, generator=generator)
    pilot, x = run_pilot(energy, 20_000, generator)
    standardization = pilot.standardization()
    standard = StandardizedTarget(energy, standardization, energy.fast_dtype)
    population = Population(standard, standardization.inverse(x).float(), generator)
    with seeded(seed):
        model = OneStepModel("coupling", target.n_features, 6.0, standardization.full, hidden=64, n_layers=2)
    model.standardization = standardization

    class Likelihood(Objective):
        def __call__(self, iteration):
            if iteration % 8 == 0:
                population.move()
            return -model.log_prob(population.draw(512)[0]).mean()

    def refine(averaged):
        latent = torch.randn(20_000, target.n_features, generator=generator)
        population.correct(*averaged.call_and_log_weight(latent, standard), 0.05)

    callbacks = {int(share * max_iter): refine for share in (0.4, 0.6, 0.8)}
    budget = Budget(max_time, None, energy, start)
    run = Run(energy, budget, generator, pilot, model, standard, population)
    run.train([Phase("likelihood", Likelihood(), max_iter, 4e-3, 1e-2, ema_decay=0.99, callbacks=callbacks)])
    model = run.model
    seconds = time.perf_counter() - start
    latent = torch.randn(20_000, target.n_features, generator=generator)
    z, log_weights = model.call_and_log_weight(latent, StandardizedTarget(energy, standardization))
    return WeightedSample(standardization(z).numpy(), log_weights.numpy(), True), seconds, energy.n_energy_evals


def row(name, target, seed, weighted, seconds, n_evals):
    text = f"| {name} | {seed} | {seconds:.0f} | {n_evals:.1e} | {weighted.ess / len(weighted.log_weights):.3f} "
    text += f"| {weighted.log_evidence:.3f} ± {weighted.log_evidence_se:.3f} | {weighted.elbo:.3f} "
    text += f"| {'yes' if weighted.is_bound else 'no'} | {weighted.pareto_k:.2f} |"
    if hasattr(target, "modes"):
        masses = np.bincount(target.modes(weighted.samples), minlength=len(target.mode_masses)) / len(weighted.samples)
        text += f" {0.5 * np.abs(masses - target.mode_masses).sum():.3f} |"
    print(text, flush=True)


def variants(target, seed, only, max_time):
    """Name, weighted draws, seconds and evaluations of every variant wanted; students share the default teacher."""
    teacher = None
    for name, options in TEACHERS.items():
        if name == "teacher" or name in only:
            fitted = DiffusionSampler(random_state=seed, max_time=max_time, **options).fit(target)
            teacher = teacher or fitted
            if name in only:
                yield name, fitted.sample_weighted(N_DRAWS, random_state=seed), fitted.fit_time_, fitted.n_energy_evals_
    for name, options in STUDENTS.items():
        if name in only:
            fitted = ConsistentSamplerDistiller(teacher, random_state=seed, max_time=max_time, **options).fit(target)
            yield name, fitted.sample_weighted(N_DRAWS, random_state=seed), fitted.fit_time_, fitted.n_energy_evals_
    if FLOW in only:
        yield FLOW, *flow_without_teacher(target, seed, max_time)


def main():
    every = [*TEACHERS, *STUDENTS, FLOW]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=["gmm9", "mw54"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=every, choices=every, help="variants to run")
    parser.add_argument("--max-time", type=float, default=None, help="seconds for each fit")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in args.targets:
        target = getattr(targets, name)()
        print(f"\n{name}, true log Z {target.log_evidence}\n")
        print("| variant | seed | fit s | energy evals | ESS | log Z | ELBO | bound | Pareto k | mode TV |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for seed in args.seeds:
            for variant, weighted, seconds, n_evals in variants(target, seed, args.only, args.max_time):
                row(variant, target, seed, weighted, seconds, n_evals)


if __name__ == "__main__":
    main()
