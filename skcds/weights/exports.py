"""Weighted draws in the forms of other libraries."""

__all__ = ["Exported", "checked_details"]

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from ..io.export import to_anesthetic, to_arviz, to_frame, to_getdist


class Exported:
    """Of a `WeightedSample`."""

    samples: np.ndarray
    log_weights: np.ndarray
    feature_names: np.ndarray | None
    log_density: np.ndarray | None
    log_likelihood: np.ndarray | None
    derived: dict[str, np.ndarray] | None
    parameter_names: tuple[str, ...] | None
    _resampled: Callable[..., np.ndarray]

    @property
    @abstractmethod
    def weights(self) -> np.ndarray:
        """Normalised weights."""

    @property
    @abstractmethod
    def log_evidence(self) -> float:
        """Estimate of log Z."""

    @property
    @abstractmethod
    def log_evidence_se(self) -> float:
        """Standard error of `log_evidence`."""

    def posterior(self):
        """The draws of the parameters with normalised log weights, as samplers of nautilus and pocoMC give them.

        Returns
        -------
        samples : ndarray of shape (n, d)
            Parameters: the draws, or what they stand for where they are in the unit cube of a prior.
        log_weights : ndarray of shape (n,)
            Logarithms of weights that sum to 1.
        log_density : ndarray of shape (n,) or None
            Log density of the draws, prior times likelihood, not normalised; None where it is not known. In the unit
            cube of a prior it is the log likelihood.
        """
        X = np.column_stack([*self._parameters.values()])
        with np.errstate(divide="ignore"):
            log_weights = np.log(self.weights)
        return X, log_weights, self.log_density

    def evidence(self):
        """Log evidence and its standard error, as a pair.

        Returns
        -------
        log_z : float
            `log_evidence`.
        error : float
            `log_evidence_se`.
        """
        return self.log_evidence, self.log_evidence_se

    @property
    def _parameters(self) -> dict[str, np.ndarray]:
        """Columns (n,) of the parameters by name."""
        if self.parameter_names is not None:
            assert self.derived is not None  # since they are among these
            return {name: self.derived[name] for name in self.parameter_names}
        assert self.feature_names is not None  # since the draws were made
        return dict(zip(self.feature_names, self.samples.T, strict=True))

    @property
    def _columns(self) -> dict[str, np.ndarray]:
        """Columns (n,) of the parameters and of derived quantities."""
        return self._parameters | (self.derived or {})

    def to_frame(self):
        """The draws as a pandas data frame with columns for features, derived quantities, and ``log_weight``.

        Returns
        -------
        pandas.DataFrame
            Of shape (n, d + 1) without derived quantities.

        Raises
        ------
        ImportError
            Without pandas.
        """
        return to_frame(self.samples, self.feature_names, **(self.derived or {}), log_weight=self.log_weights)

    def to_arviz(self, resample=True, random_state=None, constrain=None):
        """The draws as an ArviZ posterior.

        ArviZ takes the draws of a posterior to be equally good, so that by default there are as many draws resampled in
        proportion to their weights, which repeat each other: what ArviZ gives as effective sample size counts
        repetitions as new, and `ess` does not.

        Parameters
        ----------
        resample : bool, default=True
            Whether to resample. Otherwise the draws are those of the sampler, which ArviZ summarises without their
            weights, with ``log_weight`` among the statistics of the draws.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            For the resampling.
        constrain : callable, default=None
            Maps draws (n, d) to a dictionary of arrays (n, ...), which then are the variables, as the method
            ``constrain`` of energies of models does (`skcds.adapters`). By default the variables are the parameters.

        Returns
        -------
        InferenceData or DataTree
            As the installed ArviZ has it, with derived quantities as variables. Independent draws are arranged in four
            chains where their number allows. The posterior's attributes tell ``ess``, ``pareto_k``, ``log_evidence``
            and ``log_evidence_se``. Statistics of the draws are ``lp``, the log density, and ``log_likelihood_sum``,
            that of all data together, where they are known.

        Raises
        ------
        ImportError
            Without ArviZ.
        """
        attrs = {name: getattr(self, name) for name in ("ess", "pareto_k", "log_evidence", "log_evidence_se")}
        n = len(self.samples)
        rows = self._resampled(n, random_state) if resample else np.arange(n)
        variables = {name: column[rows] for name, column in self._columns.items()}
        if constrain is not None:
            derived = {name: column[rows] for name, column in (self.derived or {}).items()}
            variables = derived | constrain(self.samples[rows])
        stats: dict[str, Any] = {"lp": self.log_density, "log_likelihood_sum": self.log_likelihood}
        if not resample:
            stats["log_weight"] = self.log_weights
        return to_arviz(variables, attrs, **{name: s[rows] for name, s in stats.items() if s is not None})

    def to_getdist(self, labels=None, **options):
        """The draws with their weights as GetDist's `MCSamples`, for its plots and tables.

        Parameters
        ----------
        labels : dict, default=None
            LaTeX by name, without dollar signs; other names stand for themselves.
        **options
            Further arguments of `MCSamples`, such as ``label`` of the draws, ``ranges`` and ``settings``.

        Returns
        -------
        getdist.MCSamples
            Of the parameters and of derived quantities; white space in names is replaced by underscores. Its
            ``loglikes`` are minus the log density where it is known.

        Raises
        ------
        ImportError
            Without GetDist.
        """
        return to_getdist(self._columns, self._parameters, self.weights, self.log_density, labels or {}, options)

    def to_anesthetic(self, labels=None, **options):
        """The draws with their weights as anesthetic's `Samples`, for its plots.

        They are no nested sampling run: what needs live points, such as anesthetic's own evidence, is not there. See
        `evidence`.

        Parameters
        ----------
        labels : dict, default=None
            LaTeX by name; other names stand for themselves.
        **options
            Further arguments of `Samples`, such as ``label`` of the draws.

        Returns
        -------
        anesthetic.Samples
            Of the parameters and of derived quantities, with a column ``logL`` where the log likelihood is known.

        Raises
        ------
        ImportError
            Without anesthetic.
        """
        return to_anesthetic(self._columns, self.weights, self.log_likelihood, labels or {}, options)


def checked_details(weighted: Exported) -> dict[str, Any]:
    """The optional fields of weighted draws: as arrays, one number a draw each.

    Raises
    ------
    ValueError
        When one has another shape, or a parameter has no column.
    """
    n = len(weighted.samples)

    def column(value, name):
        array = np.asarray(value, dtype=np.float64)
        if array.shape != (n,):
            raise ValueError(f"{name} has to have one number a draw, shape ({n},); got shape {array.shape}.")
        return array

    derived = {str(key): column(value, f"derived[{key!r}]") for key, value in (weighted.derived or {}).items()}
    assert weighted.feature_names is not None  # since they are checked before
    taken = [name for name in derived if name in {*weighted.feature_names, "log_weight"}]
    if taken:
        raise ValueError(f"derived[{taken[0]!r}] has the name of another column: choose a new one.")
    names = weighted.parameter_names
    lacking = [name for name in names or () if name not in derived]
    if lacking:
        raise ValueError(f"parameter_names has {lacking[0]!r}, which is not among the names of derived.")
    found: dict[str, Any] = {"derived": derived or None, "parameter_names": None if names is None else tuple(names)}
    for name in ("log_density", "log_likelihood"):
        value = getattr(weighted, name)
        found[name] = None if value is None else column(value, name)
    return found
