"""How often is the verdict of `diagnose` wrong? Many samplers whose faults are known, and what is said of them.

    python benchmarks/verdicts.py --cases 200
    python benchmarks/verdicts.py --cases 0 --fits 3 --max-time 60

Samplers are made by hand of draws, exact log weights and particles, so that a case takes milliseconds. Sound ones draw
exactly, with the weights of noisy paths, or from a density with ripples; the others have one fault each. Particles are
exact draws of the target, of which four at a time are in the same mode, as those of chains with a common ancestor; the
pilot's log Z has an error of .03. With ``--fits``, short fits of real samplers are judged as well, beside the largest
Kolmogorov distance of any coordinate of their draws to exact ones.
"""

import argparse
import math
import warnings
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, DiffusionSampler, WeightedSample, targets
from skcds.weights.diagnosis import VERDICTS, diagnose

PILOT_ERROR = 0.03
GROUP = 4  # particles with a common ancestor
TWO = targets.GaussianMixture([[-4.0, 0.0], [4.0, 0.0]], sd=1.0)


@dataclass
class Case:
    """What `diagnose` is given: draws with log weights, particles with theirs, and what else is known."""

    X: np.ndarray
    log_weights: np.ndarray
    particles: np.ndarray
    of_particles: np.ndarray
    options: dict = field(default_factory=dict)

    def verdict(self, rng):
        weighted = WeightedSample(self.X, self.log_weights, True)
        loc, sd = self.particles.mean(0), self.particles.std(0)

        def standardize(x):
            return (x - loc) / sd

        options = {"pilot_log_evidence": PILOT_ERROR * rng.standard_normal(), "n_iter": 100, **self.options}
        particles = standardize(self.particles)
        return diagnose(weighted, particles, self.of_particles, standardize, **options).verdict


# ---------------------------------------------------------------- densities


class Normal:
    """Independent normal coordinates."""

    def __init__(self, d, sd=1.0):
        self.d, self.sd = d, sd

    def sample(self, n, rng):
        return self.sd * rng.standard_normal((n, self.d))

    def log_density(self, X):
        return -0.5 * ((X / self.sd) ** 2).sum(1) - self.d * math.log(self.sd * math.sqrt(2 * math.pi))


class Known:
    """A target of the package, normalised; of a mixture, with other masses."""

    def __init__(self, target, masses=None):
        self.target, self.d, self.masses = target, target.n_features, masses

    def sample(self, n, rng):
        random_state = np.random.RandomState(rng.integers(2**31))
        if self.masses is None:
            return self.target.sample(n, random_state)
        component = rng.choice(len(self.masses), size=n, p=self.masses)
        return self.target.means[component] + self.target.sd * rng.standard_normal((n, self.d))

    def log_density(self, X):
        if self.masses is None:
            return -self.target(torch.from_numpy(X)).numpy() - self.target.log_evidence
        squares = (((X[:, None] - self.target.means) / self.target.sd) ** 2).sum(-1)  # (n, n_components)
        parts = np.log(np.maximum(self.masses, 1e-300)) - 0.5 * squares
        return np.logaddexp.reduce(parts, axis=1) - self.d * math.log(self.target.sd * math.sqrt(2 * math.pi))


class Parts:
    """Disjoint parts with uniform densities of the masses given: [0, .9] and [.9, 1], or a disc and the ring around it.

    `edges` are those of the first coordinate, or of the radius.
    """

    def __init__(self, edges, masses, round_=False):
        self.edges, self.masses, self.round = np.array(edges), np.array(masses), round_
        self.d = 2

    def sample(self, n, rng):
        part = rng.choice(len(self.masses), size=n, p=self.masses)
        low, high = self.edges[part], self.edges[part + 1]
        if not self.round:
            return np.stack([rng.uniform(low, high), rng.uniform(size=n)], 1)
        radius, angle = np.sqrt(rng.uniform(low**2, high**2)), rng.uniform(0, 2 * np.pi, n)
        return np.stack([3 + radius * np.cos(angle), radius * np.sin(angle)], 1)

    def log_density(self, X):
        at = np.linalg.norm(X - [3, 0], axis=1) if self.round else X[:, 0]
        part = np.clip(np.searchsorted(self.edges, at) - 1, 0, len(self.masses) - 1)
        areas = np.pi * np.diff(self.edges**2) if self.round else np.diff(self.edges)
        return np.log(self.masses / areas)[part]


