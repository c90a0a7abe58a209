"""From how many draws on has a one-step sampler paid for its training? (Fig. 2 of the paper, from counted evaluations.)

    python benchmarks/evaluations.py --figure benchmarks/evaluations.png --json evaluations.json
    python benchmarks/evaluations.py --targets mw54 --seeds 0 --max-time 150 --figure mw54.png

A many-step teacher, its one-step student (CDDS) and the sampler without a teacher (SCDS) are fitted, and draw samples
of several sizes. Evaluations are counted on the way, in points: those of the networks where they are called, those of
the energy by a wrapper around it. What the student's teacher has cost is part of what the student costs. Lines go on
from the counted points with the evaluations counted for a draw. The break-even is where a line crosses the teacher's;
the paper puts it at S = 3 I B / (N - 1), for I iterations with batches of B and N steps.
"""

import argparse
import json
import math
import warnings
from pathlib import Path

import numpy as np
from paper_tables import TARGETS, Fits, Settings, machine

from skcds.models.maps import BATCH_SIZES, has_fine_scales
from skcds.models.networks import count_evaluations

SAMPLERS = {  # fit: label, how it is sampled, style
    "teacher": ("DIS, {n_steps} steps", {}, "o", "0.35"),
    "cdds": ("CDDS, 1 step (its teacher included)", {}, "s", "C0"),
    "scds": ("SCDS, 1 step", {"n_steps": 1}, "D", "C3"),
}
COUNTS = {"network": "network evaluations", "energy": "energy evaluations"}


def count_fits(fits):
    """Evaluations of every fit, as its attributes say, and those of the energy as its wrapper has counted them."""
    counted = {}
    for name in SAMPLERS:
        before, sampler = fits.energy.rows, fits[name]
        counted[name] = {
            "network": sampler.n_network_evals_, "energy": sampler.n_energy_evals_,
            "energy_seen": fits.energy.rows - before, "seconds": sampler.fit_time_, "n_iter": sampler.n_iter_,
        }  # fmt: skip
    return counted


def count_draws(fits, sizes):
    """Evaluations of every sampler for samples of several sizes."""
    counted = []
    for name, (_, options, *_) in SAMPLERS.items():
        for n in sizes:
            before = fits.energy.rows
            with count_evaluations() as network:
                fits[name].sample(n, random_state=n, **options)
            counted.append({"sampler": name, "n": n, "network": network.rows, "energy": fits.energy.rows - before})
    return counted


def start(fitted, name, what):
    """Evaluations before the first draw: those of the fit and, for the student, of its teacher."""
    return fitted[name][what] + (fitted["teacher"][what] if name == "cdds" else 0)


def per_draw(draws, name, what):
    """Evaluations a draw, of the largest sample."""
    largest = max((row for row in draws if row["sampler"] == name), key=lambda row: row["n"])
    return largest[what] / largest["n"]


def crossing(fitted, draws, name, what):
    """Number of draws from which a sampler has needed fewer evaluations than the teacher; 0: from the first."""
    extra = start(fitted, name, what) - start(fitted, "teacher", what)
    saved = per_draw(draws, "teacher", what) - per_draw(draws, name, what)
    return max(extra, 0) / saved if saved > 0 else math.inf


def papers_break_even(n_iter, batch_size, n_steps):
    """``3 I B / (N - 1)``: three evaluations for every row of a batch."""
    return 3 * n_iter * batch_size / (n_steps - 1)


def measure(name, target, seed, settings, sizes):
    """All counts of a target and a seed, and the break-even points that follow."""
    fits = Fits(target, seed, settings)
    fitted, draws = count_fits(fits), count_draws(fits, sizes)
    students = [s for s in SAMPLERS if s != "teacher"]
    batch = {
        "cdds": fits["cdds"].batch_size or BATCH_SIZES[has_fine_scales(fits["cdds"]._model.log_snr_max)],
        "scds": fits["scds"]._specified("objective").batch_size
        or BATCH_SIZES[has_fine_scales(fits["scds"]._model.log_snr_max)],
    }
    n_steps = fits["teacher"].n_steps
    return {
        "target": name, "seed": seed, "n_steps": n_steps, "fits": fitted, "draws": draws,
        "break_even": {s: {what: crossing(fitted, draws, s, what) for what in COUNTS} for s in students},
        "paper_break_even": {s: papers_break_even(fitted[s]["n_iter"], batch[s], n_steps) for s in students},
    }  # fmt: skip


