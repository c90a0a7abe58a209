"""
One step or many
================

A sampler from scratch draws in one step, or in more for draws that are closer; or a few Markov steps make them exact.
"""

import time

import matplotlib.pyplot as plt
import numpy as np

from skcds import ConsistentSamplerScratch, SamplerDisplay


def energy(x):  # a ring with a gap
    radius = (x**2).sum(1).sqrt()
    return 0.5 * ((radius - 3) / 0.3) ** 2 - 1.5 * x[:, 0]


# %%
# A small map and a short fit, so that there is something to see.

sampler = ConsistentSamplerScratch(
    n_features=2, n_steps=16, n_transforms=2, n_particles=3000, max_iter=200, random_state=0
).fit(energy)

# %%
# The effective share of the weights with the number of steps, and what a draw takes:

for n_steps in (1, 4, 16):
    start = time.perf_counter()
    sampler.sample(10_000, n_steps=n_steps, random_state=1)
    seconds = time.perf_counter() - start
    weighted = sampler.sample_weighted(10_000, n_steps=n_steps, random_state=1)
    share = weighted.ess / 10_000
    print(f"{n_steps:2d} steps: share {share:.3f}, log Z {weighted.log_evidence:.3f} ± "
          f"{weighted.log_evidence_se:.3f}, {1e6 * seconds / 10_000:.1f} µs a draw")  # fmt: skip

# %%
# Polished draws are one-step draws that were moved by accepted proposals: exact in the limit.

polished = sampler.sample_polished(3000, n_moves=20, random_state=1)
print(f"accepted: {polished.independence_acceptance:.2f} of new draws, {polished.langevin_acceptance:.2f} of moves")

fig, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
choices = {
    "one step": sampler.sample(3000, random_state=1),
    "16 steps": sampler.sample(3000, n_steps=16, random_state=1),
    "one step, polished": polished.samples,
}
for ax, (title, draws) in zip(axes, choices.items(), strict=True):
    SamplerDisplay.from_samples(draws, energy_fn=energy, ax=ax)
    ax.set_title(f"{title}: mean radius {np.hypot(*draws.T).mean():.3f}")
