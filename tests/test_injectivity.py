"""The search for folds on maps of which it is known whether they are injective."""

import math

import pytest
import torch
from cases import slow
from torch.func import jacfwd, vmap

from skcds.models.maps import CouplingMap, ResidualMap
from skcds.models.networks import GatedMLP, ResidualMLP, seeded
from skcds.weights.injectivity import InjectivityReport, check_injectivity

Z = 5.5  # two-sided tail of the normal distribution: 4e-8; of a binomial share of 500 draws below 1e-6


class Analytic:
    """A map given by a formula, with the interface of a residual map."""

    def __init__(self, formula):
        self.formula = formula

    def __call__(self, z, level):
        return self.formula(z)

    def jacobian(self, z, level):
        return self.formula(z), vmap(jacfwd(lambda row: self.formula(row[None])[0]))(z)


def rotate(z, angle):
    return torch.stack(
        [angle.cos() * z[:, 0] - angle.sin() * z[:, 1], angle.sin() * z[:, 0] + angle.cos() * z[:, 1]], 1
    )


def complex_power(n):
    def formula(z):
        radius, angle = z.norm(dim=1), torch.atan2(z[:, 1], z[:, 0])
        return (radius**n)[:, None] * torch.stack([(n * angle).cos(), (n * angle).sin()], 1)

    return formula


def complex_square(z):
    return torch.stack([z[:, 0] ** 2 - z[:, 1] ** 2, 2 * z[:, 0] * z[:, 1]], 1)


def complex_exponential(z):
    """Wraps around, since the angle 3 z_1 goes from -9 to 9."""
    return z[:, :1].exp() * torch.stack([(3 * z[:, 1]).cos(), (3 * z[:, 1]).sin()], 1)


INJECTIVE = {
    "identity": (lambda z: z, 3),
    "shear": (lambda z: torch.stack([z[:, 0] + 3 * z[:, 1].sin() + z[:, 1] ** 2, z[:, 1]], 1), 2),
    "spiral, a third of a turn": (lambda z: rotate(z, 0.5 * z.square().sum(1)), 2),
    "spiral, many turns": (lambda z: rotate(z, 3 * z.square().sum(1)), 2),
    "rotation by 500 degrees": (lambda z: rotate(z, torch.full((len(z),), math.radians(500))), 2),
    "half a turn": (lambda z: -z, 2),
    "steps": (lambda z: z + 0.99 * z.sin(), 1),
    "squeezed": (lambda z: 1e-3 * z, 3),
    "saturating": (torch.tanh, 2),
    "two wells": (lambda z: 2 * torch.tanh(5 * z) + 0.3 * z, 2),
    "exponential": (lambda z: z.exp(), 2),
    "hardly wrapped": (lambda z: 0.3 * complex_exponential(z * torch.tensor([1.0, 0.15])), 2),
    "flat in places": (lambda z: z**5 + 1e-3 * z, 1),
    "flat along axes": (lambda z: z**3 + 1e-3 * z, 2),
}
FOLDED = {  # with a lower bound of the share of draws that have a second preimage on the prior's mass
    "complex square": (complex_square, 2, 0.95),
    "complex cube": (complex_power(3), 2, 0.95),
    "complex exponential": (complex_exponential, 2, 0.95),
    "square": (lambda z: z**2, 1, 0.95),
    "absolute value, smooth": (lambda z: (z**2 + 0.01).sqrt(), 1, 0.95),
    "fold along an axis": (lambda z: torch.stack([z[:, 0], z[:, 1] ** 2, z[:, 2]], 1), 3, 0.95),
    "ripple": (lambda z: z + 2 * z.sin(), 1, 0.05),
}


