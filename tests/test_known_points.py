"""What a map learns from points where a density and its score are known, and draws that go beyond them."""

import math
from types import SimpleNamespace

import pytest
import torch

from skcds.density.standardize import Standardization
from skcds.explore.adaptive import MapProposal, fit_map
from skcds.explore.store import n_effective
from skcds.explore.wide import WideLatents
from skcds.models.maps import OneStepModel, coupling_sizes
from skcds.models.networks import seeded as nets_seeded
from skcds.specifications import MapFit, Training
from skcds.train.known_points import KnownPoints
from skcds.train.objectives.known_points import KnownPointsLoss, spread_of
from skcds.train.objectives.likelihood import LikelihoodLoss
from skcds.train.plateau import plateau_of


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def map_of(d=3, scale=0.3, seed=1, **moments):
    """A coupling map; with a scale of 0 it is the identity."""
    with nets_seeded(seed):
        model = OneStepModel("coupling", d, 6.0, True, **coupling_sizes(d, 6.0, n_transforms=2, bins=4))
    with torch.no_grad():
        for parameter in model.map.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=seeded(2)) if scale else 0.0
    if moments:
        model.standardization = Standardization.from_moments(moments["loc"], moments["covariance"])
    return model.requires_grad_(False)


def points_of(model, x, log_prob, score, log_weights=None, held=None, **options):
    held = torch.zeros(len(x), dtype=torch.bool) if held is None else held
    log_weights = torch.zeros(len(x)).double() if log_weights is None else log_weights
    return KnownPoints(x, log_prob, score, log_weights, held, model.standardization, **options)


def gaussian_points(model, n, sd, seed=0, **options):
    """Draws of N(0, I) with the values and scores of N(0, sd^2 I), up to a constant."""
    x = torch.randn(n, model.n_features, generator=seeded(seed)).double()
    return points_of(model, x, -0.5 * (x / sd).square().sum(1), -x / sd**2, **options)


class TestSlopes:
    def test_of_a_gaussian_of_another_width(self):
        """By the identity the log weight is (1 - 1 / sd^2) |x|^2 / 2."""
        model = map_of(scale=0.0)
        points = gaussian_points(model, 50, 0.5)
        loss = KnownPointsLoss(model, points, 50, seeded(5))
        slopes = loss._slopes(points.z, points.score)
        direction = torch.randn(50, 3, generator=seeded(5))
        torch.testing.assert_close(slopes, (1 - 4) * (points.z * direction).sum(1), rtol=1e-3, atol=1e-3)

    def test_vanish_where_the_map_is_right(self):
        """For its own density, of which the score is had by differentiation; and not for a part of it."""
        model = map_of(scale=0.05, loc=torch.ones(3).double(), covariance=2 * torch.eye(3).double())
        z = model.map(torch.randn(400, 3, generator=seeded()), model.start())
        at = z.clone().requires_grad_(True)
        log_prob = model.log_prob(at)
        (score,) = torch.autograd.grad(log_prob.sum(), at)
        x, log_det = model.standardization(z), model.standardization.log_det(z.double())
        pulled = torch.linalg.solve(model.standardization.matrix.T, score.double().T).T
        points = points_of(model, x, log_prob.detach().double() - log_det, pulled)
        loss = KnownPointsLoss(model, points, 400, seeded())
        latent, _ = model.map.inverse_and_log_det(points.z, model.start())
        right = loss._slopes(latent, points.score)
        assert right.abs().median() < 0.02 and loss._slopes(latent, 0.5 * points.score).abs().median() > 0.2
        assert spread_of(points.log_prob - model.log_prob(points.z)) < 1e-4

    def test_are_left_out_without_scores(self):
        model, x = map_of(), torch.randn(20, 3, generator=seeded()).double()
        loss = KnownPointsLoss(model, points_of(model, x, -x.square().sum(1), None), 10, seeded())
        loss._slopes = lambda *args: pytest.fail("there are no scores")
        assert loss(0).isfinite() and loss.scores == 0


