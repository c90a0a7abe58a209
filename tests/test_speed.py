"""The benchmark of speed on tiny settings, and what makes its comparison of log-variance iterations a fair one.

Statistical bounds hold for any seed: each states the probability at which it fails a correct implementation.
"""

import contextlib
import functools
import importlib
import io
import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from skcds import targets
from skcds.train.objectives import path as losses

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package
speed = importlib.import_module("speed")

QUICK = speed.Settings(rounds=1, quick=True)
N_STEPS = 12
Z = 5.0  # two-sided tail of the normal distribution: 6e-7


@functools.cache
def problem(sd=0.8):
    """A model whose control is wrong by a little, and a Gaussian target."""
    model, target = speed.untrained(targets.Gaussian([0.2, -0.1], [[sd**2, 0.0], [0.0, 1.0]]))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.network.body.output.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model, target


def loss_of(kind, seed, n_steps=N_STEPS, batch_size=256, **options):
    model, target = problem()
    generator = torch.Generator().manual_seed(seed)
    return speed.LOSSES[kind](model, target, n_steps, batch_size, generator, **options)(0)


def gradient(loss):
    model, _ = problem()
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def centred(log_weights):
    return log_weights - log_weights.mean()


# ---------------------------------------------------------------- the two iterations compute the same


@pytest.mark.parametrize("seed", range(3))
def test_values_are_equal_on_the_same_trajectories(seed):
    plain, ours = loss_of("plain", seed).item(), loss_of("ours", seed).item()
    assert plain == pytest.approx(ours, rel=1e-4) and plain > 0.01


def test_log_weights_are_equal_on_the_same_trajectories():
    model, target = problem()
    grid, first, second = model.grid(N_STEPS), *(torch.Generator().manual_seed(3) for _ in range(2))
    shape = (64, model.n_features)
    plain = speed.plain_log_weights(model, grid, target, lambda: torch.randn(shape, generator=first))
    _, ours = model.simulate_weighted(
        torch.randn(shape, generator=second), grid, target, lambda k: torch.randn(shape, generator=second)
    )
    torch.testing.assert_close(plain.detach(), ours, rtol=0, atol=1e-4)


def test_gradients_over_all_steps_are_equal_on_the_same_trajectories(monkeypatch):
    for module in (losses, speed):
        monkeypatch.setattr(module, "_winsorise", centred)
    plain = gradient(loss_of("plain", 3))
    ours = gradient(loss_of("ours", 3, n_gradient_steps=N_STEPS))
    assert (plain - ours).norm() < 1e-3 * plain.norm()


def z_score(of_plain, of_ours, factor=1.0):
    """Of the difference of mean losses over batches that have nothing in common."""
    plain, ours = factor * np.array(of_plain), np.array(of_ours)
    return (plain.mean() - ours.mean()) / math.sqrt(plain.var(ddof=1) / len(plain) + ours.var(ddof=1) / len(ours))


@pytest.mark.slow
def test_values_are_equal_in_expectation():
    """Means of 60 independent batches each, close to normal: false alarms at a rate below 1e-5 for any seeds."""
    plain = [loss_of("plain", seed, batch_size=128).item() for seed in range(60)]
    ours = [loss_of("ours", 1000 + seed, batch_size=128).item() for seed in range(60)]
    assert abs(z_score(plain, ours)) < Z
    assert abs(z_score(plain, ours, factor=1.3)) > Z  # negative control: a loss that is 30 % too large


def test_without_pulling_in_outliers_the_plain_loss_is_the_variance(monkeypatch):
    model, target = problem()
    generator = torch.Generator().manual_seed(5)
    normal = functools.partial(torch.randn, (64, 2), generator=generator)
    variance = speed.plain_log_weights(model, model.grid(N_STEPS), target, normal).var()
    monkeypatch.setattr(speed, "_winsorise", lambda log_weights: log_weights)
    assert loss_of("plain", 5, batch_size=64).item() == pytest.approx(variance.item(), rel=1e-9)


