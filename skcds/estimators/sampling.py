"""Drawing in chunks, each with random streams of its own, into arrays, batches, frames and weighted samples."""

__all__ = ["CHUNK_ROWS", "Drawing", "normal_streams"]

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from .._support.devices import to_numpy
from .._support.forks import seed_of
from .._support.parallel import drawn_in_parallel, in_parallel
from .._support.settings import guest, own_modes
from .._support.validation import check_count
from ..density.bounds import Bounds
from ..density.energy import Energy
from ..density.function import Density
from ..density.standardize import StandardizedTarget
from ..io.export import to_frame
from ..weights.sample import WeightedSample
from .derived import Derived, columns_beside, details_of

CHUNK_ROWS = 8192  # rows simulated at a time: bounds the memory, and keeps activations in the cache
MIN_JUDGED = 100  # draws from which weights are judged


class Drawing:
    """Of a sampler whose subclass says how a chunk is drawn (`_plan`)."""

    _model: Any
    _energy: Energy | None
    n_features_in_: int
    feature_names_out_: np.ndarray
    n_jobs: int | None
    _derived: Derived | None = None
    _stream_key: tuple[int, ...] = ()  # what sets the random numbers of one density of a family apart

    def _chunks(self, n: int, seed: int, chunks=None) -> Iterator[tuple[slice, Callable]]:
        """Slices of n draws and ``normal(k)``, standard normal draws (rows, d) float32 of stream k for each slice.

        A prefix of the draws is a draw of fewer: the streams of a chunk are its own, whichever chunks are asked for.
        """
        for chunk in range(-(-n // CHUNK_ROWS)) if chunks is None else chunks:
            rows = slice(chunk * CHUNK_ROWS, min(n, (chunk + 1) * CHUNK_ROWS))
            yield (
                rows,
                normal_streams(
                    seed,
                    int(chunk),
                    (rows.stop - rows.start, self.n_features_in_),
                    self._model.device,
                    self._stream_key,
                ),
            )

    @abstractmethod
    def _plan(self, *args, **options) -> Callable:
        """``draw(normal)``, which gives a chunk in standardised coordinates; checks the options of `sample`."""

    def _prepared(self, options: dict) -> dict:
        """Options of `_plan` with what has to be found only once, whichever worker draws."""
        return options

    @abstractmethod
    def _one_density(self, options: dict):
        """The sampler itself, or that of one density of a family by the `context` in options, which is taken out."""

    @abstractmethod
    def _needs_energy(self, **options) -> bool:
        """Whether drawing with these options evaluates the energy."""

    def _sample(self, n: int, random_state, options: dict, out=None, as_frame: bool = False):
        """As `_draws`, with the options of `sample`."""
        chunks = self._sampled_chunks(n, random_state, options)
        return self._draws(n, chunks, out, as_frame)

    def _sampled_chunks(self, n: int, random_state, options: dict) -> Iterator[tuple[slice, np.ndarray]]:
        """Chunks of draws with the options of `sample`, by several workers where joblib has them."""
        options = self._prepared(Density.in_options(options))
        plan, n = self._plan(**options), check_count(n, "n", 0)
        n_chunks, seed = -(-n // CHUNK_ROWS), seed_of(random_state)
        if not in_parallel(self.n_jobs, n_chunks):
            return self._drawn_chunks(n, seed, plan)
        if self._needs_energy(**options) and options["density"] is None and self._energy is not None:
            options = {**options, "density": self._energy.density}
        return drawn_in_parallel(self, n, seed, options, n_chunks)

    def _draws(self, n: int, chunks: Iterator[tuple[slice, np.ndarray]], out=None, as_frame: bool = False):
        """Draws (n, d) in the user's coordinates, in a new array or in `out`, or as a data frame."""
        if as_frame and out is not None:
            raise ValueError("as_frame=True makes a data frame of its own, and out= was given: choose one of them.")
        X = np.empty((n, self.n_features_in_)) if out is None else _checked_out(out, (n, self.n_features_in_))
        for rows, chunk in chunks:
            X[rows] = chunk
        return to_frame(X, self.feature_names_out_, **self._columns(X)) if as_frame else X

    def _columns(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """What stands beside draws (n, d) in a data frame."""
        return columns_beside(X, self._derived, getattr(self._energy, "energy_fn", None))

    def _drawn_chunks(self, n: int, seed: int, draw: Callable, chunks=None) -> Iterator[tuple[slice, np.ndarray]]:
        for rows, normal in self._chunks(n, seed, chunks):
            with own_modes(), torch.no_grad():
                chunk = self._finished(draw(normal))
            yield rows, chunk

    def _finished(self, drawn) -> np.ndarray:
        """What a plan has drawn as rows of numbers."""
        return self._unstandardize(drawn)

    def _unstandardize(self, z: torch.Tensor) -> np.ndarray:
        """Standardised points (n, d) in the user's coordinates."""
        x, bounds = self._model.standardization(z).cpu(), Bounds.from_fitted(self)
        return (x if bounds is None else bounds(x)).numpy()

    def _standardize(self, x: np.ndarray) -> np.ndarray:
        """Points (n, d) in the user's coordinates in standardised ones."""
        points, bounds = torch.from_numpy(np.asarray(x, dtype=np.float64)), Bounds.from_fitted(self)
        points = (points if bounds is None else bounds.inverse(points)).to(self._model.device)
        return to_numpy(self._model.standardization.inverse(points))

    @guest
    def iter_samples(self, n, batch_size=CHUNK_ROWS, random_state=None, **options):
        """Draw in batches, for more draws than fit in memory.

        Parameters
        ----------
        n : int
            Number of draws in all.
        batch_size : int, default=8192
            Draws of a batch; the last may be smaller.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed. The batches together are ``sample(n, random_state=random_state)``, whatever their size.
        **options
            Further arguments of `sample`, such as `n_steps`, and `context` of one density of a family.

        Yields
        ------
        X : ndarray of shape (batch_size, n_features)
            Draws, float64; with ``return_log_density=True`` a pair of them and their log densities (batch_size,).

        Raises
        ------
        ValueError, TypeError
            At once, as `sample` does.
        """
        check_is_fitted(self)
        n, batch_size = check_count(n, "n", 0), check_count(batch_size, "batch_size", 1)
        one = self._one_density(options)
        chunks = one._drawn_chunks(n, seed_of(random_state), one._plan(**Density.in_options(options)))
        if not options.get("return_log_density"):
            return one._batches(chunks, n, batch_size, self.n_features_in_)
        rows = one._batches(chunks, n, batch_size, self.n_features_in_ + 1)
        return ((batch[:, :-1], batch[:, -1]) for batch in rows)

    def _batches(self, chunks, n: int, batch_size: int, n_columns: int) -> Iterator[np.ndarray]:
        """The rows of chunks in batches of another size; a batch is an array of its own."""
        batch, filled = np.empty((min(batch_size, n), n_columns)), 0
        for _, chunk in chunks:
            while len(chunk):
                taken = min(len(batch) - filled, len(chunk))
                batch[filled : filled + taken] = chunk[:taken]
                chunk, filled, n = chunk[taken:], filled + taken, n - taken
                if filled == len(batch):
                    yield batch
                    batch, filled = np.empty((min(batch_size, n), n_columns)), 0

    @guest
    def weighted_evaluations(self) -> WeightedSample:
        """The points that the fit explored with, as weighted draws: they take no further evaluation.

        With few evaluations (`max_energy_evals` of up to 300 000, in at most 64 dimensions, and in at most 20 where
        there is a gradient and a single mode) a fit explores by draws from proposals that it adapts, and weighs each by
        the mixture of all of them: the balance heuristic (Veach & Guibas 1995; Cornuet et al. 2012). Log Z is that of
        the rounds, each by the proposals that were drawn from in it (Owen & Zhou 2020). Where an evaluation takes
        seconds, they are draws that cost nothing more; or they are evaluated points for another fit,
        ``evaluations=(W.samples, -W.log_density)``.

        Returns
        -------
        weighted : WeightedSample
            All of the points. Later proposals were fitted to earlier points, so that the weights are less exact than
            those of `sample_weighted`: they estimate expectations consistently, and not without bias. Where that is
            too large, as in dozens of dimensions, the weights are those by rounds. Blobs are left out.

        Raises
        ------
        NotFittedError
            When the sampler is not fitted.
        ValueError
            When the fit has explored in another way, or is to a family of densities.
        """
        check_is_fitted(self)
        weighed = getattr(getattr(self, "teacher_", self), "_weighed", None)
        if weighed is None:
            raise ValueError(
                f"The fit of {type(self).__name__} has no evaluations with weights: it went on from an earlier fit, "
                "or is to a family, or has explored in another way, as without max_energy_evals, with more than "
                "300 000, and in many dimensions. Call sample_weighted in its place."
            )
        details: dict = {"feature_names": self.feature_names_out_}
        energy_fn = getattr(self._energy, "energy_fn", None)
        details |= details_of(weighed.x, weighed.log_density, self._derived, energy_fn, blobs=False)
        weighted = WeightedSample(weighed.x, weighed.log_weights, False, **details)
        weighted.warn_if_unreliable()
        return weighted

    @torch.no_grad()
    def _weighted_draws(
        self, n: int, random_state, target: StandardizedTarget, draw: Callable, **details
    ) -> WeightedSample:
        """Weighted draws; ``draw(normal)`` gives a chunk in standardised coordinates and its log weights."""
        X, log_weights, log_density = np.empty((n, self.n_features_in_)), np.empty(n), np.empty(n)
        for rows, normal in self._chunks(n, seed_of(random_state)):
            z, log_weight = draw(normal)
            X[rows], log_weights[rows] = self._unstandardize(z), to_numpy(log_weight)
            log_density[rows] = to_numpy(target.energy.latest)  # the weight's own evaluation is the last of a chunk
        details |= {"n_energy_evals": target.energy.n_energy_evals, "feature_names": self.feature_names_out_}
        details |= details_of(X, log_density, self._derived, target.energy.energy_fn)
        weighted = WeightedSample(X, log_weights, **details)
        if n >= MIN_JUDGED:
            weighted.warn_if_unreliable()
        return weighted


def normal_streams(
    seed: int, chunk: int, shape: tuple[int, int], device: torch.device, of: tuple[int, ...] = ()
) -> Callable:
    """``normal(k)``, standard normal numbers of stream k of a chunk; the rows of fewer are the first ones of more.

    They are the same on every device, and others for every key `of`.
    """
    streams: dict[int, np.random.Generator] = {}

    def normal(k, shape=shape):
        if k not in streams:
            key = (k, chunk, *of) if chunk or of else (k,)
            streams[k] = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
        return torch.from_numpy(streams[k].standard_normal(shape, dtype=np.float32)).to(device)

    return normal


def _checked_out(out, shape: tuple) -> np.ndarray:
    if not isinstance(out, np.ndarray) or out.dtype.kind != "f":
        found = f"{type(out).__name__} of dtype {out.dtype}" if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"out has to be a NumPy array of floating point numbers; got {found}.")
    if out.shape != shape or not out.flags.writeable:
        kind = "" if out.flags.writeable else "read-only "
        raise ValueError(f"out has to be a writeable array of shape {shape}; got a {kind}array of shape {out.shape}.")
    return out
