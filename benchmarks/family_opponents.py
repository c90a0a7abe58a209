"""What else draws from the posterior of each of many contexts: NUTS for each, and neural posterior estimation.

Both get the families of `families.py`. Needs numpyro and sbi (``pip install -e ".[benchmarks]"``).

NUTS is numpyro's with its defaults, compiled, one chain for each context, all contexts side by side (``jax.vmap``). An
evaluation is one of the log density with its gradient, a leapfrog step, warm-up included; those of chains that wait for
a longer trajectory are not counted, their time is. Compilation is timed apart.

Neural posterior estimation is sbi's NPE with its default density estimator, on pairs that are simulated, in batches of
500. It asks for no energy in its fit. Its draws get weights from the known energy, as those of skcds do.

Sources: Hoffman and Gelman 2014 (NUTS); Papamakarios and Murray 2016, Greenberg et al. 2019 (NPE); Lopez-Paz and Oquab
2017 (the two-sample test by a classifier).
"""

import os
import time
from dataclasses import dataclass

import numpy as np
import torch

os.environ.setdefault("NPROC", str(torch.get_num_threads()))  # XLA takes as many threads as torch, if told in time

N_WARMUP = 500


def _linear():
    import jax.numpy as jnp

    inputs = jnp.asarray(np.random.default_rng(3).standard_normal((6, 5)), jnp.float32)
    return lambda x, c: -2 * ((c - inputs @ x) ** 2).sum() - 0.125 * (x**2).sum()


def _logistic():
    import jax
    import jax.numpy as jnp

    inputs = jnp.asarray(np.random.default_rng(5).standard_normal((25, 5)), jnp.float32)

    def log_density(x, c):
        logits = inputs @ x
        return (logits * c - jax.nn.softplus(logits)).sum() - 0.125 * (x**2).sum()

    return log_density


LOG_DENSITIES = {"linear": _linear, "logistic": _logistic}  # those of `families.py` again, in jax, of one point


@dataclass(frozen=True)
class Drawn:
    """Draws for each of many contexts, and what they cost."""

    x: np.ndarray  # (m, n, d)
    log_weights: np.ndarray | None  # (m, n), where draws have any
    n_effective: np.ndarray  # (m,), the least of all coordinates for a chain
    fit_seconds: float  # once, compilation or training
    seconds: float  # of all contexts
    n_evals: int  # of the energy for these draws, warm-up included
    n_simulations: int = 0
    n_fit_evals: int = 0

    def spread(self, n: int) -> np.ndarray:
        """`n` draws of each context without weights, evenly spread over all: (m, n, d)."""
        return self.x[:, np.linspace(0, self.x.shape[1] - 1, n).astype(int)]

    def resampled(self, n: int, n_contexts: int, rng: np.random.Generator) -> np.ndarray:
        """`n` draws of each of the first contexts, in proportion to their weights, no draw twice: (m, n, d).

        Draws that came twice would tell a classifier that they are not of the truth. So this takes `n` of many more
        draws, and where fewer have any weight, the others are of the rest.
        """
        if self.log_weights is None:
            return self.spread(n)[:n_contexts]
        keys = self.log_weights[:n_contexts] + rng.gumbel(size=self.log_weights[:n_contexts].shape)
        return np.take_along_axis(self.x[:n_contexts], np.argsort(-keys, 1)[:, :n, None], 1)


def nuts(log_density, contexts: np.ndarray, d: int, n_draws=1000, seed=0) -> Drawn:
    """A chain for each context.

    Parameters
    ----------
    log_density : callable
        jax function of a point (d,) and a context (k,).
    contexts : ndarray of shape (m, k)
    """
    import jax
    import jax.numpy as jnp
    from numpyro.diagnostics import effective_sample_size
    from numpyro.infer import NUTS

    given = jnp.asarray(contexts, jnp.float32)

    def chain(key, c):
        kernel = NUTS(potential_fn=lambda x: -log_density(x, c))
        start_key, key = jax.random.split(key)
        state = kernel.init(key, N_WARMUP, jax.random.normal(start_key, (d,)), (), {})

        def step(state, _):
            state = kernel.sample(state, (), {})
            return state, (state.z, state.num_steps)

        return jax.lax.scan(step, state, length=N_WARMUP + n_draws)[1]

    keys = jax.random.split(jax.random.PRNGKey(seed), len(given))
    start = time.perf_counter()
    run = jax.jit(jax.vmap(chain)).lower(keys, given).compile()
    compiling, start = time.perf_counter() - start, time.perf_counter()
    z, n_steps = (np.asarray(v) for v in run(keys, given))
    seconds = time.perf_counter() - start
    x = z[:, N_WARMUP:].astype(np.float64)
    sizes = np.array([min(float(effective_sample_size(one[None, :, i])) for i in range(d)) for one in x])
    return Drawn(x, None, sizes, compiling, seconds, int(n_steps.sum()))


def npe(simulate, energy, contexts: np.ndarray, n_draws=1000, n_simulations=100_000, max_time=300.0, seed=0) -> Drawn:
    """Neural posterior estimation on simulated pairs, for about `max_time` seconds, then draws with weights.

    Parameters
    ----------
    simulate : callable
        ``simulate(n, rng)`` gives parameters (n, d) and contexts (n, k).
    energy : callable
        Of points (n, d) and contexts (n, k), for the weights.
    contexts : ndarray of shape (m, k)
    """
    from sbi.inference import NPE

    torch.manual_seed(seed)  # sbi takes no generator
    start = time.perf_counter()
    parameters, data = (
        torch.as_tensor(v, dtype=torch.float32) for v in simulate(n_simulations, np.random.default_rng(seed))
    )
    inference = NPE(show_progress_bars=False).append_simulations(parameters, data)
    inference.train(max_num_epochs=1, training_batch_size=500)
    left = max_time - (time.perf_counter() - start)
    n_epochs = 2 + max(0, int(left / inference.summary["epoch_durations_sec"][-1]))
    estimator = inference.train(max_num_epochs=n_epochs, training_batch_size=500, resume_training=True)
    fit_seconds, start = time.perf_counter() - start, time.perf_counter()
    with torch.no_grad():
        given = torch.as_tensor(contexts, dtype=torch.float32)
        # not sample_and_log_prob, whose draws are of other contexts than asked for where there are several (sbi 0.27)
        x = estimator.sample(torch.Size((n_draws,)), condition=given)  # (n, m, d)
        log_q = estimator.log_prob(x, condition=given)  # (n, m)
        x, log_q = x.swapaxes(0, 1).double(), log_q.T.double()
        m, n, d = x.shape
        values = energy(x.reshape(-1, d), given.double().repeat_interleave(n, 0)).reshape(m, n)
    log_weights = (-values - log_q).numpy()
    weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
    n_effective = weights.sum(1) ** 2 / (weights**2).sum(1)
    seconds = time.perf_counter() - start
    return Drawn(x.numpy(), log_weights, n_effective, fit_seconds, seconds, m * n, n_simulations)


def c2st(X: np.ndarray, Y: np.ndarray, seed=0) -> float:
    """Accuracy of a classifier of draws X (n, d) from draws Y (n, d), by sbi: .5 where they are of one law."""
    from sbi.utils.metrics import c2st as accuracy

    return float(accuracy(torch.as_tensor(X), torch.as_tensor(Y), seed=seed))