def test_all_iterations_are_of_one_network():
    model, target = problem()
    before = [parameter.clone() for parameter in model.parameters()]
    for kind in speed.LOSSES:
        first, again = (speed.iteration(kind, model, target, N_STEPS, 32, seed=7) for _ in range(2))
        assert [first(), first()] == [again(), again()]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def bytes_kept(kind, n_steps):
    """Of the tensors that an iteration keeps for its backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor  # which keeps the storage, so that no other has its address

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(kind, 0, n_steps)
    loss.backward()
    return sum(kept.values())


@pytest.mark.slow
def test_the_graph_in_plain_grows_with_the_steps_and_ours_does_not():
    assert bytes_kept("plain", 128) > 3.5 * bytes_kept("plain", 32)
    assert bytes_kept("ours", 128) < 1.1 * bytes_kept("ours", 32)


@pytest.mark.slow
def test_peak_memory_in_plain_grows_with_the_steps_and_ours_does_not():
    grown = {(kind, n): speed._peak_in_a_process(kind, n, 512) for kind in speed.LOSSES for n in (32, 128)}
    assert grown["plain", 128] > 2.5 * grown["plain", 32]
    assert grown["ours", 128] < 1.5 * grown["ours", 32]


def test_peak_memory_is_that_of_a_process_of_its_own():
    ballast = np.ones(600_000_000 // 8)  # of this process, which would hide what the other takes
    assert speed._peak_in_a_process("plain", 32, 256) > 50
    assert ballast.nbytes > 0


# ---------------------------------------------------------------- ratios, rows, output


def test_actions_take_turns():
    called = []
    times = speed.in_turn([functools.partial(called.append, name) for name in "ab"], 3)
    assert "".join(called) == "abababab" and times.shape == (3, 2) and (times >= 0).all()


def test_ratios_with_quartiles_and_bars():
    row = speed.compared("case", [2.0, 4.0, 6.0], [1.0, 1.0, 1.0], ("at least", 4.0))
    assert (row["median"], row["low"], row["high"], row["kept"]) == (4.0, 3.0, 5.0, True)
    assert speed.keeps(1.2, ("at most", 1.15)) is False and speed.keeps(1.2, None) is None
    assert speed.keeps(math.inf, ("at most", 45.0)) is False


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Printed lines, document of the file, and figure of the quick parts but for fits and NUTS."""
    pytest.importorskip("matplotlib")
    folder, said = tmp_path_factory.mktemp("speed"), io.StringIO()
    figure, data = folder / "speed.png", folder / "speed.json"
    arguments = [
        "--quick",
        "--rounds",
        "1",
        "--parts",
        "a",
        "b",
        "d",
        "f",
        "--json",
        str(data),
        "--figure",
        str(figure),
    ]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), warnings.catch_warnings():
        patch.setattr(speed, "_peak_in_a_process", lambda kind, n_steps, batch_size: float(n_steps))
        speed.main(arguments)
    return said.getvalue().splitlines(), json.loads(data.read_text()), figure.read_bytes()


def test_every_part_is_printed_saved_and_drawn(output):
    lines, document, figure = output
    rows = document["rows"]
    assert [part for part in speed.PARTS if part in {row["part"] for row in rows}] == ["a", "b", "d", "f"]
    assert lines[0].startswith("Machine: cpu") and document["machine"]["torch"]
    assert all(any(row["case"] in line for line in lines) for row in rows)
    assert figure.startswith(b"\x89PNG")
    for row in rows:
        assert row["low"] <= row["median"] <= row["high"] if "median" in row else row["exponent"]
    grown = {row["axis"] for row in rows if "exponent" in row}
    assert grown == {"draws", "dimension", "steps", "batch"}


