"""
Evidence and the comparison of models
=====================================

Is the curve a line or a parabola? Log Z of two posteriors decides. Here the Bayes factor is known exactly.
"""

import numpy as np
import torch
from scipy.stats import multivariate_normal

from skcds import ConsistentSamplerScratch, EvidenceDisplay, Pilot

rng = np.random.default_rng(0)
t = np.linspace(-1, 1, 25)
y = 0.3 + 0.8 * t + 0.45 * t**2 + 0.25 * rng.standard_normal(25)
NOISE = 0.25


def design(degree):
    return np.vander(t, degree + 1, increasing=True)


def posterior(degree):
    """Energy with all constants: minus the log of N(w; 0, I) N(y; A w, NOISE^2 I)."""
    A, data = torch.tensor(design(degree)), torch.tensor(y)

    def energy(w):
        residual = (data.to(w) - w @ A.T.to(w)) / NOISE
        n_terms = w.shape[1] + len(data)
        constants = 0.5 * n_terms * np.log(2 * np.pi) + len(data) * np.log(NOISE)
        return 0.5 * (w**2).sum(1) + 0.5 * (residual**2).sum(1) + constants

    return energy


# %%
# Marginally y is Gaussian under each model. So its log evidence is known.


def exact(degree):
    A = design(degree)
    cov = A @ A.T + NOISE**2 * np.eye(len(y))
    return multivariate_normal.logpdf(y, np.zeros(len(y)), cov)


# %%
# The sampler's log evidence comes from the exact weights of its draws, with a standard error. Constants matter here: an
# energy "up to a constant" has a log Z up to the same constant.

fits = {}
for degree in (1, 2):
    sampler = ConsistentSamplerScratch(
        n_features=degree + 1,
        max_iter=120,
        random_state=0,
        start=Pilot(n_particles=2000),
    )
    sampler.fit(posterior(degree))
    W = fits[degree] = sampler.sample_weighted(20_000, random_state=1)
    print(
        f"degree {degree}: log Z {W.log_evidence:.4f} ± {W.log_evidence_se:.4f},",
        f"exact {exact(degree):.4f}, bound {W.elbo:.4f}",
    )

factor = fits[2].log_evidence - fits[1].log_evidence
error = np.hypot(fits[2].log_evidence_se, fits[1].log_evidence_se)
print(
    f"log Bayes factor for the parabola {factor:.4f} ± {error:.4f},",
    f"exact {exact(2) - exact(1):.4f}",
)

# %%

EvidenceDisplay.from_weights(fits[2])
