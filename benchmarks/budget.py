"""What do evaluations of the energy buy? Fits within budgets, beside the pilot alone and NUTS; and where they go.

    python benchmarks/budget.py --json benchmarks/budget.json --figure benchmarks/budget.png
    python benchmarks/budget.py --targets gmm9 --budgets 1e6 --quick

For every target, `max_energy_evals` is set to the budgets in turn, and once not at all, for a teacher and for a
student that fits its teacher within the same budget. Evaluations are counted by a wrapper around the energy, which
reads from the stack what they are for. The pilot alone is run within the same budgets; NUTS (numpyro, four chains) is
given as many evaluations with gradients. Effective draws of NUTS are those of the worst coordinate; of a one-step
sampler a weighted draw costs one evaluation and counts by its normalised ESS; the pilot's particles are counted as
they are, though they depend on each other.
"""

import argparse
import collections
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from paper_tables import TARGETS, machine

from skcds import ConsistentSamplerDistiller, DiffusionSampler, Pilot, metrics
from skcds.density.energy import Energy
from skcds.explore.pilot import run_pilot
from skcds.train.budget import Budget

PHASES = {  # the outermost function of the package that is named here: what it evaluates for
    "run_pilot": "pilot",
    "move": "moves of particles",
    "exchange_paths": "exchanges", "exchange_images": "exchanges", "refresh": "exchanges",
    "renew_particles": "exchanges",
    "_hold_out": "judgement", "weighted_paths": "judgement", "_judge": "judgement",
    "noise": "scores in training", "flow": "scores in training",
}  # fmt: skip
QUICK = {"max_iter": 5, "start": Pilot(n_particles=200), "n_steps": 4}


class PhasedEnergy:
    """A target that counts the points it is evaluated at, by what for."""

    def __init__(self, target):
        self.target, self.n_features, self.rows = target, target.n_features, collections.Counter()

    def __call__(self, x):
        self.rows[_phase()] += len(x)
        return self.target(x)


def _phase():
    names, frame = [], sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("skcds."):
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return next((PHASES[name] for name in reversed(names) if name in PHASES), "other")


def fits_within(target, budget, seed, options):
    """A teacher and a student of one budget: what they spent, on what, and how good they are."""
    for kind in ("teacher", "student"):
        energy = PhasedEnergy(target)
        limits = {"max_energy_evals": budget, "random_state": seed}
        if kind == "teacher":
            sampler = DiffusionSampler(**limits, **options)
        else:
            iterations = {name: value for name, value in options.items() if name == "max_iter"}
            teacher = DiffusionSampler(random_state=seed, **options)
            sampler = ConsistentSamplerDistiller(teacher, **limits, **iterations)
        sampler.fit(energy)
        yield {
            "method": kind, "budget": budget, "evals": sampler.n_energy_evals_, "phases": dict(energy.rows),
            "ess": sampler.ess_, "log_z": sampler.log_evidence_, "seconds": sampler.fit_time_,
            "n_particles": len(getattr(sampler, "teacher_", sampler).particles_),
            **judged(target, sampler.sample(10_000, random_state=seed)),
        }  # fmt: skip


def pilot_within(target, budget, seed, options):
    """The pilot alone."""
    generator = torch.Generator().manual_seed(seed)
    energy = Energy(target, target.n_features, generator=generator)
    limits = Budget(None, budget and int(budget / Pilot.evals_share), energy)
    energy.monitor = limits
    pilot, x = run_pilot(energy, options.get("start", Pilot()).n_particles, generator, limits)
    return {
        "method": "pilot", "budget": budget, "evals": energy.n_energy_evals, "log_z": pilot.log_evidence,
        "n_particles": len(x), **judged(target, x.numpy()),
    }  # fmt: skip


def nuts_within(target, budget, seed, quick):
    """NUTS, or nothing without numpyro."""
    try:
        import opponents
    except ImportError:
        return
    run = opponents.run_nuts(target, seed, max_evals=budget, n_warmup=100 if quick else 500)
    draws = judged(target, run.pooled()) if run.n_draws else {}
    yield {
        "method": "NUTS", "budget": budget, "evals": run.n_evals, "warmup": run.n_warmup_evals,
        "effective": run.min_ess, **draws,
    }  # fmt: skip


def judged(target, X):
    """Mode masses, where the target has modes."""
    return {"mode_tv": metrics.mode_total_variation(X, target)} if hasattr(target, "modes") else {}


