"""What does `sample` cost beyond its network? One million 2-D one-step draws against the bare forward passes.

    python benchmarks/sampling_overhead.py

Both are timed in turn in one run, in the same chunks; the ratio is the figure, its spread is over the repeats.
"""

import argparse
import time
import warnings

import numpy as np
import torch

from skcds import ConsistentSamplerDistiller, DiffusionSampler
from skcds._base import CHUNK_ROWS


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


@torch.no_grad()
def bare(sampler, n):
    """The forward passes of the one-step map on one latent chunk, as many times as `sample` needs."""
    latent = torch.randn(CHUNK_ROWS, sampler.n_features_in_, generator=torch.Generator().manual_seed(0))
    for start in range(0, n, CHUNK_ROWS):
        rows = min(CHUNK_ROWS, n - start)
        sampler._model.map(latent[:rows], sampler._model.start(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    teacher = DiffusionSampler(n_features=2, max_iter=50, random_state=0).fit(lambda x: 0.5 * (x**2).sum(1))
    print("| network | sample, s | bare forward passes, s | ratio, median | smallest, largest |")
    print("|---|---|---|---|---|")
    for network in ("coupling", "residual"):
        student = ConsistentSamplerDistiller(teacher, network=network, max_iter=5, random_state=0).fit(
            lambda x: 0.5 * (x**2).sum(1)
        )
        student.sample(args.n // 10, random_state=0)
        bare(student, args.n // 10)
        pairs = np.array(
            [
                (seconds(lambda: student.sample(args.n, random_state=0)), seconds(lambda: bare(student, args.n)))  # noqa: B023
                for _ in range(args.repeats)
            ]
        )
        ratios = pairs[:, 0] / pairs[:, 1]
        print(
            f"| {network} | {np.median(pairs[:, 0]):.2f} | {np.median(pairs[:, 1]):.2f} | {np.median(ratios):.3f} "
            f"| {ratios.min():.3f}, {ratios.max():.3f} |"
        )


if __name__ == "__main__":
    main()