class TestLoss:
    def test_order_counts_points_where_the_map_lacks_density(self):
        """By the identity N(0, 4 I) is twice too narrow: points further out count more, less so if truncated."""
        model = map_of(scale=0.0)
        points = gaussian_points(model, 400, 2.0)

        def value(*options):
            return float(KnownPointsLoss(model, points, 4000, seeded(5), 0.0, 0.0, *options)(0))

        assert value() == value(1.0) and value(1.0) + 0.2 < value(3.0, 1.0) < value(3.0, 1e9) - 0.2

    def test_takes_the_place_of_particles_at_the_prior_end(self):
        """The loss has its value, and no particle is drawn for that end: the rest has none but a gradient."""
        asked = []

        def levels(n):
            return torch.zeros(n), torch.full((n,), torch.inf)

        def draw(n):
            asked.append(n)
            return torch.zeros(n, 3), torch.zeros(n)

        population = SimpleNamespace(draw_with_log_prob=draw, noised=lambda n, to: torch.zeros(n, 3))
        control = SimpleNamespace(noise=lambda x, level, target: (torch.zeros_like(x), None))
        model = map_of()
        loss = LikelihoodLoss(model, population, 8, control, None, levels, known=lambda i: torch.tensor(7.0 + i))
        assert float(loss(0)) == 7.0 and float(loss(1)) == 8.0 and asked == [0, 0]
        assert float(LikelihoodLoss(model, population, 8, control, None, levels)(0)) != 7.0 and asked[-1] == 8

    def test_points_held_out_end_a_training(self):
        """In place of the particles, at which the map is poor."""
        model = map_of(2, scale=0.0)
        x = torch.randn(500, 2, generator=seeded()).double()
        points = points_of(model, x, -0.5 * x.square().sum(1), None, held=torch.ones(500, dtype=torch.bool))
        particles = SimpleNamespace(x=x.float(), log_prob=100 * x[:, 0])
        run = SimpleNamespace(
            training=Training(),
            model=model,
            points=points,
            population=Sized(particles),
            budget=SimpleNamespace(progress=None),
        )
        assert plateau_of(run, 1000).look(model) > 0.999
        run.points = None
        assert plateau_of(run, 1000).look(model) < 0.1


class Sized:
    """Particles of which there are so many."""

    def __init__(self, particles):
        self.x, self.log_prob = particles.x, particles.log_prob

    def __len__(self):
        return len(self.x)


class TestPoints:
    def test_batches_stand_for_the_weights(self):
        """Means over batches with their counts are weighted means; points held out do not occur (5 standard errors)."""
        x = torch.randn(2000, 1, generator=seeded()).double()
        held = torch.rand(2000, generator=seeded(1)) < 0.2
        log_weights = 1.5 * x[:, 0]
        points = points_of(map_of(1), x, -(x[:, 0] ** 2), None, log_weights, held)
        means, drawn = [], []
        for _ in range(200):
            rows, counts = points.draw(500, seeded(len(means)))
            means.append(float((counts * points.z[rows, 0]).mean()))
            drawn.append(rows)
        weights = torch.softmax(log_weights[~held], 0)
        found = torch.tensor(means)
        assert not held[torch.cat(drawn)].any()
        exact = float((weights * points.z[~held, 0]).sum())
        assert abs(found.mean() - exact) < 5 * found.std() / math.sqrt(200) + 0.02  # ratios are biased a little
        assert abs(float(points.z[~held].mean()) - exact) > 0.5  # what it would be without counts

    def test_points_where_nothing_is_known_are_left_out(self):
        x = torch.randn(6, 2, generator=seeded()).double()
        log_prob, score = -x.square().sum(1), -2 * x
        log_prob[0], score[1, 0] = -torch.inf, torch.nan
        points = points_of(map_of(2), x, log_prob, score, held=torch.tensor([1, 0, 1, 0, 0, 0]).bool())
        rows = set(points.draw(200, seeded())[0].tolist())
        assert rows == {3, 4, 5} and points.held.tolist() == [2]

    @pytest.mark.parametrize("sd", [1.0, 1.3])
    def test_share_is_the_effective_size_of_draws(self, sd):
        """Of N(0, I) for N(0, sd^2 I) in closed form, (sd^2 (2 - sd^2))^(-d/2) times sd^(2 d); within a tenth.

        The weights have a finite variance where sd^2 < 2. At 20 seeds the error was below .06.
        """
        d, model = 2, map_of(2, scale=0.0)
        x = sd * torch.randn(20_000, d, generator=seeded()).double()
        held = torch.arange(20_000) % 2 == 0
        points = points_of(model, x, -0.5 * (x / sd).square().sum(1), None, held=held)
        second_moment = (1 / (sd * math.sqrt(2 - sd**2))) ** d
        assert points.share(model) == pytest.approx(1 / second_moment, rel=0.1)

    def test_share_is_of_the_points_held_out_alone(self):
        model = map_of(2, scale=0.0)
        x = torch.randn(1000, 2, generator=seeded()).double()
        log_prob, held = -0.5 * x.square().sum(1), torch.arange(1000) < 500
        log_prob[500:] += 5 * torch.randn(500, generator=seeded(1)).double()
        assert points_of(model, x, log_prob, None, held=held).share(model) > 0.999
        assert points_of(model, x, log_prob, None, held=~held).share(model) < 0.1
        assert points_of(model, x, log_prob, None, held=held & False).share(model) == 0.0