def measure(name, target, budgets, seed, options, quick):
    """All rows of a target; the unlimited fits come last."""
    rows = []
    for budget in [*budgets, None]:
        new = [*fits_within(target, budget, seed, options), pilot_within(target, budget, seed, options)]
        new += nuts_within(target, budget or new[1]["evals"], seed, quick)
        rows += new
        for row in new:
            print(line(name, row, target.log_evidence), flush=True)
    return {"target": name, "seed": seed, "log_z": target.log_evidence, "rows": rows}


# -------------------------------------------------------------------- output

HEAD = "| target | budget | method | evals | normalised ESS, or draws of NUTS | error of log Z | mode TV | particles |"


def line(name, row, log_z):
    """A row of the table."""
    budget = "none" if row["budget"] is None else f"{row['budget']:.0e}"
    quality = f"{row['ess']:.3f}" if "ess" in row else f"{row['effective']:.0f}" if "effective" in row else "-"
    error = f"{abs(row['log_z'] - log_z):.3f}" if "log_z" in row else "-"
    tv = f"{row['mode_tv']:.3f}" if "mode_tv" in row else "-"
    return (
        f"| {name} | {budget} | {row['method']} | {row['evals']:.2g} | {quality} | {error} | {tv} "
        f"| {row.get('n_particles', '-')} |"
    )


def phase_table(results):
    """Lines of Markdown: evaluations of the unlimited fits, by what for."""
    phases = list(dict.fromkeys(PHASES.values()))
    yield "| target | fit | " + " | ".join(phases) + " | all |"
    yield "|---" * (len(phases) + 3) + "|"
    for result in results:
        for row in result["rows"]:
            if row["budget"] is None and "phases" in row:
                counts = [row["phases"].get(phase, 0) for phase in phases]
                cells = [f"{count:.2g}" for count in (*counts, row["evals"])]
                yield f"| {result['target']} | {row['method']} | " + " | ".join(cells) + " |"


def draw_figure(results, path):
    """Effective draws against evaluations, a panel for each target."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(results), 3.9), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for axis, result in zip(axes, results, strict=True):
        _draw_panel(axis, result)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _draw_panel(axis, result):
    rows = result["rows"]
    most = 10 * max(row["evals"] for row in rows)
    students = [row for row in rows if row["method"] == "student"]
    for k, row in enumerate(students):
        evals = np.geomspace(row["evals"] * 1.001, most, 300)
        label = "one step, fitted within a budget" if k == 0 else None
        axis.plot(
            evals, row["ess"] * (evals - row["evals"]), color="C0", alpha=0.35 + 0.65 * k / len(students), label=label
        )
    pilots = [row for row in rows if row["method"] == "pilot"]
    points = [row["evals"] for row in pilots], [row["n_particles"] for row in pilots]
    axis.plot(*points, "s", color="0.4", label="pilot alone: its particles")
    nuts = [row for row in rows if row["method"] == "NUTS" and row["effective"] > 0]
    if nuts:
        last = max(nuts, key=lambda row: row["evals"])
        missed = last.get("mode_tv", 0) > 0.1
        evals = np.geomspace(last["warmup"] * 1.001, most, 300)
        rate = last["effective"] / (last["evals"] - last["warmup"])
        label = "NUTS"
        axis.plot(evals, rate * (evals - last["warmup"]), "--" if missed else "-", color="C3", label=label)
    axis.set(xscale="log", yscale="log", xlabel="energy evaluations", ylabel="effective draws", title=result["target"])
    if nuts and missed:
        axis.text(0.04, 0.96, "NUTS misses modes", color="C3", transform=axis.transAxes, va="top")
    axis.set_ylim(10, None)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=["gmm9", "mw54", "ionosphere"], choices=list(TARGETS))
    parser.add_argument("--budgets", nargs="*", type=float, default=[3e5, 1e6, 3e6])
    parser.add_argument("--max-iter", type=int, default=1000, help="iterations of every fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="folder with ionosphere.csv")
    parser.add_argument("--quick", action="store_true", help="tiny fits, to see that everything runs")
    parser.add_argument("--figure")
    parser.add_argument("--json")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    options = QUICK if args.quick else {"max_iter": args.max_iter}
    print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|")
    results = []
    for wanted in args.targets:
        name, target = TARGETS[wanted](args.data)
        results.append(measure(name, target, [int(b) for b in args.budgets], args.seed, options, args.quick))
        if args.json:
            document = {"machine": machine(), "max_iter": options["max_iter"], "results": results}
            Path(args.json).write_text(json.dumps(document, indent=1), encoding="utf-8")
    print("\n" + "\n".join(phase_table(results)))
    if args.figure:
        draw_figure(results, args.figure)


if __name__ == "__main__":
    main()
