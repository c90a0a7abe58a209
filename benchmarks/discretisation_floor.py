"""How good can a chain of N Gaussian steps be? Effective share of the path weights with the exact score.

    python benchmarks/discretisation_floor.py

One coordinate of the product targets, standardised, is simulated with its exact score and four variances of a step: v
(the noising step's, as published), v~ (that of x_{k+1} given x_k and x_0), the exact variance of the true step averaged
over states, and the exact one for every state. The share of d independent coordinates is the d-th power.
"""

import math

import numpy as np

COORDINATES = {  # name: means, sd, number of such coordinates
    "gmm9": ([-5.0, 0.0, 5.0], 0.3**0.5, 2),
    "mw54": ([-1.97, 1.97], 0.18, 5),
    "mw52": ([-1.38, 1.38], 0.27, 5),
    "Gaussian": ([0.0], 1.0, 35),
}
LOG_SNR_MIN, FINAL_NOISE = -6.0, 1 / 3


def floor(means, sd, n_steps, variance, n=200_000, seed=0):
    """Effective share and mean log weight (true log Z = 0) of one coordinate, for a mixture of equal Gaussians."""
    rng = np.random.default_rng(seed)
    total = math.sqrt(np.mean(np.square(means)) + sd**2)
    means, sd = np.asarray(means) / total, sd / total
    log_snr = np.linspace(LOG_SNR_MIN, -2 * math.log(FINAL_NOISE * sd), n_steps)
    a2 = np.append(1 / (1 + np.exp(-log_snr)), 1.0)
    a, s2 = np.sqrt(a2), 1 - a2
    x = rng.standard_normal(n)
    log_weight = 0.5 * x**2 + 0.5 * math.log(2 * math.pi)
    for k in range(n_steps):
        b = a[k] / a[k + 1]
        v = 1 - b**2
        score, hessian = score_and_hessian(x, a[k] * means, a2[k] * sd**2 + s2[k])
        exact = (v + v**2 * hessian) / b**2
        q = {"v": v, "v~": v * s2[k + 1] / s2[k] if k + 1 < n_steps else v, "mean": exact.mean(), "exact": exact}[
            variance
        ]
        eps = rng.standard_normal(n)
        y = (x + v * score) / b + np.sqrt(q) * eps
        log_weight += 0.5 * (eps**2 + np.log(q / v) - (x - b * y) ** 2 / v)
        x = y
    density = np.exp(-0.5 * ((x[:, None] - means) / sd) ** 2).mean(1) / (sd * math.sqrt(2 * math.pi))
    log_weight += np.log(density + 1e-300)
    weights = np.exp(log_weight - log_weight.max())
    return weights.sum() ** 2 / (weights**2).sum() / n, log_weight.mean()


def score_and_hessian(x, means, variance):
    """First and second derivative of the log density of a mixture of equal Gaussians."""
    z = (x[:, None] - means) / variance
    log_part = -0.5 * z**2 * variance
    part = np.exp(log_part - log_part.max(1, keepdims=True))
    part /= part.sum(1, keepdims=True)
    score = -(z * part).sum(1)
    return score, ((z**2 - 1 / variance) * part).sum(1) - score**2


if __name__ == "__main__":
    print("| target | N | " + " | ".join(f"{name}: ESS, ELBO" for name in ("v", "v~", "mean", "exact")) + " |")
    print("|---|---|---|---|---|---|")
    for name, (means, sd, d) in COORDINATES.items():
        for n_steps in (32, 64, 128):
            cells = []
            for variance in ("v", "v~", "mean", "exact"):
                share, elbo = floor(means, sd, n_steps, variance)
                cells.append(f"{share**d:.3f}, {elbo * d:.2f}")
            print(f"| {name} | {n_steps} | " + " | ".join(cells) + " |", flush=True)
