"""Every public call of the package with small arguments, and what comes out of it bit by bit.

The calls are generated: of the estimators, all public methods and what copies and pickles them; of modules, all public
names. An argument is found by its name, so that a new method is covered without being named, unless it requires
something that no other does: then `ARGUMENTS` has to know it.
"""

import copy
import dataclasses
import functools
import inspect
import io
import pickle
import types
import warnings
from pathlib import Path

import joblib
import matplotlib
import numpy as np
import samplers
import scipy.stats
import torch
from samplers import KINDS, fitted, make, quadratic
from sklearn.base import BaseEstimator

import skcds
from skcds import PathLoss, Pilot, Prior, adapters, metrics, targets

matplotlib.use("Agg")

D = samplers.D
POINTS = np.random.RandomState(0).normal(1.0, 1.0, (50, D))
ARGUMENTS = {"energy_fn": quadratic, "n": 200, "X": POINTS, "random_state": 0}  # by name, where a method has them
SKIPPED = {"calibrate", "get_metadata_routing", "set_params", "set_fit_request", "set_score_request"}  # of scikit-learn
# More of a method's options than its defaults; those that it does not have are left out.
OPTIONS = {
    "sample": [
        {"polish": 3},
        {"n_steps": 4},
        {"n_steps": 4, "method": "map"},
        {"method": "ode"},
        {"as_frame": True},
        {"exact": True},
    ],
    "sample_weighted": [{"n_steps": 4}, {"n_steps": 4, "method": "map"}],
    "iter_samples": [{"batch_size": 70}],
}