class Rippled:
    """A density times ``exp(a g)`` with g a sum of ripples of random directions, drawn by rejection."""

    def __init__(self, base, share, rng, n_ripples=8):
        self.base, self.d = base, base.d
        self.directions = rng.standard_normal((n_ripples, base.d))
        self.directions *= rng.uniform(6, 12, (n_ripples, 1)) / np.linalg.norm(self.directions, axis=1, keepdims=True)
        self.phases = rng.uniform(0, 2 * np.pi, n_ripples)
        self.size = math.sqrt(-2 * math.log(share) / n_ripples)  # the variance of a g is -log(share)
        X = base.sample(20_000, rng)
        self.log_norm = math.log(np.exp(self.ripples(X)).mean())

    def ripples(self, X):
        return self.size * np.cos(X @ self.directions.T + self.phases).sum(1)

    def sample(self, n, rng):
        chosen, top = np.empty((0, self.d)), self.size * len(self.phases)
        while len(chosen) < n:
            X = self.base.sample(4 * n, rng)
            accepted = np.log(rng.uniform(size=len(X))) < self.ripples(X) - 0.7 * top  # the rest: once in 1e6
            chosen = np.concatenate([chosen, X[accepted]])
        return chosen[:n]

    def log_density(self, X):
        return self.base.log_density(X) + self.ripples(X) - self.log_norm


# ---------------------------------------------------------------- cases


def case(target, sampler, n, rng, share=1.0, **options):
    """Draws of one density, weighted for another; noise of path weights with a normalised ESS on top."""
    X, particles = sampler.sample(n, rng), grouped(target.sample(2 * n, rng), n, rng)
    sd = math.sqrt(-math.log(share))
    noise = sd * rng.standard_normal((2, n)) + 0.5 * sd**2 * np.array([[-1.0], [1.0]])
    log_weights, of_particles = (
        target.log_density(points) - sampler.log_density(points) + part
        for points, part in zip((X, particles), noise, strict=True)
    )
    options = {"target": getattr(target, "target", None), "energies": -target.log_density(X), **options}
    return Case(X, log_weights, particles, of_particles, options)


