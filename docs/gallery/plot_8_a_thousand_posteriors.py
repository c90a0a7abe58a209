"""
A thousand posteriors from one fit
==================================

Thirty-six trials of a treatment in two groups make a small posterior, and there are a thousand such studies. One fit
learns the posterior for all outcomes. Each study then costs a network call.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from skcds import CalibrationDisplay, ConsistentSamplerScratch, Pilot

n_trials = 18


def energy(x, c):
    """Two log odds with a normal prior; the context is the successes in each group."""
    log_likelihood = c * x - n_trials * torch.nn.functional.softplus(x)
    return 0.5 * (x**2).sum(1) / 2.25 - log_likelihood.sum(1)


def simulate(n, rng):
    odds = 1.5 * rng.standard_normal((n, 2))
    return rng.binomial(n_trials, 1 / (1 + np.exp(-odds))).astype(float), odds


sampler = ConsistentSamplerScratch(
    n_features=2,
    max_iter=150,
    random_state=0,
    start=Pilot(begin=(0.0, 2.0), n_particles=4000),
)
sampler.fit(energy, contexts=lambda n, rng: simulate(n, rng)[0])
print(f"mea normalised ESS over studies held out: {sampler.ess_:.3f}")

# %%
# Draws for a thousand studies at once, and the chance that the second group is better:

studies, truths = simulate(1000, np.random.default_rng(1))
draws = sampler.sample(200, context=studies, random_state=0)
better = (draws[..., 1] > draws[..., 0]).mean(1)
print(draws.shape, f"{np.mean(better > 0.95):.0%} of the studies are clear")

# %%
# The odds that each study was simulated with are exact draws of its posterior. If the sampler is right, their ranks
# among the draws are uniform.

report = sampler.calibrate(studies[:300], 500, truths[:300], random_state=0)
print(report)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
CalibrationDisplay(report).plot(axes[0], ranks=False)
CalibrationDisplay(report).plot(axes[1])
