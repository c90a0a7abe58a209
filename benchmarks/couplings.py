"""What do splines as one operation save? An iteration of a coupling map's losses with them and with the library zuko's.

    python benchmarks/couplings.py                  # needs zuko: pip install -e ".[test]"

The same map, batch and optimiser, timed in turn in one run; the ratio is the figure, its spread is over the repeats.
"""

import argparse
import contextlib
import time

import numpy as np
import torch
from zuko.transforms import MonotonicRQSTransform

from skcds.models import maps
from skcds.models.networks import seeded
from skcds.models.splines import rational_quadratic_spline

CASES = {  # dimension, log signal-to-noise ratio of the grid's end, rows
    "2-D, 6 couplings of 32 bins": (2, 9.0, 1024),
    "2-D, 4 couplings of 32 bins": (2, 6.0, 512),
    "5-D, 6 couplings of 16 bins": (5, 9.0, 1024),
    "32-D, 4 couplings of 8 bins": (32, 6.0, 512),
}


def by_zuko(x, phi, bound, *, inverse=False):
    """`rational_quadratic_spline` with an operation of autograd for every elementary one."""
    bins = (phi.shape[-1] + 1) // 3
    transform = MonotonicRQSTransform(*phi.split([bins, bins, bins - 1], -1), bound=bound)
    return (transform.inv if inverse else transform).call_and_ladj(x)


@contextlib.contextmanager
def splines(function):
    """Coupling maps with splines by `function`."""
    maps.rational_quadratic_spline = function
    try:
        yield
    finally:
        maps.rational_quadratic_spline = rational_quadratic_spline


def iteration(d, log_snr_max, n):
    """One iteration of likelihood at two levels and of a loss on images, with the optimiser's step, as a function."""
    with seeded(0):
        sizes = maps.coupling_sizes(d, log_snr_max)
        model, x = maps.OneStepModel("coupling", d, log_snr_max, True, **sizes), torch.randn(n, d)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    optimizer, level = torch.optim.AdamW(model.parameters(), 1e-4, fused=True), torch.linspace(-6, log_snr_max, n // 2)

    def act():
        optimizer.zero_grad()
        images, log_det = model.map.inverse_and_log_det(x[: n // 2], level)
        loss = (
            (images.sum(1) - log_det).mean() + model.map(x[: n // 2], level).square().mean() - model.log_prob(x).mean()
        )
        loss.backward()
        optimizer.step()

    return act


def seconds(action, n_times):
    start = time.perf_counter()
    for _ in range(n_times):
        action()
    return (time.perf_counter() - start) / n_times


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--iterations", type=int, default=10, help="in a repeat")
    args = parser.parse_args(arguments)
    print("| map | rows | zuko's splines, ms | one operation, ms | ratio, median | smallest, largest |")
    print("|---|---|---|---|---|---|")
    for name, (d, log_snr_max, n) in CASES.items():
        pairs, act = [], iteration(d, log_snr_max, n)
        for _ in range(args.repeats + 1):
            with splines(by_zuko):
                theirs = seconds(act, args.iterations)
            pairs.append((theirs, seconds(act, args.iterations)))
        theirs, ours = 1e3 * np.array(pairs[1:]).T  # the first pair warms up
        ratios = theirs / ours
        line = f"| {name} | {n} | {np.median(theirs):.0f} | {np.median(ours):.0f} | {np.median(ratios):.2f} "
        print(line + f"| {ratios.min():.2f}, {ratios.max():.2f} |", flush=True)


if __name__ == "__main__":
    main()
