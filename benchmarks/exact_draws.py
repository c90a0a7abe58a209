"""Are draws exact where one-step draws are not? Shares on a plateau that a map draws too seldom, and the price.

    python benchmarks/exact_draws.py --max-time 20 --seeds 3

The density has .8 of its mass in N(0, 4 I), and .2 spread evenly over a ball of radius .5 around (2, 0, ...). Shares
are of all draws, with their binomial standard errors; "price" is evaluations of the energy a draw, as
`skcds.importance.rejection_limit` foretells it. Where weights cannot carry draws from the target, the last columns
and the exact share are empty.
"""

import argparse
import math
import warnings

import numpy as np
import torch
from scipy.stats import ncx2

from skcds import ConsistentSamplerScratch
from skcds.importance import rejection_limit

MASS, RADIUS, SD, AT = 0.2, 0.5, 2.0, 2.0


class Plateau:
    """Energy of the density, normalised."""

    def __init__(self, n_features):
        self.n_features = d = n_features
        log_volume = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1) + d * math.log(RADIUS)
        self.log_ball, self.log_rest = math.log(MASS) - log_volume, math.log(1 - MASS)
        self.log_rest -= 0.5 * d * math.log(2 * math.pi * SD**2)

    def __call__(self, x):
        ball = torch.where(self.in_ball(x), self.log_ball, -math.inf)
        return -torch.logaddexp(ball, self.log_rest - 0.5 * (x / SD).square().sum(1))

    def in_ball(self, x):
        """Whether points (n, d) are in the ball."""
        first = (x[:, 0] - AT) ** 2
        return first + (x[:, 1:] ** 2).sum(1) < RADIUS**2

    def share(self):
        """Probability of the ball."""
        return MASS + (1 - MASS) * ncx2.cdf((RADIUS / SD) ** 2, self.n_features, (AT / SD) ** 2)


def row(n_features, seed, max_time, n):
    """One fit: the share of the draws in the ball, raw, weighted and exact."""
    target = Plateau(n_features)
    sampler = ConsistentSamplerScratch(n_features, max_time=max_time, random_state=seed).fit(target)
    weighted = sampler.sample_weighted(n, random_state=1)
    raw = target.in_ball(sampler.sample(n, random_state=2)).mean()
    found = [target.share(), raw, weighted.weights @ target.in_ball(weighted.samples)]
    try:
        limit = rejection_limit(weighted.log_weights)
    except ValueError:  # too few are effective: `sample(exact=True)` refuses, too
        return [*found, math.nan, sampler.total_variation_, sampler.ess_, math.nan, math.nan]
    exact = target.in_ball(sampler.sample(n, random_state=2, exact=True)).mean()
    return [*found, exact, sampler.total_variation_, sampler.ess_, limit.price, limit.loss]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-time", type=float, default=20.0)
    parser.add_argument("--draws", type=int, default=100_000)
    args = parser.parse_args(argv)
    print("| d | seed | true | raw | weighted | exact | se | total variation | ESS/n | price | loss |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for d in args.dimensions:
        for seed in range(args.seeds):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                true, *found = row(d, seed, args.max_time, args.draws)
            se = np.sqrt(true * (1 - true) / args.draws)
            cells = ("-" if math.isnan(cell) else f"{cell:.4f}" for cell in (true, *found[:3], se, *found[3:]))
            print(f"| {d} | {seed} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
