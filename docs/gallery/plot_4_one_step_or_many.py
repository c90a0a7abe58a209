"""
One step or many
================

A sampler from scratch draws in one step. More steps give draws whose weights have lighter tails. A few Markov steps
make the draws exact, in the limit.
"""

import time

import matplotlib.pyplot as plt
import numpy as np

from skcds import ConsistentSamplerScratch, Pilot, SamplerDisplay


def energy(x):  # a ring that is densest at the right
    radius = (x**2).sum(1).sqrt()
    return 0.5 * ((radius - 3) / 0.3) ** 2 - 1.5 * x[:, 0]


# %%
# A sum over a polar grid gives the truth:

radius = np.linspace(1, 5, 801)[1:, None]
angle = np.linspace(-np.pi, np.pi, 800, endpoint=False)
minus_energy = 1.5 * radius * np.cos(angle) - 0.5 * ((radius - 3) / 0.3) ** 2
density = radius * np.exp(minus_energy)
print(f"log Z {np.log(density.sum() * (4 / 800) * (2 * np.pi / 800)):.3f}")

# %%
# The fit is short, so that there is something to see.

size = {
    "n_steps": 16,
    "start": Pilot(n_particles=3000),
    "batch_size": 256,
    "max_iter": 200,
}
sampler = ConsistentSamplerScratch(n_features=2, **size, random_state=0).fit(energy)

# %%
# The table has the normalised ESS, log Z, the tail of the weights and the time of a draw, by the number of steps. The
# one-step map of a short fit hardly reaches the ends of the crescent. Pareto's k tells: above .7 weights cannot be
# relied on.

for n_steps in (1, 4, 16):
    start = time.perf_counter()
    sampler.sample(10_000, n_steps=n_steps, random_state=1)
    seconds = time.perf_counter() - start
    weighted = sampler.sample_weighted(10_000, n_steps=n_steps, random_state=1)
    print(
        f"{n_steps:2d} steps: share {weighted.ess / 10_000:.3f},",
        f"log Z {weighted.log_evidence:.3f} ± {weighted.log_evidence_se:.3f},",
        f"k {weighted.pareto_k:.2f}, {1e6 * seconds / 10_000:.1f} µs a draw",
    )

# %%
# Polished draws are one-step draws that accepted proposals have moved. They are exact in the limit.

polished = sampler.sample_polished(3000, n_moves=20, random_state=1)
print(
    f"accepted: {polished.independence_acceptance:.2f} of new draws,",
    f"{polished.langevin_acceptance:.2f} of moves",
)

fig, axes = plt.subplots(1, 3, figsize=(10, 4.5), layout="constrained")
choices = {
    "one step": sampler.sample(3000, random_state=1),
    "16 steps": sampler.sample(3000, n_steps=16, random_state=1),
    "one step, polished": polished.samples,
}
for ax, (title, draws) in zip(axes, choices.items(), strict=True):
    SamplerDisplay.from_samples(draws, energy_fn=energy, ax=ax)
    ax.set_title(title)
