"""What do evaluations buy? Effective draws and the error of log Z: skcds within budgets, nested samplers, pocoMC, NUTS.

    python benchmarks/frugal.py --json benchmarks/frugal.json --figure benchmarks/frugal.png
    python benchmarks/frugal.py --targets gmm9 --methods skcds --budgets 3000 --seeds 0 1
    python benchmarks/frugal.py --render benchmarks/frugal.json --figure benchmarks/frugal.png

Needs ``pip install -e ".[benchmarks]"``; what is not installed is left out. Rows are saved as soon as they are
measured, beside those that a file holds already.

Evaluations are rows that the energy is asked for, counted around it, probe and judgement included. For skcds, a
one-step student with its teacher is fitted within a budget. Then it has the points that it explored with as effective
draws (`weighted_evaluations`), and each further evaluation brings as many as its normalised ESS. `sample` asks for
none; mode TV is that of its draws.

nautilus, pocoMC and dynesty are run with their defaults and seeds, until they stop by themselves or the time is up.
They need a prior, which is N(0, scale^2 I); the likelihood is divided by it, so that their evidence is Z. Effective
draws are those of their final weights (Kish), which for pocoMC are not independent. Of NUTS (numpyro, four chains), an
evaluation is one with its gradient, warm-up included, and effective draws are those of the worst coordinate.
"""

import argparse
import importlib.util
import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from paper_tables import TARGETS, machine
from scipy.stats import norm

from skcds import ConsistentSamplerDistiller, metrics

CASES = {  # target: budgets, and the scale of the prior of those that need one
    "gmm9": ((3000, 10_000, 30_000), 5.0),
    "mw54": ((8000, 25_000, 75_000), 2.5),
    "funnel": ((6000, 20_000, 60_000), 10.0),
    "gmm40": ((15_000, 30_000, 60_000), 30.0),
}
WANTED = 10_000  # effective draws that the table compares evaluations for
N = 20_000  # draws that a fit is judged by
MISSED_MODES = 0.1  # mode total variation above which modes count as missed
FLOOR = 1e-3  # of an error of log Z in the figure


class TimeIsUpError(Exception):
    """Ends a run from within its likelihood."""


class Counted:
    """An energy that counts the rows that it is asked for, and ends a run after a time."""

    def __init__(self, target, seconds: float = math.inf):
        self.target, self.rows, self.end = target, 0, time.perf_counter() + seconds

    def __call__(self, x):
        if time.perf_counter() > self.end:
            raise TimeIsUpError
        self.rows += len(x)
        return self.target(x)

    def log_likelihood(self, scale: float):
        """Log likelihood of points (n, d) or (d,), under the prior N(0, scale^2 I)."""

        def log_likelihood(x):
            X = np.atleast_2d(x)
            with torch.no_grad():
                log_prob = -self(torch.from_numpy(X)).numpy()
            values = log_prob - norm.logpdf(X, scale=scale).sum(1)
            return values if np.ndim(x) > 1 else values[0]

        return log_likelihood


# -------------------------------------------------------------------- methods: rows of a target


def by_skcds(target, scale, seed, budgets, seconds):
    """A one-step student and its teacher within each budget."""
    for budget in budgets:
        energy, start = Counted(target), time.perf_counter()
        student = ConsistentSamplerDistiller(
            n_features=target.n_features, max_energy_evals=budget, max_time=seconds, random_state=seed
        ).fit(energy)
        row = {"budget": budget, "evals": energy.rows, "seconds": time.perf_counter() - start}
        try:
            row["effective"] = student.weighted_evaluations().ess
        except ValueError:  # it explored by tempering
            row["effective"] = 0.0
        share = student.sample_weighted(N, random_state=seed + 1).ess / N
        X = student.sample(N, random_state=seed + 1)
        yield row | {"share": share, "log_z": student.log_evidence_} | judged(target, X)


