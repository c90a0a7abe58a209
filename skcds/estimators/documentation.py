"""What the documentation of the samplers has in common, from one source."""

__all__ = ["filled"]

import re
import textwrap

SHARED = """
learning_rate : float, default=4e-3
    Of AdamW at its height.
n_init : int, default=1
    Independent fits, each with the limits of one, of which the best by the evidence lower bound of held-out draws
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
    Share of held-out draws at which the map was found not to be injective; 0 for a coupling map.
bounds : pair or array-like of shape (n_features, 2), default=None
    Lower and upper bound of every coordinate, or one pair for all; None or infinity where there is none. The
    sampler works in unconstrained coordinates, by the normal distribution function, so that `energy_fn` is never
    called on a bound or beyond; draws, weights and log Z are those of the density in the box. A bound ends the
    density: nothing is reflected there, nor goes on at the other bound unless the coordinate is periodic.
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


def _parsed(text: str) -> dict[str, str]:
    """Paragraphs of numpydoc by the first name of each."""
    blocks = re.split(r"\n(?=\S)", text.strip("\n"))
    return {re.split(r"[ ,:]", block)[0]: block for block in blocks}


BLOCKS = _parsed(SHARED)


def filled(doc: str | None) -> str | None:
    """A docstring in which each line ``{name}`` is replaced by what all samplers say of a parameter or attribute.

    Parameters
    ----------
    doc : str or None
        The docstring; None where Python leaves them out.
    """
    if doc is None:
        return None

    def block(found):
        return textwrap.indent(BLOCKS.get(found[2], found[0].strip()), found[1])

    return re.sub(r"^( +)\{(\w+)\}$", block, doc, flags=re.M)