def latents(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def check(formula, z, **options):
    return check_injectivity(Analytic(formula), z, torch.zeros(len(z)), **options)


class TestKnownMaps:
    @pytest.mark.parametrize("name", INJECTIVE)
    def test_an_injective_map_is_not_accused(self, name):
        formula, d = INJECTIVE[name]
        assert check(formula, latents(1000, d), n_search=300) == InjectivityReport(0.0, 0.0)

    @pytest.mark.parametrize("name", FOLDED)
    def test_a_folded_map_is_found(self, name):
        formula, d, share = FOLDED[name]
        report = check(formula, latents(1000, d), n_search=300)
        assert report.second_preimage_share > share
        assert report.violation_share >= report.second_preimage_share

    @pytest.mark.parametrize("name", ["complex square", "complex exponential"])
    def test_a_positive_determinant_is_no_proof(self, name):
        formula, d, _ = FOLDED[name]
        report = check(formula, latents(1000, d), n_search=300)
        assert report.sign_change_share == 0 < report.violation_share == report.second_preimage_share

    @pytest.mark.parametrize("seed", range(3))
    def test_sign_change_share(self, seed):
        z = latents(1000, 1, seed)
        share = float((z < 0).double().mean())
        assert check(lambda z: z**2, z).sign_change_share == pytest.approx(min(share, 1 - share))

    @pytest.mark.parametrize("name", [*list(INJECTIVE)[:4], *slow(*list(INJECTIVE)[4:])])
    def test_a_map_that_turns_space_over(self, name):
        formula, d = INJECTIVE[name]
        mirror = torch.tensor([-1.0] + [1.0] * (d - 1))
        report = check(lambda z: mirror * formula(z), latents(1000, d), n_search=300)
        assert report == InjectivityReport(0.0, 0.0)

    @pytest.mark.parametrize("name", ["fold along an axis", "ripple"])
    def test_a_map_that_turns_space_over_and_folds(self, name):
        formula, d, _ = FOLDED[name]
        z = latents(1000, d)
        expected = check(formula, z, n_search=300)
        found = check(lambda z: -formula(z) if d == 1 else formula(z).flip(1), z, n_search=300)
        assert found.sign_change_share == pytest.approx(expected.sign_change_share) and expected.sign_change_share > 0

    def test_a_zero_determinant_counts(self):
        report = check(lambda z: torch.stack([z[:, 0], z[:, 0]], 1), latents(50, 2))
        assert report.sign_change_share == 1

    @pytest.mark.parametrize("seed", range(3))
    def test_a_local_fold(self, seed):
        # z - 1.5 tanh(z - 1) falls where |z - 1| < atanh(3^-1/2), on 32 % of the prior's mass
        n, half = 500, math.atanh(3**-0.5)
        report = check(lambda z: z - 1.5 * torch.tanh(z - 1), latents(n, 1, seed))
        share = 0.5 * (math.erf((1 + half) / 2**0.5) - math.erf((1 - half) / 2**0.5))
        bound = Z * math.sqrt(share * (1 - share) / n)
        assert abs(report.sign_change_share - share) < bound
        assert report.second_preimage_share > share - bound  # each of them has two other preimages


class TestMaps:
    """The package's own maps."""

    def random(self, kind, d, scale):
        with seeded(0):
            consistency_map = kind(d, 6.0, hidden=16, n_layers=2)
        source = torch.Generator().manual_seed(1)
        for part in consistency_map.modules():
            if isinstance(part, (GatedMLP, ResidualMLP)):
                for parameter in part.output.parameters():
                    parameter.data += scale * torch.randn(parameter.shape, generator=source)
        return consistency_map.requires_grad_(False)

    def test_coupling(self):
        coupling = self.random(CouplingMap, 3, 0.2)

        class ByReverseMode(Analytic):
            """Its splines have no forward mode."""

            def __call__(self, z, level):
                return coupling(z, level)

            def jacobian(self, z, level):
                z = z.clone().requires_grad_()
                y = coupling(z, level)
                rows = [torch.autograd.grad(y[:, i].sum(), z, retain_graph=True)[0] for i in range(3)]
                return y.detach(), torch.stack(rows, 1)

        level = torch.full((200,), -6.0)
        report = check_injectivity(ByReverseMode(None), latents(200, 3), level, n_search=20, n_starts=1)
        assert report == InjectivityReport(0.0, 0.0)

    def test_residual(self):
        residual, z = self.random(ResidualMap, 3, 2.0), latents(500, 3)
        assert check_injectivity(residual, z, torch.full((500,), -6.0), n_search=300).violation_share > 0.01
        assert check_injectivity(residual, z, torch.full((500,), torch.inf)).violation_share == 0  # the identity

    def test_levels_are_those_of_the_draws(self):
        class Levelled(Analytic):
            """Injective at level 0 only."""

            def __call__(self, z, level):
                return z + level[:, None] * (complex_square(z) - z)

            def jacobian(self, z, level):
                jacobian = vmap(jacfwd(lambda row, at: self(row[None], at[None])[0]))(z, level)
                return self(z, level), jacobian

        z = latents(600, 2)
        assert check_injectivity(Levelled(None), z, torch.zeros(600)).violation_share == 0
        assert check_injectivity(Levelled(None), z, torch.ones(600)).violation_share > 0.9


class TestArguments:
    def test_empty(self):
        report = check(complex_square, latents(0, 2))
        assert report == InjectivityReport(0.0, 0.0) and report.violation_share == 0

    @pytest.mark.parametrize("n", [1, 2, 5, 17])
    def test_few_draws(self, n):
        assert check(lambda z: z, latents(n, 3)).violation_share == 0
        report = check(lambda z: z**2, -latents(n, 1).abs())
        assert report.sign_change_share == 0 <= report.second_preimage_share <= 1

    @pytest.mark.parametrize("n_search", [1, 50, 10_000])
    def test_number_searched(self, n_search):
        share = check(complex_square, latents(300, 2), n_search=n_search).second_preimage_share
        searched = min(n_search, 300)
        assert share * searched == pytest.approx(round(share * searched)) and share > 0.9

    def test_global_state_and_draws_are_left_alone(self):
        z = latents(100, 2)
        before, state = z.clone(), torch.get_rng_state()
        first, second = (check(complex_square, z) for _ in range(2))
        assert first == second and torch.equal(z, before) and torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("changes, second", [(0.1, 0.3), (0.3, 0.1)])
    def test_violation_share(self, changes, second):
        assert InjectivityReport(changes, second).violation_share == 0.3
