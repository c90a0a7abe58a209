"""
A first posterior
=================

This example learns the posterior of a Bayesian logistic regression, from its energy to one-step draws, in twenty lines.
"""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale

from skcds import ConsistentSamplerScratch, EvidenceDisplay, Pilot, SamplerDisplay

# %%
# The energy is minus the log of prior times likelihood. It takes a whole batch of weights ``w`` at once: a tensor of
# shape (n, 5) in, one of shape (n,) out.

X, y = load_breast_cancer(return_X_y=True)
names = ["intercept", "texture", "smoothness", "symmetry", "dimension"]
design = torch.tensor(np.c_[np.ones(len(X)), scale(X[:, [1, 4, 8, 9]])])
labels = torch.tensor(y, dtype=torch.float64)


def energy(w):
    logits = w @ design.T.to(w)
    log_likelihoods = labels.to(w) * logits - torch.nn.functional.softplus(logits)
    return 0.5 * (w**2).sum(1) - log_likelihoods.sum(1)


# %%
# ``fit`` finds where the density is, and learns to jump there. This short fit takes seconds.

sampler = ConsistentSamplerScratch(
    n_features=5,
    feature_names=names,
    max_iter=100,
    random_state=0,
    start=Pilot(n_particles=2000),
)
sampler.fit(energy)

# %%
# A draw is one call of the network. The importance weights tell how good the draws are.

draws = sampler.sample(5000, random_state=1)
weighted = sampler.sample_weighted(5000, random_state=1)
print(weighted)
SamplerDisplay.from_estimator(sampler, n=5000, random_state=1)

# %%
# This shows the weights themselves. Their spread is the gap between the evidence and its lower bound. Pareto's k judges
# their upper tail, and says whether they can be relied on.

EvidenceDisplay.from_estimator(sampler, random_state=1)

# %%
# The weights correct means under the posterior, and give their standard errors:

mean, standard_error = weighted.expectation(lambda w: w, return_se=True)
for name, value, error in zip(names, mean, standard_error, strict=True):
    print(f"{name:12s} {value:+.3f} ± {error:.3f}")
