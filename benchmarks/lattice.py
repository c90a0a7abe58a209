"""A long reference run of phi^4 on a lattice: its magnetisation, and log Z by thermodynamic integration.

    python benchmarks/lattice.py --json benchmarks/lattice.json

Many chains of Hamiltonian Monte Carlo run beside each other. At a hopping parameter kappa of 0 the sites are
independent and log Z is a one-dimensional integral. From there it changes by ``d log Z / d kappa = 2 <sum of phi
(phi_right + phi_below)>``, which is integrated by Gauss and Legendre's rule over two intervals. Standard errors are of
the means of chains, which are independent. Half of the chains start in order, half at random, and the two halves have
to agree: their difference is given in standard errors. No part of skcds but the target is used.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from paper_tables import machine

from skcds.targets import Phi4Lattice

N_NODES, SPLIT = 10, 0.8  # of each interval, and where the second begins, in units of kappa: the field orders there
N_LEAPS, LENGTH, WANTED = 10, 1.5, 0.8  # of a trajectory, and the acceptance that its step is tuned to
HEAD = ("sites", "kappa", "log Z", "mean size of m", "mean m^2", "halves, log Z", "halves, size")


def neighbours(phi):
    """Sums over sites (n,) of each site times those to the right and below."""
    return (phi * (phi.roll(1, 1) + phi.roll(1, 2))).sum((1, 2))


def force(phi, kappa, lam):
    """Minus the gradient of the action, (n, L, L)."""
    around = phi.roll(1, 1) + phi.roll(-1, 1) + phi.roll(1, 2) + phi.roll(-1, 2)
    return 2 * kappa * around - 2 * (1 - 2 * lam) * phi - 4 * lam * phi**3


def chains(target, n_chains, n_kept, generator):
    """Means over each chain (n_chains,) of the neighbours' sums, of |m| and of m^2, after a tenth for warm-up."""
    side, n_warm = target.n_sites, max(n_kept // 10, 20)
    phi = torch.randn(n_chains, side, side, generator=generator, dtype=torch.float64)
    phi[: n_chains // 2] = 1.5
    sums, step = torch.zeros(3, n_chains, dtype=torch.float64), 0.15
    energy = target(phi.flatten(1))
    for k in range(n_warm + n_kept):
        momentum = torch.randn(phi.shape, generator=generator, dtype=torch.float64)
        before, x = energy + 0.5 * momentum.square().sum((1, 2)), phi
        momentum = momentum + 0.5 * step * force(x, target.kappa, target.lam)
        for leap in range(N_LEAPS):
            x = x + step * momentum
            momentum = momentum + (0.5 if leap == N_LEAPS - 1 else 1.0) * step * force(x, target.kappa, target.lam)
        proposed = target(x.flatten(1))
        gain = before - proposed - 0.5 * momentum.square().sum((1, 2))
        accepted = torch.rand(n_chains, generator=generator, dtype=torch.float64).log() < gain
        phi, energy = torch.where(accepted[:, None, None], x, phi), torch.where(accepted, proposed, energy)
        if k < n_warm:
            step = min(step * math.exp(0.1 * (float(accepted.double().mean()) - WANTED)), LENGTH / N_LEAPS)
        else:
            m = phi.mean((1, 2))
            sums += torch.stack([neighbours(phi), m.abs(), m.square()]) / n_kept
    return sums


def at_zero(n_sites, lam):
    """Log Z without coupling."""
    nodes = np.linspace(-12, 12, 100_001)
    return n_sites**2 * math.log(np.trapezoid(np.exp(-(1 - 2 * lam) * nodes**2 - lam * nodes**4), nodes))


def reference(n_sites, kappa, lam, n_chains, n_kept, seed=0):
    """Log Z, mean |m| and mean m^2 with standard errors, and by how many of these the halves of the chains differ."""
    generator = torch.Generator().manual_seed(seed)
    nodes, weights = np.polynomial.legendre.leggauss(N_NODES)
    integral = torch.zeros(n_chains, dtype=torch.float64)
    for low, high in ((0.0, SPLIT * kappa), (SPLIT * kappa, kappa)):
        for node, weight in zip(nodes, weights, strict=True):
            target = Phi4Lattice(n_sites, low + (high - low) * (1 + node) / 2, lam)
            slope = 2 * chains(target, n_chains, n_kept, generator)[0]
            integral += 0.5 * (high - low) * weight * slope
    _, magnetisation, square = chains(Phi4Lattice(n_sites, kappa, lam), n_chains, n_kept, generator)
    found = {"log_z": at_zero(n_sites, lam) + integral, "magnetisation": magnetisation, "square": square}
    row = {"n_sites": n_sites, "kappa": kappa, "lam": lam, "n_chains": n_chains, "n_kept": n_kept, "seed": seed}
    for name, values in found.items():
        first, second = values.chunk(2)
        row[name], row[f"{name}_se"] = float(values.mean()), float(values.std()) / math.sqrt(n_chains)
        apart = math.hypot(*(float(half.std()) / math.sqrt(len(half)) for half in (first, second)))
        row[f"{name}_halves"] = float(first.mean() - second.mean()) / apart
    return row


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", nargs="*", type=int, default=[8, 16])
    parser.add_argument("--kappa", type=float, default=0.3)
    parser.add_argument("--lam", type=float, default=0.022)
    parser.add_argument("--chains", type=int, default=128)
    parser.add_argument("--kept", type=int, default=3000, help="trajectories of a chain")
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args(arguments)
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    rows = []
    for n_sites in args.sites:
        row = reference(n_sites, args.kappa, args.lam, args.chains, args.kept)
        rows.append(row)
        cells = [f"{row[name]:.4f} ± {row[name + '_se']:.4f}" for name in ("log_z", "magnetisation", "square")]
        halves = [f"{row[name + '_halves']:+.1f}" for name in ("log_z", "magnetisation")]
        print("| " + " | ".join([str(n_sites), f"{args.kappa}", *cells, *halves]) + " |", flush=True)
    if args.json:
        document = {"machine": machine(), "rows": rows}
        Path(args.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
