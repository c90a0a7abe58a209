"""``python -m skcds``: a real posterior, learned from its energy alone and then sampled in one step.

The posterior of a Bayesian logistic regression on scikit-learn's breast cancer data and, as a picture that shows all
there is, a mixture of nine Gaussians in the plane. Prints a table of figures and saves one figure.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from . import ConsistentSamplerDistiller, DiffusionSampler, PathLoss, Pilot, targets
from .density.energy import Energy
from .density.standardize import Standardization, StandardizedTarget
from .specifications import Training
from .train.particles import Population

SHOWN = 6  # marginals in the figure
COLUMNS = ("method", "steps", "energy evals", "fit s", "draws/s", "ESS/n", "log Z", "ELBO", "mean error")
ROW = "{:28s} {:>5s} {:>12s} {:>6s} {:>10s} {:>6s} {:>16s} {:>9s} {:>10s}"


@dataclass(frozen=True)
class Job:
    """How large it all is.

    Attributes
    ----------
    n_draws : int
        Of each sampler.
    chains, burn_in, moves : int
        Of the reference run.
    posterior, plane : tuple of int
        Iterations of teacher and student: fits short enough to watch.
    posterior_seconds, plane_seconds : tuple of float
        Of their fits at most, on slow machines.
    n_particles : int
        Of the pilot; likewise.
    training : Training
        What else the teachers go by.
    """

    n_draws: int = 20_000
    chains: int = 1_000
    burn_in: int = 200
    moves: int = 800
    posterior: tuple[int, int] = (480, 280)
    plane: tuple[int, int] = (300, 300)
    posterior_seconds: tuple[float, float] = (32, 18)
    plane_seconds: tuple[float, float] = (16, 12)
    n_particles: int = 5_000
    training: Training = Training()  # noqa: RUF009, it does not change


def laplace(target) -> Standardization:
    """Affine map from N(0, I) to the Gaussian at the mode of a posterior with a gradient."""

    def value_and_gradient(x):
        x = torch.tensor(x[None], requires_grad=True)
        energy = target(x)
        return energy.item(), torch.autograd.grad(energy.sum(), x)[0][0].numpy()

    mode = torch.from_numpy(minimize(value_and_gradient, np.zeros(target.n_features), jac=True).x)
    hessian = torch.func.hessian(lambda x: target(x[None])[0])(mode)
    return Standardization.from_moments(mode, torch.linalg.inv(hessian))


def reference_run(target, seed: int, job: Job) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Long MALA chains: states for the figure, the mean over all, its error in standard deviations, evaluations."""
    energy = Energy(target, target.n_features)
    generator = torch.Generator().manual_seed(seed)
    affine = laplace(target)
    start = torch.randn(job.chains, target.n_features, generator=generator)
    chains = Population(StandardizedTarget(energy, affine, energy.fast_dtype), start, generator, decades=0.5)
    chains.move(job.burn_in)
    total, states = torch.zeros(start.shape, dtype=torch.float64), []
    for move in range(job.moves):
        chains.move()
        total += affine(chains.x)
        if move % 40 == 0:
            states.append(affine(chains.x))
    means, kept = total / job.moves, torch.cat(states)  # one independent estimate a chain, and twenty states of each
    error = float((means.std(0) / kept.std(0)).mean()) / job.chains**0.5
    return kept.numpy(), means.mean(0).numpy(), error, energy.n_energy_evals


def describe(name: str, sampler, n_steps: int, reference_mean, scale, n_draws: int) -> tuple[list[str], np.ndarray]:
    """One row of the table, and the draws."""
    start = time.perf_counter()
    draws = sampler.sample(n_draws, random_state=1)
    seconds = time.perf_counter() - start
    weighted = sampler.sample_weighted(n_draws, random_state=2)
    error = np.sqrt(np.mean(((draws.mean(0) - reference_mean) / scale) ** 2))
    row = [
        name, f"{n_steps}", f"{sampler.n_energy_evals_:.1e}", f"{sampler.fit_time_:.0f}", f"{n_draws / seconds:.0f}",
        f"{weighted.ess / n_draws:.3f}", f"{weighted.log_evidence:.3f} ± {weighted.log_evidence_se:.3f}",
        f"{weighted.elbo:.3f}", f"{error:.4f}",
    ]  # fmt: skip
    return row, draws


def fit_both(target, key: str, seed: int, job: Job):
    """Teacher and student, fitted for the demonstration's iterations."""
    (n_teacher, n_student), (at_most, of_student) = getattr(job, key), getattr(job, f"{key}_seconds")
    common = {"random_state": seed, "verbose": 1}
    start, loss = Pilot(n_particles=job.n_particles), PathLoss(training=job.training)
    teacher = DiffusionSampler(max_iter=n_teacher, max_time=at_most, start=start, loss=loss, **common).fit(target)
    student = ConsistentSamplerDistiller(teacher, max_iter=n_student, max_time=of_student, **common).fit(target)
    return teacher, student


