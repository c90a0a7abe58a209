"""One fit for a family, or a fit for each context: from how many contexts on the family is cheaper.

    python benchmarks/families.py
    python benchmarks/families.py --family linear --max-time 60 --single-time 20
    python benchmarks/families.py --family linear --speed

Families of posteriors with contexts from their models. A fit to the family with `max_time`, and fits to single contexts
with `single-time`, each by `ConsistentSamplerScratch` with defaults. For both: seconds, evaluations, and the normalised
ESS of one-step draws at contexts that the family's fit has not seen.

With --speed: seconds for 1000 draws for each of 1000 contexts, and for their weights, against the bare forward passes
of the map on normal numbers that are there already, in turns. The quality of the map plays no part, so it is hardly
trained.
"""

import argparse
import math
import time
import warnings

import numpy as np
import torch

from skcds import ConsistentSamplerScratch


def linear():
    """Six observations of five coefficients."""
    inputs = np.random.default_rng(3).standard_normal((6, 5))

    def energy(x, c):
        return 2 * ((c - x @ torch.as_tensor(inputs).to(x).T) ** 2).sum(1) + 0.125 * (x**2).sum(1)

    def contexts(n, rng):
        return 2 * rng.standard_normal((n, 5)) @ inputs.T + 0.5 * rng.standard_normal((n, 6))

    return 5, energy, contexts


def logistic():
    """25 trials, five weights."""
    inputs = np.random.default_rng(5).standard_normal((25, 5))

    def energy(x, c):
        logits = x @ torch.as_tensor(inputs).to(x).T
        return (torch.nn.functional.softplus(logits) - logits * c).sum(1) + 0.125 * (x**2).sum(1)

    def contexts(n, rng):
        chances = 1 / (1 + np.exp(-2 * rng.standard_normal((n, 5)) @ inputs.T))
        return (rng.random((n, 25)) < chances).astype(float)

    return 5, energy, contexts


FAMILIES = {"linear": linear, "logistic": logistic}
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, default="logistic")
    parser.add_argument("--max-time", type=float, default=300.0)
    parser.add_argument("--single-time", type=float, default=60.0)
    parser.add_argument("--n-singles", type=int, default=3)
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    d, energy, contexts = FAMILIES[options.family]()
    if options.speed:
        speed(d, energy, contexts)
        return
    start = time.perf_counter()
    family = ConsistentSamplerScratch(n_features=d, max_time=options.max_time, random_state=0)
    family.fit(energy, contexts=contexts)
    seconds, new = time.perf_counter() - start, contexts(200, np.random.default_rng(9))
    found = family.calibrate(new, 1000, random_state=0)
    print(f"family: {seconds:.0f} s, {family.n_energy_evals_} evaluations, ESS / n over 200 new contexts: mean "
          f"{found.ess.mean():.3f}, worst twentieth {np.quantile(found.ess, 0.05):.3f}")  # fmt: skip
    times, evals = [], []
    for c in new[: options.n_singles]:
        row = torch.from_numpy(c)

        def alone(x, row=row):
            return energy(x, row.to(x).expand(len(x), -1))

        single = ConsistentSamplerScratch(n_features=d, max_time=options.single_time, random_state=0).fit(alone)
        times.append(single.fit_time_)
        evals.append(single.n_energy_evals_)
        print(f"single: {times[-1]:.0f} s, {evals[-1]} evaluations, ESS / n {single.ess_:.3f}", flush=True)
    by_time, by_evals = seconds / np.mean(times), family.n_energy_evals_ / np.mean(evals)
    print(f"the family is cheaper from {math.ceil(by_time)} contexts by time, {math.ceil(by_evals)} by evaluations")


if __name__ == "__main__":
    main()