def test_exponents_of_growth():
    clock = iter(np.cumsum([0.0, *[1.0, 0.0, 4.0, 0.0, 16.0, 0.0] * 3]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed.time, "perf_counter", lambda: next(clock))
        row = speed.growth("n", "quadratic", (1, 2, 4), lambda n: None, rounds=1)
    assert row["exponent"] == pytest.approx(2.0) and [r["median"] for r in row["relative"]] == [1.0, 4.0, 16.0]


# ---------------------------------------------------------------- fits


class FakeFit:
    """Reaches its normalised ESS from a limit on; in one mode alone where it is told so."""

    def __init__(self, enough_from, one_mode=False):
        self.enough_from, self.one_mode = enough_from, one_mode

    def __call__(self, max_time, random_state):
        self.fit_time_, self.ess = max_time + 1.0, 0.9 if max_time >= self.enough_from else 0.1
        return self

    def fit(self, target):
        self.target = target
        return self

    def sample(self, n, random_state):
        X = self.target.sample(n, random_state)
        return np.zeros_like(X) if self.one_mode else X

    def sample_weighted(self, n, random_state):
        return type("Weighted", (), {"ess": self.ess * n})


def fits(monkeypatch, ladder=(10.0, 20.0, 40.0), **found):
    monkeypatch.setattr(speed, "FITS", found)
    settings = speed.Settings(quick=True, ladder=ladder, student_ladder=(50.0,), seeds=(0, 1), fits=tuple(found))
    return list(speed.measure_fits(settings))


def test_the_ladder_is_climbed_until_a_fit_is_good_enough(monkeypatch):
    rows = fits(monkeypatch, **{"default": FakeFit(20.0), "on-policy": FakeFit(40.0)})
    took = {row["fit"]: row["took"] for row in rows if "took" in row}
    assert took == {"default": 21.0, "on-policy": 41.0}
    assert all(row["kept"] for row in rows if row.get("fit") == "default")
    assert rows[-1]["median"] == pytest.approx(41 / 21) and "at least" not in rows[-1]["case"]
    (first, *_) = (row for row in rows if row.get("fit") == "default")
    assert [t["enough"] for t in first["tries"]] == [False, True]


def test_what_is_not_reached_is_said(monkeypatch):
    rows = fits(monkeypatch, **{"default": FakeFit(20.0), "on-policy": FakeFit(0.0, one_mode=True)})
    assert [row["took"] for row in rows if row.get("fit") == "on-policy"] == [None, None]
    assert "at least" in rows[-1]["case"] and rows[-1]["median"] == pytest.approx(40 / 21)
    text = "\n".join(speed.table([{"part": "e", **row} for row in rows]))
    assert "not within 40" in text and "gmm9, default, seed 1 | 21 |" in text


@pytest.mark.parametrize("limit, kept", [(60.0, False), (40.0, None)])  # 40 s say nothing about a bar of 45 s
def test_a_fit_that_misses_its_bar(monkeypatch, limit, kept):
    found = {"default": FakeFit(100.0), "on-policy": FakeFit(100.0)}
    rows = fits(monkeypatch, ladder=(10.0, 20.0, limit), **found)
    assert len(rows) == 4  # no ratio
    assert [row["kept"] for row in rows if row["fit"] == "default"] == [kept, kept]


# ---------------------------------------------------------------- NUTS


def test_nuts_for_an_effective_draw():
    pytest.importorskip("numpyro")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = list(speed.measure_nuts(QUICK))
    assert len(rows) == 2 and all(row["median"] > 0 and 0 < row["ess_share"] <= 1 for row in rows)
    assert all("NUTS over" in row["case"] for row in rows)


def test_without_numpyro_the_part_is_left_out(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "opponents", None)
    assert list(speed.measure_nuts(QUICK)) == []
    assert "numpyro" in capsys.readouterr().out


def test_the_posterior_without_data(monkeypatch):
    def lacks(data):
        raise speed.Unavailable("it needs --data")

    monkeypatch.setitem(speed.TARGETS, "ionosphere", lacks)
    name, target = speed.posterior(None)
    assert name == "breast cancer" and target.n_features == 31