# -------------------------------------------------------------------- output


def table(result):
    """Lines of Markdown."""
    yield f"\n{result['target']}, seed {result['seed']}\n"
    yield (
        "| sampler | fit: network evals | energy evals | a draw: network evals | energy evals "
        "| break-even, network evals | energy evals | 3 I B / (N - 1) |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, (label, *_) in SAMPLERS.items():
        cells = [label.format(**result), *(f"{start(result['fits'], name, what):.3g}" for what in COUNTS)]
        cells += [f"{per_draw(result['draws'], name, what):.3g}" for what in COUNTS]
        crossings = result["break_even"].get(name)
        cells += [f"{crossings[what]:,.0f}" if crossings else "-" for what in COUNTS]
        cells.append(f"{result['paper_break_even'][name]:,.0f}" if crossings else "-")
        yield "| " + " | ".join(cells) + " |"


def draw_figure(results, path):
    """A row of two panels for each result."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 0.6 + 3.4 * len(results)), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06, hspace=0.06)
    axes = figure.subplots(len(results), len(COUNTS), squeeze=False)
    for row, result in zip(axes, results, strict=True):
        for axis, what in zip(row, COUNTS, strict=True):
            _draw_panel(axis, result, what)
            _dress(axis, f"{result['target']}: {COUNTS[what]}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def _draw_panel(axis, result, what):
    """Counted points, lines through them, and rings where these cross the teacher's."""
    fitted, draws = result["fits"], result["draws"]
    sizes = [row["n"] for row in draws]
    crossings = {name: points[what] for name, points in result["break_even"].items()}
    n = np.geomspace(min(sizes), 10 * max([*sizes, *(at for at in crossings.values() if at < math.inf)]), 200)
    for name, (label, _, marker, colour) in SAMPLERS.items():
        begin, each = start(fitted, name, what), per_draw(draws, name, what)
        axis.plot(n, begin + each * n, color=colour, linewidth=1.3)
        counted = [(row["n"], begin + row[what]) for row in draws if row["sampler"] == name]
        axis.plot(*zip(*counted, strict=True), marker, color=colour, markersize=5, label=label.format(**result))
    for place, (name, at) in enumerate(crossings.items()):
        label, _, _, colour = SAMPLERS[name]
        if 0 < at < math.inf:
            ring = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": colour}
            axis.plot([at], [start(fitted, name, what) + per_draw(draws, name, what) * at], "o", **ring)
        text = f"{label.split(',')[0]}: {in_words(at)}"
        text += f" (3 I B / (N - 1): {result['paper_break_even'][name]:,.0f})" if what == "network" else ""
        axis.text(0.04, 0.97 - 0.09 * place, text, color=colour, transform=axis.transAxes, va="top", fontsize=9)


def in_words(at):
    """A break-even point as text."""
    if at == 0:
        return "fewer from the first draw"
    return f"break-even at {at:,.0f} draws" if at < math.inf else "never fewer"


def _dress(axis, title):
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axis.set_title(title, fontsize=11)
    axis.set(xscale="log", yscale="log", xlabel="number of draws")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axis.yaxis.set_minor_formatter(NullFormatter())
    bottom, top = axis.get_ylim()
    axis.set_ylim(bottom, top * (top / bottom) ** 0.25)  # room for the text
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=["gmm9"], choices=list(TARGETS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--sizes", nargs="*", type=int, default=[100, 1000, 10_000, 100_000], help="samples drawn")
    parser.add_argument("--max-time", type=float, default=None, help="seconds for each fit")
    parser.add_argument("--data", help="folder with ionosphere.csv and finnish_pines.csv")
    parser.add_argument("--quick", action="store_true", help="tiny fits, to see that everything runs")
    parser.add_argument("--figure")
    parser.add_argument("--json")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    results = []
    for wanted in args.targets:
        name, target = TARGETS[wanted](args.data)
        for seed in args.seeds:
            results.append(measure(name, target, seed, Settings(args.max_time, args.quick), args.sizes))
            print("\n".join(table(results[-1])), flush=True)
    if args.json:
        document = {"machine": machine(), "results": results}
        Path(args.json).write_text(json.dumps(document, indent=1), encoding="utf-8")
    if args.figure:
        draw_figure(results, args.figure)


if __name__ == "__main__":
    main()