def by_nautilus(target, scale, seed, budgets, seconds):
    """Importance nested sampling (Lange 2023)."""
    from nautilus import Sampler

    def prior(u):
        return norm.ppf(np.clip(u, 1e-12, 1 - 1e-12), scale=scale)

    energy = Counted(target)
    sampler = Sampler(
        prior, energy.log_likelihood(scale), n_dim=target.n_features, vectorized=True, pass_dict=False, seed=seed
    )
    is_done = sampler.run(verbose=False, timeout=seconds, n_eff=WANTED)
    X, log_weights, _ = sampler.posterior()
    yield row_of(energy, target, X, log_weights, sampler.log_z, seed) | {"is_done": bool(is_done)}


def by_pocomc(target, scale, seed, budgets, seconds):
    """Preconditioned Monte Carlo (Karamanis et al. 2022)."""
    import pocomc

    energy = Counted(target, seconds)
    prior = pocomc.Prior(target.n_features * [norm(0, scale)])
    sampler = pocomc.Sampler(prior, energy.log_likelihood(scale), vectorize=True, random_state=seed)
    try:
        sampler.run(progress=False)
    except TimeIsUpError:
        yield {"evals": energy.rows, "effective": 0.0, "is_done": False}
        return
    X, log_weights, _, _ = sampler.posterior()
    yield row_of(energy, target, X, log_weights, sampler.evidence()[0], seed)


def by_dynesty(target, scale, seed, budgets, seconds):
    """Nested sampling (Speagle 2020)."""
    import dynesty

    energy = Counted(target, seconds)
    sampler = dynesty.NestedSampler(
        energy.log_likelihood(scale), lambda u: norm.ppf(u, scale=scale), target.n_features,
        rstate=np.random.default_rng(seed),
    )  # fmt: skip
    try:
        sampler.run_nested(print_progress=False)
    except TimeIsUpError:
        yield {"evals": energy.rows, "effective": 0.0, "is_done": False}
        return
    found = sampler.results
    with np.errstate(divide="ignore"):
        log_weights = np.log(found.importance_weights())
    yield row_of(energy, target, found.samples, log_weights, found.logz[-1], seed)


def by_nuts(target, scale, seed, budgets, seconds):
    """NUTS, with as many evaluations as the largest budget; nothing where there is no version of the target in jax."""
    import opponents

    run = opponents.run_nuts(target, seed, max_evals=max(budgets), max_seconds=seconds)
    spent = {"evals": run.n_evals, "warmup": run.n_warmup_evals, "effective": run.min_ess, "seconds": run.seconds}
    yield spent | (judged(target, run.pooled()) if run.n_draws else {})


METHODS = {  # function, and the package that it needs
    "skcds": (by_skcds, "skcds"), "nautilus": (by_nautilus, "nautilus"), "pocoMC": (by_pocomc, "pocomc"),
    "dynesty": (by_dynesty, "dynesty"), "NUTS": (by_nuts, "numpyro"),
}  # fmt: skip


def row_of(energy, target, X, log_weights, log_z, seed):
    """Row of a run that ended, from its weighted draws."""
    weights = np.exp(log_weights - np.max(log_weights))
    rows = np.random.default_rng(seed).choice(len(X), N, p=weights / weights.sum())
    effective = weights.sum() ** 2 / (weights**2).sum()
    return {"evals": energy.rows, "effective": effective, "log_z": float(log_z)} | judged(target, X[rows])


def judged(target, X):
    """Mode masses, where the target has modes."""
    return {"mode_tv": metrics.mode_total_variation(X, target)} if hasattr(target, "modes") else {}


def measured(method, name, target, seed, budgets, seconds):
    """Rows of a method on a target."""
    start, (function, _) = time.perf_counter(), METHODS[method]
    for row in function(target, CASES[name][1], seed, budgets, seconds):
        took = {"seconds": time.perf_counter() - start}
        yield {"target": name, "true_log_z": target.log_evidence, "method": method, "seed": seed} | took | row


# -------------------------------------------------------------------- output

HEAD = (
    "| target | method | seed | evaluations | effective draws | a further evaluation | evaluations for 10 000 "
    "| error of log Z | mode TV | s |"
)


def evals_for(row, wanted=WANTED):
    """Evaluations for so many effective draws; infinite where it did not come that far."""
    missing = wanted - row["effective"]
    if missing <= 0:
        return row["evals"]
    return row["evals"] + missing / row["share"] if row.get("share") else math.inf


