"""
New data, and a Metropolis step of your own
===========================================

A fitted posterior is a density that can be evaluated anywhere (``score_samples``). So its draws can be weighed for
another target, or proposed in a Markov chain. Here the other target is the posterior given more data. The model is
linear, and its log evidence is known exactly.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from skcds import ConsistentSamplerScratch, Pilot, WeightedSample

NOISE = 0.25
rng = np.random.default_rng(0)
t = rng.uniform(-1, 1, 35)
y = 0.3 + 0.8 * t + NOISE * rng.standard_normal(35)
A = np.vander(t, 2, increasing=True)
old, new = slice(0, 25), slice(25, 35)


def log_likelihood(w, data):
    residual = (y[data] - w @ A[data].T) / NOISE
    n = residual.shape[1]
    return -0.5 * (residual**2).sum(1) - n * np.log(NOISE * np.sqrt(2 * np.pi))


def log_prior(w):
    return -0.5 * (w**2).sum(1) - np.log(2 * np.pi)


def energy(w):  # of the posterior given the old data, for torch tensors
    A_old, y_old = torch.tensor(A[old]).to(w), torch.tensor(y[old]).to(w)
    return 0.5 * (w**2).sum(1) + 0.5 * (((y_old - w @ A_old.T) / NOISE) ** 2).sum(1)


def log_target(w):  # given all data, with every constant
    return log_prior(w) + log_likelihood(w, slice(None))


sampler = ConsistentSamplerScratch(
    n_features=2, max_iter=150, random_state=0, start=Pilot(n_particles=2000)
).fit(energy)

# %%
# Draws and their log density come in one pass. With the log density of the new target they are weighted draws of it,
# without a new fit. Their effective sample size says whether that was enough. When the new data move the posterior
# far, it is low, and a new fit is due.

X, log_q = sampler.sample(4000, random_state=1, return_log_density=True)
W = WeightedSample(X, log_target(X) - log_q, is_bound=True)
mean, se = W.expectation(lambda w: w, return_se=True)
precision = np.eye(2) + A.T @ A / NOISE**2
exact_mean = np.linalg.solve(precision, A.T @ y / NOISE**2)
print(f"ESS {W.ess:.0f} of {len(X)}, Pareto k {W.pareto_k:.2f}")
print(f"posterior mean {mean.round(4)} ± {se.round(4)}, exact {exact_mean.round(4)}")

# %%
# This is a Metropolis-Hastings step of your own. Proposals of fresh draws (independence steps) take turns with a random
# walk. After it the chains are at points of their own. ``score_samples`` gives the log density of the sampler there.


def step(w, proposal, log_ratio):
    accepted = np.log(rng.random(len(w))) < log_ratio
    return np.where(accepted[:, None], proposal, w), accepted.mean()


def log_weight(w):
    return log_target(w) - sampler.score_samples(w)


w, states, rates = sampler.sample(400, random_state=2), [], []
for k in range(20):
    fresh, log_q_fresh = sampler.sample(
        400, random_state=3 + k, return_log_density=True
    )
    log_ratio = log_target(fresh) - log_q_fresh - log_weight(w)
    w, rate = step(w, fresh, log_ratio)
    nearby = w + 0.1 * rng.standard_normal(w.shape)
    w, _ = step(w, nearby, log_target(nearby) - log_target(w))
    rates.append(rate)
    states.append(w)
chains = np.concatenate(states[10:])
print(f"independence steps: {np.mean(rates):.0%} accepted")
print(f"chains' mean {chains.mean(0).round(4)}, exact {exact_mean.round(4)}")

# %%
# Log Z comes in two ways: from the weights alone, and by bridge sampling (Meng & Wong 1996). The bridge uses draws of
# the target, too. No large weight can dominate it, since both of its means are of bounded numbers.


def bridge(log_w_of_target, log_w_of_sampler, n_iter=50):
    """Log Z from log weights at draws of the target and at draws of the sampler."""
    n_target, n_sampler = len(log_w_of_target), len(log_w_of_sampler)
    share = np.log(n_target / (n_target + n_sampler))
    rest = np.log(n_sampler / (n_target + n_sampler))
    log_z = logsumexp(log_w_of_sampler) - np.log(n_sampler)
    for _ in range(n_iter):
        above = log_w_of_sampler - np.logaddexp(share + log_w_of_sampler, rest + log_z)
        below = -np.logaddexp(share + log_w_of_target, rest + log_z)
        log_z = logsumexp(above) - np.log(n_sampler)
        log_z -= logsumexp(below) - np.log(n_target)
    return log_z


bridged = bridge(log_weight(chains), W.log_weights)
cov = A @ A.T + NOISE**2 * np.eye(len(y))
exact = multivariate_normal.logpdf(y, np.zeros(len(y)), cov)
print(f"importance {W.log_evidence:.4f} ± {W.log_evidence_se:.4f}")
print(f"bridge     {bridged:.4f}, exact {exact:.4f}")

# %%

side = np.linspace(-0.25, 0.25, 100)
grid = np.stack(np.meshgrid(*(exact_mean[:, None] + side)), -1)
density = np.exp(sampler.score_samples(grid.reshape(-1, 2))).reshape(100, 100)
fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
ax.contour(grid[..., 0], grid[..., 1], density, colors="0.5")
ax.plot(*chains[::10].T, ".", ms=2, label="chains, all data")
ax.plot(*exact_mean, "k+", ms=12, label="exact mean, all data")
ax.set(xlabel="intercept", ylabel="slope", title="Density of the old fit (lines)")
ax.legend()
