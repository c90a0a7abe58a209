"""
Draws inside a loop
===================

Draws have to be quick where the same posterior is asked again and again, and every answer has to come at once. Here
items arrive one by one. Each is accepted or refused by its expected utility under fresh posterior draws.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import torch

from skcds import ConsistentSamplerDistiller, DiffusionSampler, Pilot

rng = np.random.default_rng(0)
inputs = rng.standard_normal((80, 3))
chances = 1 / (1 + np.exp(-inputs @ np.array([1.5, -1.0, 0.5])))
outcomes = (rng.random(80) < chances).astype(float)
A, b = torch.tensor(inputs), torch.tensor(outcomes)


def energy(w):
    logits = w @ A.T.to(w)
    log_likelihoods = b.to(w) * logits - torch.nn.functional.softplus(logits)
    return 0.5 * (w**2).sum(1) - log_likelihoods.sum(1)


size = {"start": Pilot(n_particles=1000), "max_iter": 100}
teacher = DiffusionSampler(n_features=3, **size, random_state=0).fit(energy)
student = ConsistentSamplerDistiller(teacher, max_iter=100, random_state=0).fit(energy)
print(
    f"normalised ESS: teacher {teacher.ess_:.3f} in {teacher.n_steps} steps,",
    f"student {student.ess_:.3f} in one",
)

# %%
# An item is worth 1 if it turns out well, and costs 2 if not. Each decision takes 100 draws of the weights:


def decide(item, sampler, seed):
    draws = sampler.sample(100, random_state=seed)
    chance = 1 / (1 + np.exp(-draws @ item))
    return chance.mean() - 2 * (1 - chance.mean())


items = rng.standard_normal((40, 3))
utilities, latencies = {}, {}
for name, sampler in {"student": student, "teacher": teacher}.items():
    decide(items[0], sampler, 0)  # warm-up
    utilities[name], latencies[name] = [], []
    for k, item in enumerate(items):
        start = time.perf_counter()
        utilities[name].append(decide(item, sampler, k))
        latencies[name].append(1e3 * (time.perf_counter() - start))
    accepted = np.mean(np.array(utilities[name]) > 0)
    latency = np.median(latencies[name])
    print(f"{name}: {latency:.2f} ms a decision, {accepted:.0%} accepted")

# %%
# Both decide alike, since both draw from the same posterior. The student answers sooner.

fig, axes = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
axes[0].plot(utilities["teacher"], utilities["student"], ".")
axes[0].axline((0, 0), slope=1, color="0.7", zorder=0)
axes[0].set(xlabel="utility by the teacher", ylabel="utility by the student")
bins = np.geomspace(0.1, 200, 40)
axes[1].hist(list(latencies.values()), bins=bins, label=list(latencies))
axes[1].set(xscale="log", xlabel="milliseconds a decision", ylabel="decisions")
axes[1].legend()
