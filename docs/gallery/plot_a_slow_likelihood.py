"""
A likelihood that takes milliseconds
====================================

An epidemic is a differential equation, and every evaluation of its likelihood is a solution of it. Two thousand
evaluations make a sampler; what `sample` draws later takes none.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from scipy.integrate import solve_ivp
from scipy.stats import poisson

from skcds import ConsistentSamplerScratch
from skcds.adapters import from_numpy

N_PEOPLE = 763
DAYS = np.arange(1, 15)


def infected(parameters, days=DAYS):
    """People who are ill on each day; parameters are logarithms."""
    contact, recovery, first = np.exp(parameters)

    def flow(t, state):
        new, well = contact * state[0] * state[1] / N_PEOPLE, recovery * state[1]
        return [-new, new - well]

    options = {"method": "LSODA", "t_eval": days, "rtol": 1e-6, "atol": 1e-6}
    found = solve_ivp(flow, (0, days[-1]), [N_PEOPLE - first, first], **options)
    return found.y[1].clip(1e-6) if found.success else np.full(len(days), np.nan)


TRUE = np.log([1.7, 0.45, 1.0])
counts = np.random.default_rng(0).poisson(infected(TRUE))

# %%
# A plain function of one point is enough. `from_numpy` can share its points among processes (``n_jobs=-1``), with the
# same results.


def log_posterior(parameters):
    prior = -0.5 * np.sum(((parameters - np.log([1.0, 0.5, 2.0])) / 1.0) ** 2)
    if np.abs(parameters).max() > 10:
        return -np.inf
    value = prior + poisson.logpmf(counts, infected(parameters)).sum()
    return value if np.isfinite(value) else -np.inf


start = time.perf_counter()
for _ in range(20):
    log_posterior(TRUE)
print(f"one evaluation takes {50 * (time.perf_counter() - start):.1f} ms")

# %%
# ``max_energy_evals`` bounds all that a fit asks for: the probe, the exploration, the training and the judgement.
# Every evaluation is kept and weighed, so that few suffice.

energy = from_numpy(
    log_posterior, 3, feature_names=["log contact", "log recovery", "log first"]
)
sampler = ConsistentSamplerScratch(max_energy_evals=2000, max_iter=100, random_state=0)
sampler.fit(energy)
print(f"{sampler.n_energy_evals_} evaluations, {sampler.fit_time_:.0f} s")

# %%
# Draws are now free of the equation. Weights are exact and cost one evaluation each.

X = sampler.sample(10_000, random_state=1)
W = sampler.sample_weighted(1000, random_state=2)
print(
    f"ESS / n {W.ess / 1000:.2f}, log Z {W.log_evidence:.2f} +- {W.log_evidence_se:.2f}"
)
print("true", TRUE.round(2), "mean", X.mean(0).round(2), "sd", X.std(0).round(2))

# %%
# What the fit itself has explored with is a weighted sample of the posterior, too, for no further evaluation.

explored = sampler.weighted_evaluations()
n_points, log_z = len(explored.samples), explored.log_evidence
print(f"{n_points} points, {explored.ess:.0f} effective, log Z {log_z:.2f}")

# %%
# The draws are parameters, so that what follows from them is at hand: the curves that the counts allow.

days = np.linspace(0, 20, 100)
curves = np.array([infected(x, days[1:]) for x in X[:200]])
plt.plot(days[1:], curves.T, color="C0", alpha=0.05)
plt.plot(DAYS, counts, "ko", ms=4)
plt.xlabel("day")
plt.ylabel("people who are ill")
plt.title("An epidemic, and 200 draws in one step")
plt.show()
