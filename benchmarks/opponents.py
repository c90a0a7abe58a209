"""NUTS on the targets of the tables, as good as it can be had: numpyro's, compiled, four chains side by side.

    python benchmarks/opponents.py --targets gmm9 mw54 --max-evals 1000000
    python benchmarks/opponents.py --targets funnel --max-seconds 30

Needs numpyro (``pip install -e ".[benchmarks]"``). numpyro cannot differentiate a torch function, so the log densities
are written again here, from the parameters of the torch targets (`tests/test_benchmarks.py` compares the two).

What is counted and timed. An evaluation is one of the log density together with its gradient: a leapfrog step, warm-up
included. Chains that run side by side wait for the one with the longest trajectory; the evaluations of those that wait
are not counted, their time is. Compilation is timed apart. The seconds of a run are those of warm-up and draws, with as
many threads as torch has.
"""

import argparse
import collections
import functools
import math
import os
import time
from dataclasses import dataclass

import numpy as np
import torch

from skcds import metrics, targets

os.environ.setdefault("NPROC", str(torch.get_num_threads()))  # XLA takes as many threads as torch, if told in time
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import NUTS

CHUNK = 100  # draws of every chain between two looks at the budget
MAX_KEPT = 4_000_000  # numbers kept of all draws: every second draw is dropped as often as needed
MAX_STRETCH = 100_000  # latest draws of every chain that are kept without thinning
ENOUGH = 1000  # effective draws among the latest ones from which the effective sample size of all is estimated
MIN_DRAWS = 4  # of every chain, for an effective sample size
MISSED_MODES = 0.1  # mode total variation above which modes count as missed
NEVER = "NUTS never"


# -------------------------------------------------------------------- log densities in jax, of a single point (d,)


@functools.singledispatch
def log_density(target):
    """Log density of a target of `skcds.targets` as a jax function of one point (d,)."""
    raise TypeError(f"There is no jax version of {target!r}.")


@log_density.register
def _(target: targets.GaussianMixture):
    means, log_masses = jnp.asarray(target.means), jnp.log(jnp.asarray(target.mode_masses))
    return lambda x: jax.nn.logsumexp(log_masses + norm.logpdf(x, means, target.sd).sum(1))


@log_density.register
def _(target: targets.ManyWell):
    m = target.n_wells
    return lambda x: -((x[:m] ** 2 - target.delta) ** 2).sum() - 0.5 * (x[m:] ** 2).sum()


@log_density.register
def _(target: targets.Funnel):
    return lambda x: norm.logpdf(x[0], 0.0, target.NECK_SD) + norm.logpdf(x[1:], 0.0, jnp.exp(0.5 * x[0])).sum()


@log_density.register
def _(target: targets.BayesianLogisticRegression):
    design, signs = jnp.asarray(target.design), jnp.asarray(target.signs)
    return lambda x: jax.nn.log_sigmoid(signs * (design @ x)).sum() + norm.logpdf(x, 0.0, target.prior_sd).sum()


@log_density.register
def _(target: targets.LogGaussianCoxProcess):
    root = target._cholesky()
    matrix = jnp.asarray(
        root if target.whitened else np.linalg.inv(root)
    )  # a product is faster than a triangular solve
    counts, log_det = jnp.asarray(target.counts.ravel()), 0.0 if target.whitened else np.log(np.diag(root)).sum()

    def log_prob(x):
        noise, field = (x, target.mean + matrix @ x) if target.whitened else (matrix @ (x - target.mean), x)
        return norm.logpdf(noise).sum() - log_det + counts @ field - jnp.exp(field).sum() / target.n_features

    return log_prob


# -------------------------------------------------------------------- runs within a budget