def bits(value):
    """A value as something that is equal where every bit of the value is."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, np.ndarray | list | tuple):
        return [bits(part) for part in value]
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, BaseEstimator):
        return bits(value.__getstate__())
    if dataclasses.is_dataclass(value):
        return {field.name: bits(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "to_numpy"):  # a data frame
        return list(value.columns), bits(value.to_numpy())
    if type(value).__name__ in ("InferenceData", "DataTree"):
        return {str(name): bits(values.to_numpy()) for name, values in value.posterior.data_vars.items()}
    if type(value).__name__.endswith("Display"):
        shown = {name: part for name, part in vars(value).items() if not name.endswith("_")}  # no figures
        return {name: bits(part) for name, part in shown.items() if isinstance(part, np.ndarray | list | float | int)}
    if isinstance(value, types.GeneratorType | types.ModuleType) or callable(value):
        return repr(type(value))
    return repr(value)


def drained(value):
    """Results of a generator, or the value."""
    return list(value) if isinstance(value, types.GeneratorType) else value


def arguments_of(function, name):
    """Values of the arguments that a function requires, and of `random_state` and `n`."""
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        required = parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL,
        )  # fmt: skip
        if required or parameter.name in ("random_state", "n"):
            assert parameter.name in ARGUMENTS, f"{name} requires {parameter.name}: tell ARGUMENTS a value."
            found[parameter.name] = ARGUMENTS[parameter.name]
    return found


@functools.cache
def fitted_for(kind, method):
    """A fit that has what a method tells of."""
    if method != "weighted_evaluations":
        return fitted(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(kind, max_energy_evals=1000, max_iter=2).fit(quadratic)


def methods_of(kind):
    """Names of the public methods of an estimator that are to be called when it is fitted."""
    sampler = fitted(kind)
    names = [name for name in dir(type(sampler)) if not name.startswith("_") and callable(getattr(sampler, name, None))]
    return [name for name in names if name not in {*SKIPPED, "fit", "save"}]


def of_estimators():
    """Calls of fitted samplers, by name."""
    calls = {}
    for kind in KINDS:
        for method in methods_of(kind):
            known = inspect.signature(getattr(fitted(kind), method)).parameters
            for options in [{}, *OPTIONS.get(method, [])]:
                if set(options) <= set(known) or (method == "iter_samples"):
                    calls[f"{kind}.{method}({options})"] = _method(kind, method, options)
        calls[f"{kind}: saved and loaded"] = _saved(kind)
        calls[f"{kind}: pickled"] = lambda folder, kind=kind: pickle.loads(pickle.dumps(fitted(kind)))
        calls[f"{kind}: dumped by joblib"] = _dumped(kind)
        calls[f"{kind}: copied"] = lambda folder, kind=kind: [copy.copy(fitted(kind)), copy.deepcopy(fitted(kind))]
    return calls


def _method(kind, method, options):
    def call(folder):
        function = getattr(fitted_for(kind, method), method)
        try:
            return drained(function(**{**arguments_of(function, method), **options}))
        except ValueError as error:
            if not options:
                raise
            return str(error)  # a sampler that has no such option says so under all settings

    return call


def _saved(kind):
    def call(folder):
        fitted(kind).save(folder / "sampler")
        loaded = skcds.load(folder / "sampler")
        return [loaded, loaded.sample_weighted(100, random_state=0, **ENERGY)]

    return call


ENERGY = {"energy_fn": quadratic}


def _dumped(kind):
    def call(folder):
        file = io.BytesIO()
        joblib.dump(fitted(kind), file)
        return [file.getvalue(), joblib.load(io.BytesIO(file.getvalue()))]

    return call


def of_fits(others=True):
    """Fits of every kind, and with what takes other ways through the code."""
    fits = {kind: {} for kind in KINDS}
    fits = {
        **fits, "DiffusionSampler, on paths": {"start": Prior(500), "loss": PathLoss("kl", batch_size=32)},
        "DiffusionSampler, langevin": {"network__langevin": True, "loss": PathLoss(share=0.5, batch_size=32)},
        "DiffusionSampler, few evaluations": {"max_energy_evals": 600},
        "ConsistentSamplerDistiller, residual": {"network": "residual"},
        "ConsistentSamplerScratch, residual": {"network": "residual"},
        "ConsistentSamplerScratch, in bounds": {"bounds": (0, None), "start": Pilot(n_particles=200)},
        "ConsistentSamplerScratch, pilot": {"start": Pilot(n_particles=200)},
    }  # fmt: skip
    return {
        f"fit of {name}": _fit(name.partition(",")[0], params) for name, params in fits.items() if others or not params
    }


def _fit(kind, params):
    def call(folder):
        sampler = make(kind, **{"max_iter": 4, **params}).fit(quadratic, checkpoint=Path(folder) / "fit")
        return sampler.set_params(warm_start=True).fit(quadratic) if not params else sampler

    return call


def of_modules():
    """Calls of the functions and classes of modules, and of pictures."""
    from test_targets import TARGETS

    exact = TARGETS["gaussian"]
    calls = {"metrics.break_even": lambda folder: metrics.break_even(1000, 8)}
    for name in sorted(set(metrics.__all__) - {"break_even"}):
        value = getattr(metrics, name)
        if inspect.isfunction(value) and "target" in inspect.signature(value).parameters:
            calls[f"metrics.{name}"] = lambda folder, value=value: _measured(value, TARGETS["gmm9"])
    for name, target in TARGETS.items():
        calls[f"targets: {name}"] = lambda folder, target=target: _of_target(target)
    calls["adapters.from_numpy"] = lambda folder: adapters.from_numpy(lambda x: (x**2).sum(-1), 3)(POINTS)
    normal = scipy.stats.norm(1, 2)
    for where in ("parameters", "cube"):
        energy = adapters.from_prior([normal] * 3, lambda x: -(x**2).sum(-1), coordinates=where)
        points = POINTS if where == "parameters" else scipy.stats.norm.cdf(POINTS)
        calls[f"adapters.from_prior, {where}"] = lambda folder, energy=energy, points=points: energy(points)
    calls["load"] = lambda folder: skcds.load(Path(__file__).parent / "data" / "format-3.skcds")
    calls["SamplerDisplay.from_samples"] = lambda folder: skcds.SamplerDisplay.from_samples(
        POINTS, energy_fn=exact, grid_size=10
    )
    for name in [name for name in skcds.__all__ if name.endswith("Display") and name != "CalibrationDisplay"]:
        for kind in KINDS:
            calls[f"{name} of {kind}"] = lambda folder, name=name, kind=kind: _picture(name, kind)
    return calls


def _measured(function, target):
    names = inspect.signature(function).parameters
    options = {key: value for key, value in {"n": 20, "random_state": 0}.items() if key in names}
    return function(target.sample(50, random_state=0), target, **options)


def _of_target(target):
    x = torch.from_numpy(np.random.RandomState(0).normal(size=(5, target.n_features))).requires_grad_()
    return [target(x), target.sample(9, random_state=0) if isinstance(target, targets.Gaussian) else None]


def _picture(name, kind):
    function = getattr(skcds, name).from_estimator
    known = inspect.signature(function).parameters
    options = {"n": 100, "random_state": 0, "grid_size": 8}
    found = function(fitted(kind), **{key: value for key, value in options.items() if key in known})
    matplotlib.pyplot.close("all")
    return found
