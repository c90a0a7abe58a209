"""The main job of the README, in small."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer

from skcds import __main__ as main_job
from skcds import targets
from skcds.estimators import diffusion as _diffusion


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_prints_a_table_and_saves_a_figure(tmp_path, capsys, monkeypatch):
    X, y = load_breast_cancer(return_X_y=True)
    small = targets.BayesianLogisticRegression(X[:50, :7], y[:50])
    monkeypatch.setattr(targets, "breast_cancer", lambda: small)
    monkeypatch.setattr(_diffusion, "HELD_OUT", 500)
    monkeypatch.setattr(main_job, "ITERATIONS", {"posterior": (5, 5), "plane": (5, 5)})
    for name, value in {"N_PARTICLES": 500, "N_DRAWS": 500, "CHAINS": 50, "BURN_IN": 5, "MOVES": 50}.items():
        monkeypatch.setattr(main_job, name, value)
    main_job.main(["--figure", str(tmp_path / "figure.png")])
    out = capsys.readouterr().out
    for word in ("DiffusionSampler", "ConsistentSamplerDistiller", "long MALA run", "ESS/n", "in one step", "seconds"):
        assert word in out
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_reference_run(monkeypatch):
    """On a Gaussian in 4 dimensions; 6 stated errors of a mean (false alarms 1e-8), doubled as these are averages."""
    monkeypatch.setattr(main_job, "CHAINS", 400)
    cov = np.diag([1.0, 4.0, 0.01, 25.0])
    target = targets.Gaussian([1.0, -2.0, 3.0, 0.0], cov)
    states, mean, error, n_evals = main_job.reference_run(target, seed=0)
    scale = np.sqrt(np.diag(cov))
    assert 0 < error < 0.02 and n_evals > 400 * main_job.MOVES
    assert (np.abs(mean - target.mean) < 12 * error * scale).all()
    assert np.allclose(states.std(0), scale, rtol=0.05)


def test_laplace_is_exact_for_a_gaussian():
    cov = np.array([[2.0, 0.9], [0.9, 1.0]])
    affine = main_job.laplace(targets.Gaussian([1.0, -3.0], cov))
    torch.testing.assert_close(affine.scale @ affine.scale.T, torch.from_numpy(cov), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(affine.loc, torch.tensor([1.0, -3.0]).double(), atol=1e-4, rtol=1e-4)
