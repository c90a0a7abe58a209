"""What the documentation of the samplers has in common, from one source."""

__all__ = ["filled"]

import re
import textwrap

SHARED = """
learning_rate : float, default=4e-3
    Of AdamW at its height.
feature_names : array-like of str, default=None
    Names of the coordinates; by default ``energy_fn.feature_names``, or else x0, x1 and so on.
n_features : int, default=None
    Dimension; by default ``energy_fn.n_features``, or as many as there are names or pairs of bounds.
max_time : float, default=None
    Seconds that the fit may take from call to return: shares of them are kept for the pilot, for training and
    for the judgement of evaluation draws. A single call of `energy_fn` is waited for.
max_energy_evals : int, default=None
    Points that `energy_fn` may be asked for in all, at least 200. The fit is planned for it: with fewer
    particles, fewer moves of them, and without scores of the target where they are few.
    With at most 300 000 all points that the pilot draws are kept and weighed (adaptive importance sampling).
    Without `max_time` and this, a fit in up to 64 dimensions to an energy of which 300 000 take more than two minutes
    is limited to 10 000, 30 000 or 100 000 by itself: the most that take no longer, or 10 000. Up to some hundred more
    measure how long they take.
n_init : int, default=1
    Independent fits, each with the limits of one, of which the best by the evidence lower bound of evaluation draws
    is kept. The bound hardly minds a missed mode.
n_jobs : int, default=None
    Workers that several fits, and the chunks of large samples, are shared among by joblib; None is 1 unless in a
    `joblib.parallel_config` context, and -1 all processors. The results do not depend on it.
verbose : int, default=0
    1 shows one line of progress from the first second on: phase, time left, evaluations and their rate, log Z and
    normalised ESS so far. 2 keeps a line for every phase.
random_state : int, RandomState instance, numpy.random.Generator or None, default=None
    Seed of the fit.
n_features_in_ : int
    Dimension.
feature_names_out_ : ndarray of shape (n_features,)
    Names of the coordinates.
bounds_ : ndarray of shape (n_features, 2) or None
    Lower and upper bounds, infinite where there is none; None without any.
bounds_scale_ : ndarray of shape (n_features,) or None
    Distance from a single bound that zero stands for in unconstrained coordinates: the median of a short pilot run.
seam_ : ndarray of shape (n_features,) or None
    Where periodic coordinates are cut open inside the sampler; NaN for the others, None without any.
log_evidence_, log_evidence_se_ : float
    Estimate of log Z from one-step evaluation draws, with its standard error.
ess_ : float
    Normalised ESS of their exact weights, in (0, 1].
elbo_ : float
    Their mean log weight, an evidence lower bound (of a map that folds no bound).
total_variation_ : float
    Total variation between their distribution and the target, as the weights see it: how wrong draws without weights
    are. See `skcds.importance.total_variation`. NaN for a file from before there was one.
converged_ : bool
    Whether their Pareto k is at most `skcds.importance.pareto_k_limit`, 0.7 for so many.
loss_curve_ : list of float
    Loss of every iteration.
history_ : list of PhaseRecord
    Phases of the training that ran, each with its `name`, its `n_iter` and what its losses are of in turn, `cycle`.
n_iter_ : int
    Iterations done.
n_energy_evals_, n_grad_evals_, n_network_evals_ : int
    Evaluations of the energy, of its gradient, and of networks, in points.
interrupted_ : bool
    Whether the user ended the training.
n_rollbacks_ : int
    How often training diverged and went back to an earlier state.
fit_time_ : float
    Seconds; not part of a pickle.
pilot_ : PilotResult or None
    What the pilot found; with `bounds`, in unconstrained coordinates.
particles_ : ndarray of shape (n_particles, n_features)
    Particles as they were left at the end; with `bounds`, in unconstrained coordinates.
violation_share_ : float
    Share of evaluation draws at which the map was found not to be injective; 0 for a coupling map.
bounds : pair or array-like of shape (n_features, 2), default=None
    Lower and upper bound of every coordinate, or one pair for all; None or infinity where there is none. By default
    ``energy_fn.bounds``, if the energy has such an attribute. The sampler works in unconstrained coordinates, by the
    normal distribution function, so that `energy_fn` is never called on a bound or beyond. Draws, weights and log Z are
    those of the density in the box. A bound ends the density: nothing is reflected there, nor goes on at the other
    bound unless the coordinate is periodic.
periodic : array-like of int or str, default=None
    Coordinates that are periodic, as angles are, by number or name. Each needs two finite bounds, whose difference is
    its period. A mode across the bounds is one mode: the sampler cuts the circle open elsewhere, where the pilot finds
    least (from ``start="prior"`` at the lower bound). Draws are between the bounds, and so are the points that
    `energy_fn` is called at; points that are passed may be any number of periods away.
device : str, default="auto"
    Where training and draws run: "cpu", "cuda" or one like "cuda:1"; "auto" is CUDA where there is one. A sampler
    that is loaded elsewhere is put on the CPU where its device is missing. Draws of one seed are of the same random
    numbers on every device; those of training are not.
n_contexts_in_ : int
    Numbers of a context; 0 for a single density.
context_names_in_ : ndarray of shape (n_contexts,) or None
    Their names; None for a single density.
contexts_ : ndarray of shape (m, n_contexts) or None
    Up to 1000 contexts, of which a hundred were held out to judge the fit of a family; for one, `log_evidence_`,
    `elbo_`, `ess_` and `total_variation_` are means over these, and `converged_` says that the weights of nine of ten
    are reliable.
"""

