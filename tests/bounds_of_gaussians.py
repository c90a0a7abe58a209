"""What a Gaussian says of log Z, by its draws."""

import torch

from skcds.density.standardize import StandardizedTarget


def gaussian_bound(energy, gaussian, n, generator):
    """Lower bound of log Z by n draws of what is standard normal in these coordinates, and its standard error."""
    z = torch.randn(n, energy.n_features, generator=generator, dtype=torch.float64)
    log_weights = StandardizedTarget(energy, gaussian).log_prob(z) + 0.5 * z.square().sum(1)
    log_weights += 0.5 * energy.n_features * torch.log(torch.tensor(2 * torch.pi))
    return float(log_weights.mean()), float(log_weights.std()) / n**0.5
