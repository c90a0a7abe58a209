"""Energies from Stan programs, through PyStan."""

__all__ = ["from_stan"]

import math
import re
from collections.abc import Sequence
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from .._support.settings import CPU
from .._support.warnings import warn_user
from ._common import UNCONSTRAINED, ConstrainedEnergy

WRONG_SIZE = "number of parameters does not match"  # what Stan says to a point of the wrong dimension
BASE, SHIFT = 0.1, 0.5  # of the unconstrained coordinates that are shifted one by one to see what becomes of them


def from_stan(posterior, *, n_features: int | None = None) -> ConstrainedEnergy:
    """Energy of the posterior of a Stan program, in unconstrained coordinates.

    It is minus Stan's ``target``, with the log Jacobian of the constraining transforms. **Stan drops constants** from
    statements with ``~``, and from the functions that end in ``_lupdf``: a sampler's log evidence is the log marginal
    likelihood only where the program writes ``target += normal_lpdf(y | mu, sigma)`` instead of
    ``y ~ normal(mu, sigma)``.

    Each row is a call for the value and another for the gradient. The compiled program is called directly, past
    PyStan's server: some 20 microseconds a call for the eight schools instead of 4000, and more for more data, which
    Stan reads again in every call. Where PyStan's parts are not as expected the server is asked.

    Parameters
    ----------
    posterior : stan.model.Model
        What ``stan.build(program_code, data=data)`` returns.
    n_features : int, optional
        Number of unconstrained coordinates. By default found by trying, which PyStan leaves as the only way.

    Returns
    -------
    AdaptedEnergy
        Takes tensors, with a gradient; points that Stan rejects are outside the support, and the first is warned of.
        In its `feature_names` indices start from 0, and "(unconstrained)" is after those of transformed ones. Its
        method `constrain` maps draws (n, n_features) to a dictionary of parameters and transformed parameters.
        Generated quantities are left out: PyStan draws their random numbers anew from the same seed for each point.

    Raises
    ------
    TypeError
        When `posterior` is something else, such as the fit that ``posterior.sample`` returns.
    ValueError
        When the program has no parameters, or their number is not found.
    """
    missing = [name for name in ("log_prob", "grad_log_prob", "constrain_pars") if not hasattr(posterior, name)]
    if missing:
        raise TypeError(
            'posterior has to be what stan.build returns, of PyStan 3 or later: pip install "skcds[stan]"; '
            f"got {type(posterior).__name__}, which has no {missing[0]}."
        )
    return _StanEnergy(posterior, n_features)