def draw_figure(path: str, panels: dict[str, np.ndarray], plane_target, plane: np.ndarray) -> None:
    """Posterior marginals of the reference, the teacher and the student over each other, and the plane beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.7, 1))[0]
    axes = left.subplots(2, SHOWN // 2).ravel()
    reference = panels["long MALA run"]
    widest = np.argsort(-np.abs(reference.mean(0) / reference.std(0)))[:SHOWN]
    styles = [{"histtype": "stepfilled", "color": "0.85"}, {"color": "C0"}, {"color": "C3", "linestyle": "--"}]
    for axis, j in zip(axes, sorted(widest), strict=True):
        low, high = np.quantile(reference[:, j], [0.001, 0.999])
        bins = np.linspace(low, high, 40)
        for (name, draws), style in zip(panels.items(), styles, strict=True):
            axis.hist(draws[:, j], bins, density=True, label=name, **{"histtype": "step", "linewidth": 1.6, **style})
        axis.set(title=f"weight {j}", yticks=[])
    left.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    left.suptitle("Logistic regression posterior: 6 of 31 marginals")
    axis = right.subplots()
    side = np.linspace(-8, 8, 300)
    grid = torch.from_numpy(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2))
    log_density = -plane_target(grid).numpy().reshape(300, 300)
    axis.contourf(side, side, log_density, levels=log_density.max() + np.linspace(-8, 0, 9), cmap="Greys")
    axis.scatter(*plane[:3000].T, s=2, alpha=0.5, color="C3", linewidths=0)
    axis.set(aspect="equal", xticks=[], yticks=[])
    right.suptitle("Nine Gaussians: 3000 one-step draws")
    figure.savefig(path, dpi=150)


def print_table(n_features: int, rows: list[list[str]], n_draws: int) -> None:
    """The rows under their headings, and what they mean."""
    print(f"\nPosterior of {n_features} weights of a logistic regression with prior N(0, 1), breast cancer data")
    for row in (COLUMNS, *rows):
        print(ROW.format(*row))
    print(
        f"{n_draws} draws each. Mean error: root mean square over the weights, in posterior standard deviations; exact "
        f"draws\nwould score {(1 / n_draws) ** 0.5:.4f}. The reference's own error is beside its name. ELBO is a lower "
        "bound of log Z for both."
    )


def main(argv=None, job: Job = Job()) -> None:
    """Fit, sample, print, draw."""
    parser = argparse.ArgumentParser(prog="python -m skcds", description=__doc__.split("\n\n")[0])
    parser.add_argument("--figure", default="skcds.png", help="where to save the figure")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    start = time.perf_counter()

    posterior, plane = targets.breast_cancer(), targets.gmm9()
    states, mean, mean_error, n_evals = reference_run(posterior, args.seed, job)
    teacher, student = fit_both(posterior, "posterior", args.seed, job)
    scale = states.std(0)
    teacher_row, teacher_draws = describe("DiffusionSampler", teacher, teacher.n_steps, mean, scale, job.n_draws)
    student_row, student_draws = describe("ConsistentSamplerDistiller", student, 1, mean, scale, job.n_draws)
    student_row[2] = f"+ {student_row[2]}"  # on top of the teacher's
    student_row[3] = f"+ {student_row[3]}"

    reference_row = ["long MALA run (reference)", "-", f"{n_evals:.1e}", *5 * "-", f"{mean_error:.4f}"]
    pilot_row = ["pilot (SMC)", "-", "in the next", *3 * "-", f"{teacher.pilot_.log_evidence:.3f}", "-", "-"]
    print_table(posterior.n_features, [reference_row, pilot_row, teacher_row, student_row], job.n_draws)

    _, plane_student = fit_both(plane, "plane", args.seed, job)
    weighted = plane_student.sample_weighted(job.n_draws, random_state=1)
    shares = np.bincount(plane.modes(weighted.samples), minlength=9) / job.n_draws
    print(
        f"\nNine Gaussians in one step: ESS/n {weighted.ess / job.n_draws:.3f}, log Z {weighted.log_evidence:.4f} ± "
        f"{weighted.log_evidence_se:.4f} (true 0), mode masses {shares.min():.3f} to {shares.max():.3f} (true 0.111)"
    )
    try:
        draw_figure(
            args.figure,
            {"long MALA run": states, "teacher, 64 steps": teacher_draws, "student, one step": student_draws},
            plane,
            plane_student.sample(3000, random_state=3),
        )
        print(f"Figure: {args.figure}")
    except ImportError:
        print('No figure: install matplotlib with pip install "skcds[plot]".')
    print(f"{time.perf_counter() - start:.0f} seconds in all")


if __name__ == "__main__":
    main()
