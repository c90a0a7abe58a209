"""Does quality grow with the number of steps? (Fig. 3 of the paper.) Distance to exact draws for 1, 2, 4, ..., N steps.

    python benchmarks/steps.py --targets gmm9 mw54 funnel --seeds 0 1 2 --figure benchmarks/steps.png

One `ConsistentSamplerScratch` is fitted with defaults for every target and seed, and draws with both its methods. The
score is the W2 distance to exact draws over that of exact to exact draws (the floor), within modes where the target has
modes (their masses are in the next column), for the funnel of all coordinates, clipped to +-30; 1 is a perfect sampler.
"""

import argparse
import json
import warnings

import numpy as np

from skcds import ConsistentSamplerScratch, metrics, targets

N_DRAWS = 6000


class Clipped:
    """A target whose exact draws are clipped, so that a few far draws do not decide a transport distance."""

    def __init__(self, target, bound=30.0):
        self.target, self.bound, self.n_features = target, bound, target.n_features

    def sample(self, n, random_state=None):
        return np.clip(self.target.sample(n, random_state), -self.bound, self.bound)


def score(X, target, seed):
    """Ratio to the floor, and total variation of the mode masses or NaN."""
    if not hasattr(target, "modes"):
        clipped = Clipped(target)
        return metrics.wasserstein_ratio(np.clip(X, -30, 30), clipped, random_state=seed).ratio, np.nan
    ratio = metrics.wasserstein_ratio(X, target, within_modes=True, random_state=seed).ratio
    return ratio, metrics.mode_total_variation(X, target)


def measure(name, seed, max_time):
    target = getattr(targets, name)() if hasattr(targets, name) else targets.Funnel()
    sampler = ConsistentSamplerScratch(random_state=seed, max_time=max_time).fit(target)
    for n_steps in sampler._model.steps.numbers:
        for method in ("map", "chain") if n_steps > 1 else ("map",):
            W = sampler.sample_weighted(N_DRAWS, n_steps=n_steps, method=method, random_state=seed + 1)
            ratio, tv = score(W.samples, target, seed)
            yield {
                "target": name, "seed": seed, "n_steps": n_steps, "method": method, "w2_ratio": ratio, "mode_tv": tv,
                "ess": W.ess / N_DRAWS, "log_evidence": W.log_evidence, "log_evidence_se": W.log_evidence_se,
                "elbo": W.elbo, "fit_seconds": sampler.fit_time_, "energy_evals": sampler.n_energy_evals_,
                "network_evals": sampler.n_network_evals_,
            }  # fmt: skip


def draw_figure(rows, path):
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["target"] for row in rows))
    figure = Figure(figsize=(4 * len(names), 3.4), layout="constrained")
    for axis, name in zip(np.ravel(figure.subplots(1, len(names))), names, strict=True):
        for method, style in (("chain", "o-C3"), ("map", "s--C0")):
            mine = [r for r in rows if r["target"] == name and (r["method"] == method or r["n_steps"] == 1)]
            steps = sorted({r["n_steps"] for r in mine})
            scores = [[r["w2_ratio"] for r in mine if r["n_steps"] == k] for k in steps]
            axis.plot(steps, [np.mean(s) for s in scores], style, label=f"then the {method}")
            axis.fill_between(
                steps, *zip(*((min(s), max(s)) for s in scores), strict=True), color=style[-2:], alpha=0.15
            )
        axis.axhline(1, color="0.6", linewidth=1)
        axis.set(title=name, xscale="log", xlabel="steps", xticks=steps, ylabel="W2 over the floor")
        axis.set_xticks(steps, [str(k) for k in steps], minor=False)
        axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=["gmm9", "mw54", "funnel"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--max-time", type=float, default=None)
    parser.add_argument("--figure")
    parser.add_argument("--json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    print("| target | seed | steps | method | W2 ratio | mode TV | ESS | log Z | ELBO |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.targets:
        for seed in args.seeds:
            for row in measure(name, seed, args.max_time):
                rows.append(row)
                cells = [name, seed, row["n_steps"], row["method"], f"{row['w2_ratio']:.2f}", f"{row['mode_tv']:.3f}"]
                cells += [f"{row['ess']:.3f}", f"{row['log_evidence']:.3f} ± {row['log_evidence_se']:.3f}"]
                print("| " + " | ".join(map(str, [*cells, f"{row['elbo']:.3f}"])) + " |", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    if args.figure:
        draw_figure(rows, args.figure)


if __name__ == "__main__":
    main()
