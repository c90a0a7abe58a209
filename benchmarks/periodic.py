"""What periodic= is worth: von Mises coordinates with their mode on the seam, with and without it, and amid the bounds.

    python benchmarks/periodic.py --max-time 20

The third row is the same density turned by half a circle: what there is to be had without a seam in the mode.
"""

import argparse
import math
import warnings

import torch
from scipy.special import ive

from skcds import ConsistentSamplerScratch

D, KAPPA, TURN = 3, 4.0, 2 * math.pi
LOG_Z = D * (math.log(TURN * ive(0, KAPPA)) + KAPPA)
CASES = {
    "mode on the seam, periodic": {"bounds": (0, TURN), "periodic": list(range(D))},
    "mode on the bounds": {"bounds": (0, TURN)},
    "mode amid the bounds": {"bounds": (-math.pi, math.pi)},
}


def energy(x):
    return -KAPPA * torch.cos(x).sum(1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-time", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args(argv)
    print("| density | seed | ESS/n | log Z less the truth | se | total variation | verdict |")
    print("|---|---|---|---|---|---|---|")
    for name, options in CASES.items():
        for seed in range(args.seeds):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sampler = ConsistentSamplerScratch(D, max_time=args.max_time, random_state=seed, **options).fit(energy)
                weighted = sampler.sample_weighted(20_000, random_state=1)
                verdict = sampler.diagnose(random_state=0).verdict
            cells = weighted.ess / 20_000, weighted.log_evidence - LOG_Z, weighted.log_evidence_se
            found = " | ".join(f"{cell:.4f}" for cell in (*cells, sampler.total_variation_))
            print(f"| {name} | {seed} | {found} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