class _StanEnergy(ConstrainedEnergy):
    _origin = "Stan program"

    def __init__(self, posterior, n_features: int | None):
        self._program, self._warned = _program(posterior), False
        d = self._find_size(_upper_bound(posterior)) if n_features is None else n_features
        super().__init__(d, self._find_names(d, posterior.constrained_param_names), "posterior")
        self._shapes = _leading(posterior, len(self._program.constrain([BASE] * d, True)))
        self.constrained_names = list(self._shapes)

    def _log_prob_and_score(self, points: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        pairs = [self._row(x, with_gradient) for x in points.tolist()]
        values, scores = zip(*pairs, strict=True)
        score = torch.tensor(scores, dtype=torch.float64, device=CPU) if with_gradient else None
        return torch.tensor(values, dtype=torch.float64, device=CPU), score

    def _row(self, x: list[float], with_gradient: bool) -> tuple[float, Sequence[float]]:
        try:
            return self._program.log_prob(x), self._program.gradient(x) if with_gradient else ()
        except _Rejected as error:
            if not self._warned:
                warn_user(f"Stan rejected a point, which counts as outside the support: {error}", RuntimeWarning)
            self._warned = True
            return -math.inf, [0.0] * len(x) if with_gradient else ()

    def _constrain(self, X: np.ndarray) -> dict[str, np.ndarray]:
        rows, values, first = np.array([self._program.constrain(x, True) for x in X.tolist()]), {}, 0
        for name, shape in self._shapes.items():
            last = first + math.prod(shape)
            values[name] = rows[:, first:last].reshape(-1, *shape[::-1]).transpose(0, *range(len(shape), 0, -1))
            first = last
        return values

    def _find_size(self, most: int) -> int:
        for size in range(most, 0, -1):
            try:
                self._program.log_prob([BASE] * size)
            except _Rejected as error:
                if WRONG_SIZE in str(error):
                    continue
            return size
        raise ValueError(
            "The Stan program has no parameters, or more than could be found out: pass their number, that of the "
            "unconstrained coordinates, as n_features=."
        )

    def _find_names(self, d: int, constrained_names: Sequence[str]) -> list[str] | None:
        """Coordinates that move one entry of a parameter have the entry's name, others a number within theirs."""
        base = np.array(self._program.constrain([BASE] * d, False))
        points = (BASE + SHIFT * np.eye(d)).tolist()
        moved = [np.flatnonzero(np.array(self._program.constrain(x, False)) != base) for x in points]
        if not all(map(len, moved)):
            return None
        entries = [constrained_names[which[0]].split(".") for which in moved]
        several = {name for (name, *_), which in zip(entries, moved, strict=True) if len(which) > 1}
        names, counts = [], dict.fromkeys(several, 0)
        plain = [len(which) == 1 and base[which[0]] == BASE for which in moved]
        for (name, *index), is_plain in zip(entries, plain, strict=True):
            if name in several:
                index, counts[name] = [counts[name] + 1], counts[name] + 1
            name += f"[{', '.join(str(int(i) - 1) for i in index)}]" if index else ""
            names.append(name + ("" if is_plain else UNCONSTRAINED))
        return names


class _Rejected(Exception):
    """Stan has no log density at a point; its message."""


class _Direct:
    """Calls of the compiled program in this process."""

    def __init__(self, posterior):
        models = import_module("httpstan.models")
        self.module, self.data = models.import_services_extension_module(posterior.model_name), dict(posterior.data)
        _ = self.module.log_prob, self.module.log_prob_grad, self.module.write_array

    def log_prob(self, x: list[float]) -> float:
        return self._rejecting(self.module.log_prob, x, True)

    def gradient(self, x: list[float]) -> list[float]:
        return self._rejecting(self.module.log_prob_grad, x, True)

    def constrain(self, x: list[float], transformed: bool) -> list[float]:
        return self.module.write_array(self.data, x, transformed, False)

    def _rejecting(self, function, *args):
        try:
            return function(self.data, *args)
        except ValueError as error:  # Stan's domain error
            raise _Rejected(str(error)) from error
        except RuntimeError as error:
            if WRONG_SIZE in str(error):
                raise _Rejected(str(error)) from error
            raise


class _Server:
    """Calls through PyStan's own methods, each of which starts a server."""

    def __init__(self, posterior):
        self.posterior = posterior

    def log_prob(self, x: list[float]) -> float:
        return self._rejecting(self.posterior.log_prob, x)

    def gradient(self, x: list[float]) -> list[float]:
        return self._rejecting(self.posterior.grad_log_prob, x)

    def constrain(self, x: list[float], transformed: bool) -> list[float]:
        return self.posterior.constrain_pars(x, include_tparams=transformed, include_gqs=False)

    def _rejecting(self, function, x):
        try:
            return function(x)
        except RuntimeError as error:
            if "Error calling log_prob" in str(error):
                raise _Rejected(str(error)) from error
            raise


def _program(posterior) -> _Direct | _Server:
    try:
        return _Direct(posterior)
    except (ImportError, KeyError, AttributeError):
        return _Server(posterior)


def _upper_bound(posterior) -> int:
    """Entries of the parameters that the program declares, of which no constraint makes more coordinates."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", posterior.program_code, flags=re.DOTALL)
    code = re.sub(r"\btransformed\s+parameters\b", "", code)
    block = re.search(r"\bparameters\s*\{(.*?)\}\s*(?:model|generated\b|\{|$)", code, flags=re.DOTALL)
    declared = block[1] if block else code
    sizes = zip(posterior.param_names, posterior.dims, strict=True)
    return sum(math.prod(dims) for name, dims in sizes if re.search(rf"\b{re.escape(name)}\b", declared))


def _leading(posterior, width: int) -> dict[str, tuple]:
    """Shapes of the parameters that come first, as many as fill `width` numbers."""
    shapes: dict[str, tuple] = {}
    for name, dims in zip(posterior.param_names, posterior.dims, strict=True):
        if width < max(1, math.prod(dims)):
            break
        shapes[name] = tuple(dims)
        width -= math.prod(dims)
    return shapes
