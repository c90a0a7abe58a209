"""Many draws in constant memory: 2-D one-step draws in batches, with the seconds and the peak memory they took.

    python benchmarks/streaming.py                  # 10^6, 10^7 and 10^8 draws of nine Gaussians
    python benchmarks/streaming.py --quick          # a tiny fit, to see that everything runs

The draws are judged as they pass: mode masses and moments of all of them, against the known ones.
"""

import argparse
import resource
import sys
import time
import warnings

import numpy as np

from skcds import ConsistentSamplerDistiller, DiffusionSampler, Pilot, targets


def peak_memory():
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def stream(sampler, target, n, batch_size):
    """Seconds, total variation of the mode masses, and largest error of a mean in standard deviations."""
    counts, total, square = np.zeros(len(target.mode_masses)), np.zeros(2), np.zeros(2)
    start = time.perf_counter()
    for X in sampler.iter_samples(n, batch_size, random_state=0):
        counts += np.bincount(target.modes(X), minlength=len(counts))
        total += X.sum(0)
        square += (X**2).sum(0)
    seconds, mean = time.perf_counter() - start, total / n
    assert counts.sum() == n
    return (
        seconds,
        0.5 * np.abs(counts / n - target.mode_masses).sum(),
        np.abs(mean / np.sqrt(square / n - mean**2)).max(),
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", nargs="*", type=int, default=None, help="default: 10^6, 10^7 and 10^8; quick: 10^4")
    parser.add_argument("--batch-size", type=int, default=100_000)
    parser.add_argument("--max-iter", type=int, default=500, help="iterations of teacher and student")
    parser.add_argument("--quick", action="store_true", help="a tiny fit, to see that everything runs")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    target = targets.gmm9()  # centred: its mean is zero
    sizes = {"n_steps": 4, "start": Pilot(n_particles=300)} if args.quick else {}
    limits = {"max_iter": 5 if args.quick else args.max_iter, "random_state": 0}
    sampler = ConsistentSamplerDistiller(DiffusionSampler(**sizes, **limits), **limits).fit(target)
    print(f"before drawing: {peak_memory():.0f} MiB at the peak\n")
    print("| draws | s | s for a million | peak memory, MiB | mode TV | error of the mean, deviations |")
    print("|---|---|---|---|---|---|")
    for n in sorted(args.n or ([10**4] if args.quick else [10**6, 10**7, 10**8])):
        seconds, variation, error = stream(sampler, target, n, args.batch_size)
        line = f"| {n:,} | {seconds:.1f} | {seconds * 1e6 / n:.2f} | {peak_memory():.0f} "
        print(line + f"| {variation:.4f} | {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
