"""When training has paid for itself."""

__all__ = ["break_even"]


import numpy as np


def break_even(n_training_evals, n_steps_before, n_steps=1):
    """Number of draws from which a sampler of few steps has paid for its training, in network evaluations.

    It is the number of training evaluations, divided by the evaluations saved for each draw. With three evaluations for
    every row of a batch this is the paper's ``S = 3 I B / (N - 1)``, for I iterations with batches of B rows. Pass a
    count as `n_training_evals`, such as ``student.n_network_evals_``.

    Parameters
    ----------
    n_training_evals : int
        Network evaluations, in points, that training has cost beyond that of the sampler of many steps.
    n_steps_before : int
        Network evaluations for each draw of the sampler of many steps.
    n_steps : int, default=1
        Network evaluations for each draw of the sampler of few steps.

    Returns
    -------
    float
        ``inf`` when nothing is saved.

    References
    ----------
    Jutras-Dubé, Pynadath & Zhang, "Single-Step Consistent Diffusion Samplers", arXiv:2502.07579.

    Examples
    --------
    >>> break_even(3 * 2000 * 512, n_steps_before=129)
    24000.0
    """
    if n_training_evals < 0 or n_steps < 1 or n_steps_before < 1:
        raise ValueError(
            "n_training_evals has to be at least 0 and the numbers of steps at least 1; got "
            f"{n_training_evals}, {n_steps_before} and {n_steps}."
        )
    saved = n_steps_before - n_steps
    return float(n_training_evals / saved) if saved > 0 else np.inf