def grouped(X, n, rng):
    """n of the points (2 n, d), in groups of neighbours in the first coordinate, as of common ancestors."""
    X = X[np.argsort(X[:, 0], kind="stable")]
    first = rng.integers(0, len(X) - GROUP, -(-n // GROUP))
    return X[(first[:, None] + np.arange(GROUP)).ravel()[:n]]


def targets_of(rng):
    """One of several targets."""
    known = targets.gmm9(), targets.gmm40(), targets.mw54(), TWO
    choices = [*map(Known, known), *map(Normal, (1, 2, 10, 50))]
    return choices[rng.integers(len(choices))]


def smooth_targets(rng):
    return [Normal(2), Normal(5), Known(targets.gmm9()), Known(TWO)][rng.integers(4)]


def exact(n, rng):
    target = targets_of(rng)
    return case(target, target, n, rng)


def noisy(share):
    def make(n, rng):
        target = targets_of(rng)
        return case(target, target, n, rng, share)

    return make


def rippled(share):
    def make(n, rng):
        target = smooth_targets(rng)
        return case(target, Rippled(target, share, rng), n, rng)

    return make


def scaled(sd, dimensions=(2, 5)):
    def make(n, rng):
        d = dimensions[rng.integers(len(dimensions))]
        return case(Normal(d), Normal(d, sd), n, rng, 0.9)

    return make


def dropped(target):
    def make(n, rng):
        masses = target.mode_masses.copy()
        masses[rng.choice(distant_modes(target))] = 0
        return case(Known(target), Known(target, masses / masses.sum()), n, rng, 0.9)

    return make


def distant_modes(target):
    """Modes that no other covers a part of."""
    distances = np.linalg.norm(target.means[:, None] - target.means, axis=-1) + np.diag(np.full(len(target.means), 1e9))
    return np.flatnonzero(distances.min(1) > 7 * target.sd)


def remassed(n, rng):
    return case(Known(TWO), Known(TWO, np.array([0.7, 0.3])), n, rng, 0.9)


def plateau(n, rng):
    edges = [0.0, 1.0, 4.0]
    return case(Parts(edges, [0.165, 0.835], True), Parts(edges, [0.084, 0.916], True), n, rng, 0.9)


def edge(n, rng):
    edges = [0.0, 0.9, 1.0]
    return case(Parts(edges, [0.665, 0.335]), Parts(edges, [0.767, 0.233]), n, rng, 0.9)


def untrained(n, rng):
    return case(Normal(2), Normal(2), n, rng, 0.95, n_iter=0)


def misweighed(n, rng):
    found = exact(n, rng)
    found.log_weights -= 0.5
    found.of_particles -= 0.5
    return found


SOUND = {
    "exact draws, equal weights": exact,
    "exact draws, noisy weights, ESS .9": noisy(0.9),
    "exact draws, noisy weights, ESS .7": noisy(0.7),
    "exact draws, noisy weights, ESS .5": noisy(0.5),
    "rippled density, ESS .9": rippled(0.9),
    "rippled density, ESS .6": rippled(0.6),
    "3 % too wide": scaled(1.03),
}
FAULTY = {
    "one of 2 modes dropped": dropped(TWO),
    "one of 9 modes dropped": dropped(targets.gmm9()),
    "one of 40 modes dropped": dropped(targets.gmm40()),
    "modes .5, .5 drawn as .7, .3": remassed,
    "20 % too wide": scaled(1.2),
    "20 % too narrow": scaled(0.8),
    "temperature 2": scaled(2**0.5),
    "plateau .165 drawn as .084": plateau,
    "edge .335 drawn as .233": edge,
    "no training": untrained,
    "weights off by a factor": misweighed,
}


def wilson(count, n, z=1.96):
    """Interval for a probability."""
    middle, half = count + z**2 / 2, z * math.sqrt(count * (n - count) / n + z**2 / 4)
    return (middle - half) / (n + z**2), (middle + half) / (n + z**2)


def counted(make, n, n_cases, seed):
    rng = np.random.default_rng(seed)
    return Counter(make(n, rng).verdict(rng) for _ in range(n_cases))


def table(kinds, sizes, n_cases):
    print(f"| sampler | draws | {' | '.join(VERDICTS)} |\n|---|---|---|---|---|")
    for name, make in kinds.items():
        for n in sizes:
            counts = counted(make, n, n_cases, [n, *name.encode()])
            cells = []
            for verdict in VERDICTS:
                low, high = wilson(counts[verdict], n_cases)
                cells.append(f"{counts[verdict] / n_cases:.3f} [{low:.3f}, {high:.3f}]")
            print(f"| {name} | {n} | {' | '.join(cells)} |", flush=True)


# ---------------------------------------------------------------- real fits


def largest_distance(X, Y):
    """Kolmogorov distance of two samples, the largest of any coordinate."""
    found = []
    for x, y in zip(np.sort(X, 0).T, np.sort(Y, 0).T, strict=True):
        at = np.concatenate([x, y])
        shares = (np.searchsorted(side, at, side="right") / len(side) for side in (x, y))
        found.append(np.abs(np.subtract(*shares)).max())
    return max(found)


def fits(n_seeds, max_time):
    print(
        "| target | sampler | seed | ESS / n | distance to exact draws | verdict | why |\n|---|---|---|---|---|---|---|"
    )
    kinds = DiffusionSampler, ConsistentSamplerDistiller, ConsistentSamplerScratch
    chosen = targets.gmm9(), targets.mw54(), targets.Funnel(), targets.Gaussian(np.zeros(20), np.eye(20))
    for target in chosen:
        for kind in kinds:
            for seed in range(n_seeds):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    sampler = kind(random_state=seed, max_time=max_time).fit(target)
                found = sampler.diagnose(random_state=0)
                distance = largest_distance(sampler.sample(10_000, random_state=1), target.sample(100_000, 0))
                share, reasons = found["normalised ESS"].value, "; ".join(r.split(":")[0] for r in found.reasons)
                print(f"| {target} | {kind.__name__} | {seed} | {share:.2f} | {distance:.3f} | {found.verdict} "
                      f"| {reasons} |", flush=True)  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=200, help="samplers of every kind and size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], help="draws")
    parser.add_argument("--fits", type=int, default=0, help="seeds of short fits")
    parser.add_argument("--max-time", type=float, default=60, help="seconds of a fit")
    options = parser.parse_args(arguments)
    if options.cases:
        for kinds in (SOUND, FAULTY):
            table(kinds, options.sizes, options.cases)
            print()
    if options.fits:
        fits(options.fits, options.max_time)


if __name__ == "__main__":
    main()
