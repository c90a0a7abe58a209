"""Self-consistency: one step lands where two of half its size do."""

__all__ = ["SelfConsistencyLoss"]

import torch

from ...models.process import noise_levels
from ...models.shortcut import ShortcutModel
from ..averages import moving_average
from .base import Objective, rows_within
from .consistency import pseudo_huber
from .specifications import SelfConsistency


class SelfConsistencyLoss(Objective):
    """A step of size 2d has to land where two steps of size d land (Algorithm 2 of arXiv:2502.07579).

    The goal is that of a slowly moving average of the map, without a gradient. A step of the smallest size has to land
    where a step of the control's probability-flow ODE by Heun's method lands, or for a map that is itself the control,
    is left to the sampling loss. Errors are weighted by the reciprocal angle of the step: as errors of a velocity.

    Parameters
    ----------
    model : ShortcutModel
        What is trained.
    target : StandardizedTarget
        What the control reads.
    states : callable
        ``states(n, log_snr)`` gives states (n, d) at grid levels (n,): noised particles, or those of simulated paths.
    batch_size : int
        Steps in a batch.
    generator : torch.Generator
        Source of randomness.
    ema_decay : float, default=0.95
        Of the average that gives the goals.
    huber : float, default=0.03
        Of the pseudo-Huber distance, per square root of a dimension.
    """

    def __init__(
        self, model: ShortcutModel, target, states, batch_size, generator, ema_decay=SelfConsistency.ema_decay,
        huber=SelfConsistency.huber,
    ):  # fmt: skip
        self.huber = huber
        self.model, self.target, self.states = model, target, states
        self.batch_size, self.generator = rows_within(batch_size, model.n_features), generator
        self.averaged = moving_average(model.map, ema_decay)

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back."""
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""
        self.averaged.load_state_dict(state)

    def __call__(self, iteration: int) -> torch.Tensor:
        """The loss of one batch."""
        self.averaged.update_parameters(self.model.map)
        steps = self.model.steps
        start, size = steps.draw(self.batch_size, self.generator, first=0 if self.model.map.invertible else 1)
        level, to = steps.log_snr[start], steps.log_snr[start + size]
        x = self.states(len(start), level)
        with torch.no_grad():
            goal = self._two_steps(x, level, steps.log_snr[start + size // 2], to)
            finest = size == 1
            if finest.any():
                goal[finest] = self._heun_step(x[finest], level[finest], to[finest])
        sine = self.model.map.condition(level, to)[2]
        return pseudo_huber((self.model.map(x, level, to) - goal) / sine, self.huber)

    def _two_steps(self, x, level, middle, to):
        return self.averaged.module(self.averaged.module(x, level, middle), middle, to)

    def _heun_step(self, x, level, to):
        """One step of the probability-flow ODE for each row; see `heun_step`."""
        (a, s), (a_to, s_to) = ((t[:, None] for t in noise_levels(at)) for at in (level, to))
        noise = self.model.noise(x, level, self.target)[0]
        y = a_to * (x - s * noise) / a + s_to * noise
        noisy, following = to.isfinite(), torch.zeros_like(noise)
        if noisy.any():
            following[noisy] = self.model.noise(y[noisy], to[noisy], self.target)[0]
        return y + 0.5 * a_to * (s_to / a_to - s / a) * (following - noise)