# The arguments of methods that draw.
OF_METHODS = """
n : int
    Number of draws.
random_state : int, RandomState instance, numpy.random.Generator or None, default=None
    Seed. The first rows of a larger sample are those of a smaller one, to single precision.
context : array-like of shape (n_contexts,) or (m, n_contexts), optional
    Of a sampler that was fitted to a family of densities: which of them, or which many of them.
polish : int, default=0
    Markov steps that every one-step draw is moved by; see `sample_polished`, which also tells how many were
    accepted. They need the energy.
exact : bool, default=False
    Whether each draw is the first of a sequence of one-step draws that rejection by their exact weights keeps:
    independent draws from the target, but for a total variation of at most .001 by which weights are
    truncated. A call evaluates the energy at 10 000 points, and at as many for a draw as
    `skcds.importance.rejection_limit` of `sample_weighted` says: a few for a good fit. It needs the energy, and
    what the map has no draws of stays missing.
energy_fn, grad_fn : callable, optional
    The energy, for a sampler that was loaded without it.
out : ndarray of shape (n, n_features), optional
    Where the draws go, for example a memory map; floating point numbers of any precision.
as_frame : bool, default=False
    Whether to return a pandas data frame with named columns.
return_log_density : bool, default=False
    Whether to return the log density of the draws, too, by the same pass of the map; see `score_samples`.
X : ndarray of shape (n, n_features)
    Draws, float64, or `out`, or a data frame. For many contexts (m, n, n_features), or a data frame with one
    more column, ``context``, of their numbers.
log_density : ndarray of shape (n,)
    Float64; only with ``return_log_density=True``.
WeightedSample
    For many contexts a list of them. ``is_bound`` says whether the mean log weight is a lower bound of log Z in
    expectation: always for a coupling map; for a residual one only where no violation of injectivity was
    found, else a warning is given.
"""


def _parsed(text: str) -> dict[str, str]:
    """Paragraphs of numpydoc by the first name of each."""
    blocks = re.split(r"\n(?=\S)", text.strip("\n"))
    return {re.split(r"[ ,:\n]", block)[0]: block for block in blocks}


BLOCKS, BLOCKS_OF_METHODS = _parsed(SHARED), _parsed(OF_METHODS)


def filled(doc: str | None, of_method: bool = False) -> str | None:
    """A docstring in which each line ``{name}`` is replaced by what all samplers say of a parameter or attribute.

    Parameters
    ----------
    doc : str or None
        The docstring; None where Python leaves them out.
    of_method : bool, default=False
        Whether it is that of a method, the arguments of which share some names with parameters.
    """
    blocks = BLOCKS_OF_METHODS if of_method else BLOCKS
    if doc is None:
        return None

    def block(found):
        return textwrap.indent(blocks.get(found[2], found[0].strip()), found[1])

    return re.sub(r"^( +)\{(\w+)\}$", block, doc, flags=re.M)