@dataclass(frozen=True)
class NutsRun:
    """Draws of NUTS and what they cost.

    Attributes
    ----------
    draws : ndarray of shape (n_chains, n_kept, n_features)
        Draws after warm-up, float32; every k-th one where a long run was thinned to save memory.
    n_draws : int
        Number of draws of all chains, those thinned out included.
    ess : ndarray of shape (n_features,)
        Effective sample size of every coordinate, of all draws.
    n_evals, n_warmup_evals : int
        Evaluations of log density and gradient: all, and those of the warm-up.
    seconds, warmup_seconds, compile_seconds : float
        Time of warm-up and draws, of the warm-up, and of compilation, which comes on top.
    stopped_by : {"evaluations", "seconds"}
        The budget that ended the run.
    n_diverging : int
        Divergent transitions after warm-up.
    """

    draws: np.ndarray
    n_draws: int
    ess: np.ndarray
    n_evals: int
    n_warmup_evals: int
    seconds: float
    warmup_seconds: float
    compile_seconds: float
    stopped_by: str
    n_diverging: int

    @property
    def min_ess(self) -> float:
        """Effective sample size of the coordinate that has the least."""
        return float(self.ess.min())

    @property
    def seconds_per_effective_draw(self) -> float:
        """Seconds of sampling, without warm-up and compilation, over `min_ess`."""
        return (self.seconds - self.warmup_seconds) / self.min_ess if self.min_ess > 0 else math.inf

    def pooled(self) -> np.ndarray:
        """The kept draws of all chains, (n_chains * n_kept, n_features), float64."""
        return self.draws.reshape(-1, self.draws.shape[2]).astype(np.float64)


