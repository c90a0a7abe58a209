"""Fits from 2 to 10 000 dimensions: seconds, memory, milliseconds a draw, and how good they are, with a figure.

    python benchmarks/dimensions.py --json benchmarks/dimensions.json --figure benchmarks/dimensions.png
    python benchmarks/dimensions.py --render benchmarks/dimensions.json --figure benchmarks/dimensions.png
    python benchmarks/dimensions.py --dimensions 2 20 --max-time 10 --quick

The target is a Cox process on a line: counts at d places, Poisson with the exponential of an autoregressive Gaussian
process as rate. It is skew and correlated as the posteriors are that have many dimensions, costs O(d) to evaluate, and
its log Z is known at every d, by quadrature along the line. Every fit is a process of its own, whose largest memory is
measured; that of the imports is given beside it.
"""

import argparse
import json
import math
import re
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.special import gammaln

from skcds import ConsistentSamplerScratch

CORRELATION, MEAN = 0.9, 0.5  # of neighbours, and of the log rate
NODES = np.linspace(-7, 7, 1401)  # of the quadrature
HEAD = ("d", "s", "evals", "GB", "of it imports", "ms a draw", "ESS", "ELBO less log Z", "log Z less the truth", "k")


class CoxLine:
    """Poisson counts at d places on a line, as an energy of the d standardised log rates."""

    def __init__(self, d: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        x = np.empty(d)
        x[0] = rng.standard_normal()
        for k in range(1, d):
            x[k] = CORRELATION * x[k - 1] + math.sqrt(1 - CORRELATION**2) * rng.standard_normal()
        self.n_features, self.counts = d, rng.poisson(np.exp(MEAN + x))
        self._counts = torch.as_tensor(self.counts, dtype=torch.float64)
        self._constant = float(gammaln(self.counts + 1.0).sum()) - MEAN * self.counts.sum()

    def __call__(self, x):
        variance = 1 - CORRELATION**2
        steps = (x[:, 1:] - CORRELATION * x[:, :-1]).square().sum(1) / variance + x[:, 0].square()
        constant = 0.5 * (self.n_features * math.log(2 * math.pi) + (self.n_features - 1) * math.log(variance))
        rates = (MEAN + x).exp() - self._counts.to(x) * x
        return 0.5 * steps + rates.sum(1) + constant + self._constant

    @property
    def log_evidence(self) -> float:
        """By quadrature along the line."""
        variance, width = 1 - CORRELATION**2, NODES[1] - NODES[0]
        step = np.exp(-0.5 * (NODES[None] - CORRELATION * NODES[:, None]) ** 2 / variance)
        step *= width / math.sqrt(2 * math.pi * variance)
        density, log_z = np.exp(-0.5 * NODES**2) * width / math.sqrt(2 * math.pi), 0.0
        for k, count in enumerate(self.counts):
            density = density if k == 0 else density @ step
            density = density * np.exp(count * (MEAN + NODES) - np.exp(MEAN + NODES) - gammaln(count + 1.0))
            log_z += math.log(density.sum())
            density /= density.sum()
        return log_z


def memory() -> float:
    """Largest so far, GB; where Linux tells it, without that of the process that this one was started from."""
    status = Path("/proc/self/status")
    known = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    kib = int(known[1]) if known else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20


def measured(d: int, max_time: float, seed: int, n: int) -> dict:
    """One fit in this process."""
    imports, target = memory(), CoxLine(d)
    sampler = ConsistentSamplerScratch(n_features=d, max_time=max_time, random_state=seed).fit(target)
    start = time.perf_counter()
    sampler.sample(1000, random_state=seed + 1)
    milliseconds = time.perf_counter() - start
    weighted, true = sampler.sample_weighted(n, random_state=seed + 2), target.log_evidence
    return {
        "d": d, "seconds": sampler.fit_time_, "n_energy_evals": sampler.n_energy_evals_, "memory": memory(),
        "of_imports": imports, "milliseconds": milliseconds, "ess": weighted.ess / n, "gap": weighted.elbo - true,
        "gap_se": weighted.elbo_se, "error": weighted.log_evidence - true, "error_se": weighted.log_evidence_se,
        "pareto_k": weighted.pareto_k,
    }  # fmt: skip


def in_a_process(d: int, arguments) -> dict:
    """One fit in a process of its own."""
    command = [sys.executable, __file__, "--one", str(d), "--max-time", str(arguments.max_time)]
    command += ["--seed", str(arguments.seed)] + ["--quick"] * arguments.quick
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def row(found: dict) -> str:
    """A row of the table."""
    cells = (
        found["d"], f"{found['seconds']:.0f}", f"{found['n_energy_evals']:.2g}", f"{found['memory']:.2f}",
        f"{found['of_imports']:.2f}", f"{found['milliseconds']:.3f}", f"{found['ess']:.3f}",
        f"{found['gap']:.2f} ± {found['gap_se']:.2f}", f"{found['error']:+.2f} ± {found['error_se']:.2f}",
        f"{found['pareto_k']:.2f}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def draw(rows: list[dict], path: str) -> None:
    """Memory, seconds and milliseconds a draw against d."""
    import matplotlib.pyplot as plt

    d = [found["d"] for found in rows]
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    panels = (
        ("seconds of the fit", [found["seconds"] for found in rows]),
        ("largest memory, less imports, GB", [found["memory"] - found["of_imports"] for found in rows]),
        ("milliseconds a draw", [found["milliseconds"] for found in rows]),
    )
    for ax, (title, values) in zip(axes, panels, strict=True):
        ax.loglog(d, values, "o-")
        ax.set(xlabel="dimensions", title=title)
    figure.savefig(path, dpi=150)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", nargs="*", type=int, default=[2, 10, 50, 200, 1000, 2000, 5000, 10_000])
    parser.add_argument("--max-time", type=float, default=150.0, help="seconds for each fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="where to save what was measured")
    parser.add_argument("--figure", help="where to save the figure")
    parser.add_argument("--render", help="what was saved, in place of fits")
    parser.add_argument("--quick", action="store_true", help="few draws, to see that everything runs")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if args.one:
        print(json.dumps(measured(args.one, args.max_time, args.seed, 500 if args.quick else 5000)))
        return
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    rows = []
    for d in json.loads(Path(args.render).read_text()) if args.render else args.dimensions:
        rows.append(d if args.render else in_a_process(d, args))
        print(row(rows[-1]), flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    if args.figure:
        draw(rows, args.figure)


if __name__ == "__main__":
    main()
