"""
A NumPyro model
===============

The eight schools are a hierarchical model. Here it is written in NumPyro, sampled in one step, and led back to its own
parameters.
"""

import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

from skcds import ConsistentSamplerScratch, Pilot
from skcds.adapters import from_numpyro

y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
sigma = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(y)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


# %%
# The adapter gives an energy of the unconstrained coordinates, with their names and the Jacobian of the transforms.

energy = from_numpyro(schools, y, sigma)
print(energy.feature_names)
sampler = ConsistentSamplerScratch(
    max_iter=100, random_state=0, start=Pilot(n_particles=2000)
)
sampler.fit(energy)
weighted = sampler.sample_weighted(10_000, random_state=1)
print(weighted)

# %%
# ``constrain`` leads back to the model's parameters. ``tau`` is positive again, and ``theta``, which the model
# computes, is there.

draws = energy.constrain(weighted.resample(4000, random_state=2))
print({name: values.shape for name, values in draws.items()})

fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
ax.boxplot(draws["theta"], whis=(5, 95), showfliers=False)
ax.plot(np.arange(1, 9), y, "x", color="C3", label="what each school reported")
ax.set(xlabel="school", ylabel="effect", title="effects shrink to their common mean")
ax.legend()