class _Kept:
    """Draws of a run of unknown length in bounded memory: thinned ones of all of it, all ones of the latest part."""

    def __init__(self, n_features: int):
        self.n, self.every, self.limit = 0, 1, max(2 * CHUNK, MAX_KEPT // n_features)
        self.thinned: list[np.ndarray] = []  # chunks (rows, n_chains, d)
        self.latest = collections.deque(maxlen=max(1, min(MAX_STRETCH, self.limit) // CHUNK))

    def add(self, z: np.ndarray) -> None:
        """The next draws (rows, n_chains, d)."""
        self.latest.append(z)
        self.thinned.append(z[(self.n + np.arange(len(z))) % self.every == 0])
        self.n += len(z)
        if self.n // self.every * z.shape[1] > self.limit:
            self.thinned, self.every = [np.concatenate(self.thinned)[::2]], 2 * self.every

    def draws(self) -> np.ndarray:
        """(n_chains, n_kept, d)."""
        return np.concatenate(self.thinned).swapaxes(0, 1)

    def ess(self) -> np.ndarray:
        """Effective sample size of every coordinate (d,), of all draws.

        That of the latest draws, scaled, where these mix: thinned ones would say less. That of the thinned draws of
        the whole run where a chain seldom leaves a mode.
        """
        latest, draws = np.concatenate(self.latest).swapaxes(0, 1), self.draws()
        if min(latest.shape[1], draws.shape[1]) < MIN_DRAWS:
            return np.zeros(latest.shape[2])
        sizes = [float(effective_sample_size(latest[:, :, i])) for i in range(latest.shape[2])]
        return np.nan_to_num([
            size * self.n / latest.shape[1] if size > ENOUGH else float(effective_sample_size(draws[:, :, i]))
            for i, size in enumerate(sizes)
        ])  # fmt: skip


def run_nuts(target, seed=0, max_evals=None, max_seconds=None, n_chains=4, n_warmup=500) -> NutsRun:
    """Chains from N(0, I) starts until a budget is spent, warm-up included; that of evaluations is never exceeded.

    The kernel is `numpyro.infer.NUTS` with its defaults. It is advanced in compiled chunks, since `numpyro.infer.MCMC`
    compiles anew for every run, and a budget of seconds needs many. The warm-up is rounded up to whole chunks.
    """
    if max_evals is None and max_seconds is None:
        raise ValueError("Give max_evals, max_seconds or both.")
    max_evals, max_seconds = max_evals or math.inf, max_seconds or math.inf
    n_warmup = CHUNK * math.ceil(n_warmup / CHUNK)
    start = time.perf_counter()
    state, advance = _compiled(target, seed, n_chains, n_warmup)
    compile_seconds = time.perf_counter() - start

    kept, n_evals, n_done, n_diverging, clock = _Kept(target.n_features), n_chains, 0, 0, time.perf_counter()
    warmup_seconds, n_warmup_evals, stopped_by = 0.0, n_evals, ""
    while not stopped_by:
        state, (z, n_steps, diverging) = advance(state)
        spent = n_evals + np.cumsum(np.asarray(n_steps).sum(1))  # (CHUNK,)
        affordable = int((spent <= max_evals).sum())
        n_evals = int(spent[affordable - 1]) if affordable else n_evals
        seconds = time.perf_counter() - clock
        if n_done < n_warmup:
            warmup_seconds, n_warmup_evals = seconds, n_evals
        elif affordable:
            kept.add(np.asarray(z)[:affordable])
            n_diverging += int(np.asarray(diverging)[:affordable].sum())
        n_done += CHUNK
        stopped_by = "evaluations" if affordable < CHUNK else "seconds" if seconds >= max_seconds else ""
    nothing = np.empty((n_chains, 0, target.n_features), np.float32)
    return NutsRun(
        kept.draws() if kept.n else nothing, kept.n * n_chains, kept.ess() if kept.n else np.zeros(target.n_features),
        n_evals, n_warmup_evals, seconds, warmup_seconds, compile_seconds, stopped_by, n_diverging,
    )  # fmt: skip


def _compiled(target, seed, n_chains, n_warmup):
    """The state of chains at their starts, and a compiled function that advances them by `CHUNK` draws."""
    log_prob = log_density(target)
    kernel = NUTS(potential_fn=lambda x: -log_prob(x))
    start_key, *keys = jax.random.split(jax.random.PRNGKey(seed), n_chains + 1)
    starts = jax.random.normal(start_key, (n_chains, target.n_features))
    state = kernel.init(jnp.stack(keys), n_warmup, starts, (), {})

    def step(state, _):
        state = kernel.sample(state, (), {})
        return state, (state.z, state.num_steps, state.diverging)

    advance = jax.jit(lambda state: jax.lax.scan(step, state, length=CHUNK))
    return state, advance.lower(state).compile()


def draws_to_win(fit_seconds, seconds_per_draw, ess_share, nuts_seconds_per_effective_draw, nuts_mode_tv=None):
    """Effective draws from which a fitted sampler has taken less time than NUTS.

    The least n with ``fit_seconds + n * seconds_per_draw / ess_share < n * nuts_seconds_per_effective_draw``. NUTS is
    not charged for its warm-up and compilation.

    Parameters
    ----------
    fit_seconds : float
        Seconds that the fit took, that of a teacher included.
    seconds_per_draw, ess_share : float
        Of the fitted sampler: seconds for a draw, and normalised ESS of its weights.
    nuts_seconds_per_effective_draw : float
        Of NUTS.
    nuts_mode_tv : float, optional
        Total variation of the mode masses of the draws of NUTS; above 0.1 it has missed modes.

    Returns
    -------
    float or str
        ``inf`` where NUTS is faster for each effective draw, ``"NUTS never"`` where it has missed modes.
    """
    if nuts_mode_tv is not None and nuts_mode_tv > MISSED_MODES:
        return NEVER
    saved = nuts_seconds_per_effective_draw - seconds_per_draw / ess_share
    if math.isinf(saved):
        return NEVER
    return fit_seconds / saved if saved > 0 else math.inf


def main():
    from paper_tables import TARGETS  # which imports this module where it is needed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=["gmm9", "mw54"], choices=list(TARGETS))
    parser.add_argument("--data", help="folder with ionosphere.csv and finnish_pines.csv")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--max-evals", type=int, default=None)
    parser.add_argument("--max-seconds", type=float, default=None)
    args = parser.parse_args()
    if args.max_evals is None and args.max_seconds is None:
        parser.error("give --max-evals, --max-seconds or both")
    print("| target | seed | evals | draws | s | warm-up s | compile s | min ESS | ESS / s | divergent | mode TV |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for wanted in args.targets:
        name, target = TARGETS[wanted](args.data)
        for seed in args.seeds:
            run = run_nuts(target, seed, args.max_evals, args.max_seconds)
            judged = hasattr(target, "modes") and run.n_draws > 0
            tv = metrics.mode_total_variation(run.pooled(), target) if judged else math.nan
            print(
                f"| {name} | {seed} | {run.n_evals:.2g} | {run.n_draws} | {run.seconds:.1f} | {run.warmup_seconds:.1f} "
                f"| {run.compile_seconds:.1f} | {run.min_ess:.0f} | {1 / run.seconds_per_effective_draw:.0f} "
                f"| {run.n_diverging} | {tv:.3f} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
