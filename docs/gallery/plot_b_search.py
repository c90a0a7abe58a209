"""
A search over settings
======================

Which network suits a density? Successive halving gives every candidate a few iterations, keeps the better half, and
gives those twice as many. ``warm_start`` lets each go on where it was, so that no iteration is lost. The ``score`` is
the evidence lower bound of fresh draws: there is no test set to split off, and so no cross-validation.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.model_selection import ParameterSampler

from skcds import ConsistentSamplerScratch, Coupling, Pilot


def energy(x):
    """A banana."""
    return 0.5 * x[:, 0] ** 2 / 4 + 0.5 * (x[:, 1] - 0.25 * x[:, 0] ** 2) ** 2


settings = {
    "network__n_transforms": [2, 4, 6],
    "network__bins": [4, 8, 16],
    "network__hidden_features": [16, 64],
    "learning_rate": [5e-4, 2e-3, 8e-3],
}
candidates = list(ParameterSampler(settings, n_iter=4, random_state=0))
first = ConsistentSamplerScratch(
    n_features=2,
    network=Coupling(),
    start=Pilot(n_particles=500),
    warm_start=True,
    random_state=0,
)

# %%
# Four candidates train for 20 iterations, two for 40 more. That is 160 iterations. All four for 60 would be 240. With
# more candidates more is saved.

left = {k: clone(first).set_params(**c) for k, c in enumerate(candidates)}
scores, n_iter = {k: {} for k in left}, 20
total = 0
while len(left) > 1:
    total += n_iter
    for k, sampler in left.items():
        scores[k][total] = sampler.set_params(max_iter=n_iter).fit(energy).score()
    better = sorted(left, key=lambda k: scores[k][total], reverse=True)
    left = {k: left[k] for k in better[: len(left) // 2]}
    n_iter *= 2

((best, sampler),) = left.items()
print("best:", candidates[best])
print(f"bound {sampler.score():.4f}, log Z {np.log(4 * np.pi):.4f}")

# %%
# The bound lies below log Z by the Kullback-Leibler divergence from the sampler to the target. A missed mode hardly
# changes it: where modes matter, look at ``diagnose`` of the best, too.

for k, values in scores.items():
    color = "C3" if k == best else "0.6"
    plt.plot(list(values), list(values.values()), "o-", color=color)
plt.axhline(np.log(4 * np.pi), color="k", ls=":", label="log Z")
plt.xlabel("iterations")
plt.ylabel("evidence lower bound")
plt.legend()
plt.title("Successive halving of four candidates")
plt.show()