def error_of(row):
    """Error of log Z, or None."""
    return None if row.get("log_z") is None else abs(row["log_z"] - row["true_log_z"])


def line(row):
    """A row of the table."""
    error, needed = error_of(row), evals_for(row)
    cells = [
        row["target"], row["method"], row["seed"], f"{row['evals']:,}".replace(",", " "),
        f"{row['effective']:.0f}" + ("" if row.get("is_done", True) else ", stopped"),
        f"{row['share']:.2f}" if "share" in row else "-",
        "-" if needed == math.inf else f"{needed:,.0f}".replace(",", " "),
        "-" if error is None else f"{error:.3f}", f"{row['mode_tv']:.3f}" if "mode_tv" in row else "-",
        f"{row['seconds']:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def draw_figure(rows, path):
    """Effective draws and errors of log Z against evaluations, a column of panels for each target."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    names = [name for name in CASES if any(row["target"] == name for row in rows)]
    figure = Figure(figsize=(3.6 * len(names), 5.6), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False, sharex="col")
    for name, (above, below) in zip(names, panels.T, strict=True):
        own = [row for row in rows if row["target"] == name]
        most = 3 * max(row["evals"] for row in own)
        for k, method in enumerate(METHODS):
            _draw_method(above, below, [row for row in own if row["method"] == method], method, f"C{k}", most)
        above.set(xscale="log", yscale="log", title=name, ylim=(10, None))
        below.set(xscale="log", yscale="log", xlabel="energy evaluations", ylim=(0.7 * FLOOR, None))
        below.xaxis.set_minor_formatter(NullFormatter())
    panels[0, 0].set_ylabel("effective draws")
    panels[1, 0].set_ylabel("error of log Z")
    handles = {label: h for axis in panels.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    for axis in panels.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=150)


def _draw_method(above, below, rows, method, color, most):
    for row in rows:
        missed = row.get("mode_tv", 0) > MISSED_MODES
        style = {"color": color, "marker": "o", "ls": "", "mfc": "none" if missed else color, "label": method}
        if row["effective"] > 0:
            above.plot(row["evals"], row["effective"], **style)
        if (error := error_of(row)) is not None:
            below.plot(row["evals"], max(error, FLOOR), **style)
        rate = row.get("share")
        if "warmup" in row and row["evals"] > row["warmup"]:
            rate = row["effective"] / (row["evals"] - row["warmup"])
        if rate:
            evals = np.geomspace(row["evals"], most, 200)
            line_style = {"ls": "--" if missed else "-", "color": color, "alpha": 0.7}
            above.plot(evals, row["effective"] + rate * (evals - row["evals"]), **line_style)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--budgets", nargs="*", type=int, help="in place of those of each target")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--max-time", type=float, default=300.0, help="seconds for one fit or run")
    parser.add_argument("--json", help="file that rows are added to")
    parser.add_argument("--render", help="such a file, in place of runs")
    parser.add_argument("--figure")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|")
    source = args.render or args.json
    document = {"machine": machine(), "rows": []}
    if source and Path(source).exists():
        document = json.loads(Path(source).read_text(encoding="utf-8"))
    if args.render:
        print("\n".join(map(line, document["rows"])))
    else:
        run(args, document)
    if args.figure:
        draw_figure(document["rows"], args.figure)


def run(args, document):
    """Measure what is asked for, and add it to the document in the place of rows of before."""
    for name in args.targets:
        _, target = TARGETS[name](None)
        for method in args.methods:
            if importlib.util.find_spec(METHODS[method][1]) is None:
                print(f"{method} is not installed, and left out.")
                continue
            for seed in args.seeds:
                found = []
                for row in measured(method, name, target, seed, args.budgets or CASES[name][0], args.max_time):
                    print(line(row), flush=True)
                    found.append(row)
                key = (name, method, seed)
                kept = [row for row in document["rows"] if (row["target"], row["method"], row["seed"]) != key]
                document["rows"] = kept + found
                if args.json:
                    Path(args.json).write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
