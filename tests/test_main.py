"""The main job of the README, in small."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer

from skcds import __main__ as main_job
from skcds import targets
from skcds.specifications import Training


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_prints_a_table_and_saves_a_figure(tmp_path, capsys, monkeypatch):
    X, y = load_breast_cancer(return_X_y=True)
    small = targets.BayesianLogisticRegression(X[:50, :7], y[:50])
    monkeypatch.setattr(targets, "breast_cancer", lambda: small)
    job = main_job.Job(
        500, 50, 5, 50, posterior=(5, 5), plane=(5, 5), posterior_seconds=(1, 0.5), plane_seconds=(1, 0.5),
        n_particles=500, training=Training(n_judged=500),
    )  # fmt: skip
    main_job.main(["--figure", str(tmp_path / "figure.png")], job)
    out = capsys.readouterr().out
    for word in ("DiffusionSampler", "ConsistentSamplerDistiller", "long MALA run", "ESS/n", "in one step", "seconds"):
        assert word in out
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_reference_run():
    """On a Gaussian in 4 dimensions; 6 stated errors of a mean (false alarms 1e-8), doubled as these are averages."""
    job = main_job.Job(chains=400)
    cov = np.diag([1.0, 4.0, 0.01, 25.0])
    target = targets.Gaussian([1.0, -2.0, 3.0, 0.0], cov)
    states, mean, error, n_evals = main_job.reference_run(target, 0, job)
    scale = np.sqrt(np.diag(cov))
    assert 0 < error < 0.02 and n_evals > 400 * job.moves
    assert (np.abs(mean - target.mean) < 12 * error * scale).all()
    assert np.allclose(states.std(0), scale, rtol=0.05)


def test_laplace_is_exact_for_a_gaussian():
    cov = np.array([[2.0, 0.9], [0.9, 1.0]])
    affine = main_job.laplace(targets.Gaussian([1.0, -3.0], cov))
    torch.testing.assert_close(affine.scale @ affine.scale.T, torch.from_numpy(cov), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(affine.loc, torch.tensor([1.0, -3.0]).double(), atol=1e-4, rtol=1e-4)
