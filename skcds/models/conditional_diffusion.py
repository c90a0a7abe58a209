"""The diffusion sampler's model of a family: a control that reads the context, in coordinates by context."""

__all__ = ["ConditionalDiffusionModel", "GivenDiffusion"]

import torch
from torch import Tensor, nn

from ..density.regression import FamilyStandardization, GivenStandardization
from ..io.registry import register_model
from .conditional import ContextFeatures
from .diffusion import Chain
from .networks import NoiseNetwork
from .process import GRIDS, Grid

N_FEATURES = 64  # of a context (unmeasured)


class GivenDiffusion(Chain):
    """The chain of a family with contexts given: one of points.

    Parameters
    ----------
    family : ConditionalDiffusionModel
        The model of the family.
    contexts : Tensor
        (m, k), which points (m r, d) go with.
    """

    def __init__(self, family: "ConditionalDiffusionModel", contexts: Tensor):
        self.family, self.n_features, self.log_snr_max = family, family.n_features, family.log_snr_max
        self.reference = family.reference
        self.standardization: GivenStandardization = family.standardization.given(contexts)
        self.features = family.features(family.standardization.scaled(contexts).float())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.family.device

    @property
    def needs_score(self) -> bool:
        """Whether the network reads the score of the target."""
        return self.family.needs_score

    def network(self, x: Tensor, log_snr: Tensor, score: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Noise estimate (m r, d) and its variance, as of `NoiseNetwork`."""
        features, m = self.features, len(self.features)
        if m > 1:
            features = features.repeat_interleave(len(x) // m, 0)
        return self.family.network(x, log_snr, score, features)


@register_model(reference=GRIDS)
class ConditionalDiffusionModel(nn.Module):
    """A network for the noise in x_t that reads the context, and a standardisation by context.

    Parameters
    ----------
    n_features, n_contexts : int
        Numbers of a point and of a context.
    log_snr_max : float
        Log signal-to-noise ratio of the last noisy level.
    hidden, n_layers, langevin, learned_variance
        See `NoiseNetwork`.
    reference : {"dis", "dds", "pis"}, default="dis"
        Kind of grid; see `GRIDS`.
    """

    def __init__(
        self, n_features: int, n_contexts: int, log_snr_max: float, hidden: int, n_layers: int, langevin: bool,
        learned_variance: bool, reference: str = "dis",
    ):  # fmt: skip
        super().__init__()
        self.config = {
            "n_features": n_features, "n_contexts": n_contexts, "log_snr_max": log_snr_max, "hidden": hidden,
            "n_layers": n_layers, "langevin": langevin, "learned_variance": learned_variance, "reference": reference,
        }  # fmt: skip
        self.n_features, self.n_contexts, self.log_snr_max = n_features, n_contexts, log_snr_max
        self.reference = reference
        self.standardization = FamilyStandardization(n_features, n_contexts)
        self.features = ContextFeatures(n_contexts, N_FEATURES)
        self.network = NoiseNetwork(n_features, log_snr_max, hidden, n_layers, langevin, learned_variance, N_FEATURES)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.standardization.device

    @property
    def needs_score(self) -> bool:
        """Whether the network reads the score of the target."""
        return self.network.langevin

    def grid(self, n_steps: int) -> Grid:
        """Noise levels for a number of steps."""
        return GRIDS[self.reference](n_steps, self.log_snr_max).to(self.device)

    def given(self, contexts: Tensor) -> GivenDiffusion:
        """The chain of points (m r, d) with contexts (m, k)."""
        return GivenDiffusion(self, contexts)
