"""
All temperatures of a density
=============================

A density raised to a power is sharper or flatter. The power is an inverse temperature. One fit of the family has
draws at every temperature, and the log evidence as a curve.
"""

import matplotlib.pyplot as plt
import numpy as np

from skcds import ConsistentSamplerScratch, Pilot, tempered


def energy(x):
    return ((x**2 - 2) ** 2).sum(1)


def temperatures(n, rng):
    return np.exp(rng.uniform(np.log(0.1), np.log(2), (n, 1)))


sampler = ConsistentSamplerScratch(
    n_features=2,
    max_iter=200,
    random_state=0,
    start=Pilot(begin=(0.0, 2.0), n_particles=4000),
)
sampler.fit(tempered(energy), contexts=temperatures)

# %%
# Log Z from the weights is compared with quadrature:

betas = np.geomspace(0.1, 2, 12)[:, None]
weighted = sampler.sample_weighted(2000, context=betas, random_state=0)
grid = np.linspace(-5, 5, 4001)
wells = np.exp(-betas * (grid**2 - 2) ** 2).sum(1) * (grid[1] - grid[0])
errors = [w.log_evidence - 2 * np.log(z) for w, z in zip(weighted, wells, strict=True)]
print(f"largest error of log Z: {np.abs(errors).max():.4f}")

# %%
# Log Z of sixty temperatures makes a curve, the free energy, with its error:

some = temperatures(60, np.random.default_rng(1))
curve = sampler.calibrate(some, 1000, random_state=1).evidence_curve()
value, se = curve.predict(betas)
errors = value - 2 * np.log(wells)
print(f"largest error of the curve: {np.abs(errors).max():.4f}")
print(f"in its standard errors: {np.abs(errors / se).max():.1f}")

# %%
# The wells merge as the density is heated.

figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for ax, beta in zip(axes, (2.0, 0.4, 0.1), strict=True):
    draws = sampler.sample(1500, context=[beta], random_state=0)
    ax.plot(*draws.T, ".", markersize=2)
    ax.set(title=f"inverse temperature {beta}", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))
