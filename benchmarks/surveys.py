"""How many modes does a survey of climbs find, by how many evaluations?

    python benchmarks/surveys.py
    python benchmarks/surveys.py --climbs 96 --chance 5e-4 --seeds 0 1 2

Every seed makes a mixture of six Gaussians in five dimensions around a center some 450 from the origin: their masses
are from .05 to .3 or so, the means are up to 50 from the center in each coordinate, and their standard deviations along
random axes between .8 and 5. So broad ones draw most climbs.
"""

import argparse

import torch

from skcds.density.energy import Energy
from skcds.explore.mode_stages import Climbs
from skcds.explore.modes import survey
from skcds.specifications import Survey

D, N_MODES = 5, 6
LOST = 0.03  # of the mass


class FarMixture:
    """An energy of six Gaussians of many shapes far from the origin."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape):
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        center = 200 * torch.randn(D, generator=generator, dtype=torch.float64)
        self.means = center + 50 * (2 * uniform(N_MODES, D) - 1)
        axes, _ = torch.linalg.qr(torch.randn(N_MODES, D, D, generator=generator, dtype=torch.float64))
        factors = axes * (0.8 + 4.2 * uniform(N_MODES, 1, D))
        masses = uniform(N_MODES) + 0.1
        self.masses, self.inverse = masses / masses.sum(), torch.linalg.inv(factors)
        self.constants = self.masses.log() - torch.linalg.slogdet(factors).logabsdet

    def _squares(self, x):
        shift = x[:, None] - self.means.to(x)
        return torch.einsum("kij,nkj->nki", self.inverse.to(x), shift).square().sum(-1)

    def __call__(self, x):
        return -torch.logsumexp(self.constants.to(x) - 0.5 * self._squares(x), 1)

    def found(self, modes) -> float:
        """Mass of the Gaussians that modes are of."""
        x = torch.stack([mode.x for mode in modes])
        return float(self.masses[self._squares(x).argmin(1).unique()].sum())


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(24)))
    parser.add_argument("--climbs", type=int, default=Survey.fewest_climbs, help="where all end at one mode")
    parser.add_argument("--chance", type=float, default=Survey.chance_of_another, help="of another mode")
    args = parser.parse_args(arguments)
    by, lost = Survey(fewest_climbs=args.climbs, chance_of_another=args.chance), 0
    print("| seed | modes | mass | evaluations |\n|---|---|---|---|")
    for seed in args.seeds:
        mixture, generator = FarMixture(seed), torch.Generator().manual_seed(1000 + seed)
        energy = Energy(mixture, D, generator=generator)
        before = energy.n_energy_evals
        modes = survey(energy, generator, by, Climbs()).modes
        mass = mixture.found(modes)
        lost += mass < 1 - LOST
        print(f"| {seed} | {len(modes)} | {mass:.3f} | {energy.n_energy_evals - before} |", flush=True)
    print(f"\n{lost} of {len(args.seeds)} lost more than {LOST:g} of the mass.")


if __name__ == "__main__":
    main()
