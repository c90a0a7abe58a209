"""One fit for a family, or a fit for each context: from how many contexts on the family is cheaper.

    python benchmarks/families.py
    python benchmarks/families.py --family linear --max-time 60 --single-time 20
    python benchmarks/families.py --family linear --opponents
    python benchmarks/families.py --family linear --speed

Families of posteriors with contexts from their models. A fit to the family with `max_time`, and fits to single contexts
with `single-time`, each by `ConsistentSamplerScratch` with defaults. For both: seconds, evaluations, and the normalised
ESS of one-step draws at contexts that the family's fit has not seen.

With --opponents: the fit to the family, a chain of NUTS for each context, and neural posterior estimation with as many
seconds as the family's fit took and weights from the energy (`family_opponents.py`; needs the extra `benchmarks`). The
cost is that of 1000 effective draws for each context. The quality is the accuracy of a classifier of 1000 draws, or of
1000 resampled by their weights, from 1000 of a long chain, in the mean over contexts: .5 is best, and the row of the
second long chain says what exact draws have.

With --speed: seconds for 1000 draws for each of 1000 contexts, and for their weights, against the bare forward passes
of the map on normal numbers that are there already, in turns. The quality of the map plays no part, so it is hardly
trained.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from skcds import ConsistentSamplerScratch


@dataclass(frozen=True)
class Family:
    """A family of posteriors with simulated pairs."""

    d: int
    energy: Callable  # of points (n, d) and contexts (n, k)
    simulate: Callable  # (n, rng) to parameters (n, d) and contexts (n, k)

    def contexts(self, n, rng):
        """Contexts (n, k)."""
        return self.simulate(n, rng)[1]


def linear():
    """Six observations of five coefficients."""
    inputs = np.random.default_rng(3).standard_normal((6, 5))

    def energy(x, c):
        return 2 * ((c - x @ torch.as_tensor(inputs).to(x).T) ** 2).sum(1) + 0.125 * (x**2).sum(1)

    def simulate(n, rng):
        x = 2 * rng.standard_normal((n, 5))
        return x, x @ inputs.T + 0.5 * rng.standard_normal((n, 6))

    return Family(5, energy, simulate)


def logistic():
    """25 trials, five weights."""
    inputs = np.random.default_rng(5).standard_normal((25, 5))

    def energy(x, c):
        logits = x @ torch.as_tensor(inputs).to(x).T
        return (torch.nn.functional.softplus(logits) - logits * c).sum(1) + 0.125 * (x**2).sum(1)

    def simulate(n, rng):
        x = 2 * rng.standard_normal((n, 5))
        return x, (rng.random((n, 25)) < 1 / (1 + np.exp(-x @ inputs.T))).astype(float)

    return Family(5, energy, simulate)


FAMILIES = {"linear": linear, "logistic": logistic}
EFFECTIVE = 1000  # draws for each context that costs are for
SPARE = 10  # times as many weighted draws, to resample from
LONG = 10  # times as many steps of the chains that draws are compared with
MANY, EACH, BLOCK = 1000, 1000, 8  # contexts, draws of each, contexts of a forward pass


@torch.no_grad()
def speed(d, energy, contexts, n_rounds=3):
    """Seconds of draws, of weighted draws, and of the forward passes alone, and the ratios, round by round."""
    sampler = ConsistentSamplerScratch(n_features=d, max_iter=20, random_state=0, start=(0.0, 2.0))
    sampler.set_params(start__n_particles=4000).fit(energy, contexts=contexts)
    some = contexts(MANY, np.random.default_rng(9))
    latent = torch.randn(BLOCK * EACH, d, generator=torch.Generator().manual_seed(0))
    rows = torch.from_numpy(some)

    def bare():
        for first in range(0, MANY, BLOCK):
            sampler._model.given(rows[first : first + BLOCK]).mapped(latent)

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    for _ in range(n_rounds):
        alone = seconds(bare)
        drawn = seconds(lambda: sampler.sample(EACH, context=some, random_state=0))
        weighed = seconds(lambda: sampler.sample_weighted(EACH, context=some, random_state=0))
        print(f"forward passes {alone:.1f} s, draws {drawn:.1f} s ({drawn / alone:.2f} times), weighted draws "
              f"{weighed:.1f} s ({weighed / alone:.2f} times)", flush=True)  # fmt: skip


def fitted(family, max_time):
    """The sampler of a family, 200 new contexts, and the seconds of its fit."""
    start = time.perf_counter()
    sampler = ConsistentSamplerScratch(n_features=family.d, max_time=max_time, random_state=0)
    sampler.fit(family.energy, contexts=family.contexts)
    seconds, new = time.perf_counter() - start, family.contexts(200, np.random.default_rng(9))
    found = sampler.calibrate(new, 1000, random_state=0)
    print(f"family: {seconds:.0f} s, {sampler.n_energy_evals_} evaluations, ESS / n over 200 new contexts: mean "
          f"{found.ess.mean():.3f}, worst twentieth {np.quantile(found.ess, 0.05):.3f}", flush=True)  # fmt: skip
    return sampler, new, seconds


def singles(family, sampler, new, seconds, single_time):
    """Fits to single contexts, and from how many on the family is cheaper."""
    times, evals = [], []
    for c in new:
        row = torch.from_numpy(c)

        def alone(x, row=row):
            return family.energy(x, row.to(x).expand(len(x), -1))

        single = ConsistentSamplerScratch(n_features=family.d, max_time=single_time, random_state=0).fit(alone)
        times.append(single.fit_time_)
        evals.append(single.n_energy_evals_)
        print(f"single: {times[-1]:.0f} s, {evals[-1]} evaluations, ESS / n {single.ess_:.3f}", flush=True)
    by_time, by_evals = seconds / np.mean(times), sampler.n_energy_evals_ / np.mean(evals)
    print(f"the family is cheaper from {math.ceil(by_time)} contexts by time, {math.ceil(by_evals)} by evaluations")


def opponents(name, sampler, new, fit_seconds, n_simulations, n_compared=10):
    """A table of the family, NUTS and neural posterior estimation, a line each."""
    from family_opponents import LOG_DENSITIES, Drawn, c2st, npe, nuts

    family, density, n, m = FAMILIES[name](), LOG_DENSITIES[name](), EFFECTIVE, len(new)
    start = time.perf_counter()
    weighted = sampler.sample_weighted(SPARE * n, context=new, random_state=1)
    seconds = time.perf_counter() - start
    x, log_weights = np.stack([w.samples for w in weighted]), np.stack([w.log_weights for w in weighted])
    sizes = np.array([w.ess for w in weighted])
    ours = Drawn(x, log_weights, sizes, fit_seconds, seconds, m * SPARE * n, n_fit_evals=sampler.n_energy_evals_)
    rows = {"skcds": ours, "NUTS": nuts(density, new, family.d, n)}
    rows["NPE"] = npe(family.simulate, family.energy, new, SPARE * n, n_simulations, fit_seconds)
    long = [nuts(density, new[:n_compared], family.d, LONG * n, seed).spread(n) for seed in (1, 2)]
    rng = np.random.default_rng(0)
    print("| draws | fit or compilation, s | fit, evaluations | simulations | s a context | evaluations a context "
          "| ESS / n, mean | worst twentieth | C2ST raw | C2ST resampled |", flush=True)  # fmt: skip
    print("|" + "---|" * 10)
    for label, row in rows.items():
        share = row.n_effective / row.x.shape[1]
        raw, again = row.spread(n), row.resampled(n, n_compared, rng)
        judged = [np.mean([c2st(draws[j], long[0][j]) for j in range(n_compared)]) for draws in (raw, again)]
        seconds, n_evals = (
            row.seconds / m * (n / row.n_effective).mean(),
            row.n_evals / m * (n / row.n_effective).mean(),
        )
        print(f"| {label} | {row.fit_seconds:.0f} | {row.n_fit_evals:.2g} | {row.n_simulations:.2g} | {seconds:.4f} "
              f"| {n_evals:.0f} | {share.mean():.3f} | {np.quantile(share, 0.05):.3f} "
              f"| {judged[0]:.3f} | {judged[1]:.3f} |", flush=True)  # fmt: skip
    exact = np.mean([c2st(long[1][j], long[0][j]) for j in range(n_compared)])
    print(f"| a second long chain | | | | | | | | {exact:.3f} | |")
    one, chain = (np.array([(r.seconds, r.n_evals)]) / m * (n / r.n_effective).mean() for r in (ours, rows["NUTS"]))
    spent, saved = np.array([fit_seconds, sampler.n_energy_evals_]), (chain - one)[0]
    by = [f"{math.ceil(a / b)}" if b > 0 else "never" for a, b in zip(spent, saved, strict=True)]
    print(f"the family is cheaper than NUTS from {by[0]} contexts by time, {by[1]} by evaluations")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, default="logistic")
    parser.add_argument("--max-time", type=float, default=300.0)
    parser.add_argument("--single-time", type=float, default=60.0)
    parser.add_argument("--n-singles", type=int, default=3)
    parser.add_argument("--n-simulations", type=int, default=100_000, help="pairs of neural posterior estimation")
    parser.add_argument("--opponents", action="store_true")
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    family = FAMILIES[options.family]()
    if options.speed:
        speed(family.d, family.energy, family.contexts)
        return
    sampler, new, seconds = fitted(family, options.max_time)
    if options.opponents:
        opponents(options.family, sampler, new, seconds, options.n_simulations)
    else:
        singles(family, sampler, new[: options.n_singles], seconds, options.single_time)


if __name__ == "__main__":
    main()
