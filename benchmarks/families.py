"""One fit for a family, or a fit for each context: from how many contexts on the family is cheaper.

    python benchmarks/families.py
    python benchmarks/families.py --family linear --max-time 60 --single-time 20

Families of posteriors with contexts from their models. A fit to the family with `max_time`, and fits to single contexts
with `single-time`, each by `ConsistentSamplerScratch` with defaults. For both: seconds, evaluations, and the normalised
ESS of one-step draws at contexts that the family's fit has not seen.
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, default="logistic")
    parser.add_argument("--max-time", type=float, default=300.0)
    parser.add_argument("--single-time", type=float, default=60.0)
    parser.add_argument("--n-singles", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    d, energy, contexts = FAMILIES[options.family]()
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