class TestWideLatents:
    def test_density_is_that_of_its_draws(self):
        """The mean weight of the map's own density is 1 (5 standard errors), and no weight is large."""
        model = map_of(4, scale=0.05, loc=torch.ones(4).double(), covariance=2 * torch.eye(4).double())
        wide, narrow = WideLatents(model, 1.5, 2.0), MapProposal(model)
        x = wide.sample(20_000, seeded())
        weights = (narrow.log_prob(x) - wide.log_prob(x)).exp()
        assert abs(weights.mean() - 1) < 5 * weights.std() / math.sqrt(20_000)
        assert weights.max() < 4 and n_effective(narrow.log_prob(x) - wide.log_prob(x)) < 0.95 * 20_000

    def test_one_coordinate_goes_far(self):
        model = map_of(5, scale=0.0)
        x = WideLatents(model, 1.5, 2.0).sample(4000, seeded())
        far = (model.standardization.inverse(x).abs() > 4.5).sum(1)
        assert (far == 1).float().mean() > 0.05 and (far > 1).sum() <= 2  # 4.5 has a chance of 7e-6 for a normal one


def banana(x):
    """Log density and score of a bent Gaussian in five dimensions."""
    x = x.detach().requires_grad_(True)
    log_prob = -0.5 * (x[:, 0] ** 2 + (x[:, 1] - x[:, 0] ** 2) ** 2 / 0.25 + x[:, 2:].square().sum(1))
    (score,) = torch.autograd.grad(log_prob.sum(), x)
    return log_prob.detach(), score


@pytest.mark.slow
def test_scores_tell_more_than_values():
    """Of 400 points: normalised ESS of 4000 draws larger by .05 at least (see the assertion; three seeds)."""

    def share(seed, scores):
        x = torch.randn(400, 5, generator=seeded(seed)).double()
        x[:, 1] = x[:, 0] ** 2 + 0.5 * x[:, 1]
        with nets_seeded(seed):
            model = OneStepModel("coupling", 5, 6.0, True, **coupling_sizes(5, 6.0))
        model.standardization = Standardization.from_moments(x.mean(0), torch.cov(x.T))
        assert fit_map(model, points_of(model, x, *banana(x)), seeded(seed), by=MapFit(n_iter=300, scores=scores))
        proposal = MapProposal(model)
        draws = proposal.sample(4000, seeded(99))
        return n_effective(banana(draws)[0] - proposal.log_prob(draws)) / 4000

    for seed in range(3):
        assert share(seed, 1.0) > share(seed, 0.0) + 0.05


class TestHeldOut:
    """Points that a map is not fitted to, by which the best of a fit is kept."""

    def points(self, model, n=400):
        x = torch.randn(n, 3, generator=seeded(3)).double()
        return points_of(model, x, -0.5 * x.square().sum(1), -x, held=torch.arange(n) % 4 == 0)

    def test_the_right_map_fits_best(self):
        """By the mean of log q - log p: an identity's is that of its constant."""
        right, other = map_of(scale=0.0), map_of(scale=0.3)
        assert self.points(right).fit_of(right) == pytest.approx(-1.5 * math.log(2 * math.pi), abs=1e-5)
        assert self.points(other).fit_of(other) < self.points(right).fit_of(right) - 0.05

    def test_one_point_lacks_no_more_than_ten_nats(self):
        model = map_of(scale=0.0)
        points = self.points(model)
        before = points.fit_of(model)
        points.log_prob[0] += 1e6
        assert before - points.fit_of(model) == pytest.approx(10 / 100, abs=0.02)

    def test_is_not_known_without_any(self):
        model = map_of(scale=0.0)
        assert math.isnan(gaussian_points(model, 20, 1.0).fit_of(model))

    def test_a_fit_that_spoils_a_map_leaves_it_as_it_was(self):
        """Steps of 3 for each parameter; without points held out the last map is kept, the negative control."""
        by = MapFit(n_iter=50, learning_rate=3.0)
        kept, spoilt = map_of(scale=0.0), map_of(scale=0.0)
        assert fit_map(kept, self.points(kept), seeded(0), by=by)
        assert fit_map(spoilt, gaussian_points(spoilt, 400, 1.0), seeded(0), by=by)
        z = torch.randn(10, 3, generator=seeded(4))
        change = [(model.log_prob(z) - map_of(scale=0.0).log_prob(z)).abs().max() for model in (kept, spoilt)]
        assert change[0] < 1e-4 < 0.1 < change[1]
