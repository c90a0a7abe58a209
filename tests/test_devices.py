"""Fits and draws elsewhere than on the CPU."""

import functools
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pretend
import pytest
import torch
from cases import slow

import skcds
from skcds import Control, Coupling, PathLoss, Pilot, Prior, SelfConsistency
from skcds._support import devices
from skcds._support.settings import skeletons
from skcds.density.energy import Energy
from skcds.models.networks import GatedMLP
from skcds.specifications import Climbs, Particles, Race, Tempering, Training

ALONE = "SKCDS_TEST_PRETEND"  # environment variable of the process that the pretend device is for
# Few runs, moves and climbs: on the pretend device every operation costs as much as a launch on a GPU.
SHORT = {
    "race": Race(scales=(1.0, 3.0), inflations=(1.0,), n_modes=1, fewest_moves=1),
    "tempering": Tempering(n_moves=2, min_ess=0.5),
    "climbs": Climbs(n_before=2, n_after=2, n_further=0, wide=(3.0,)),
}
QUICK = {"n_features": 2, "start": Pilot((0.0, 2.0), 100, **SHORT), "n_steps": 4, "batch_size": 128, "random_state": 0}
TRAINING = Training(particles=Particles(min_iter=10), n_judged=2000)  # so short, particles are exchanged all the same
TEACHER = {**QUICK, "max_iter": 12, "loss": PathLoss(training=TRAINING)}
SCRATCH = SelfConsistency(batch_size=64, path_batch_size=64, training=TRAINING)
MAPS = {"coupling": Coupling(n_transforms=2), "residual": "residual"}
MEAN = torch.tensor([1.0, -2.0])


def on_its_device(x):
    return ((x - MEAN.to(x)) ** 2).sum(1) + 0.1 * x[:, 0] ** 4


def on_the_cpu(x):
    return ((x - MEAN.to(x.dtype)) ** 2).sum(1) + 0.1 * x[:, 0] ** 4


def back_on_the_cpu(x):
    return on_its_device(x).cpu()


def in_numpy(x):
    return np.sum((x - MEAN.numpy()) ** 2, axis=1) + 0.1 * x[:, 0] ** 4


def gradient_in_numpy(x):
    return 2 * (x - MEAN.numpy()) + np.stack([0.4 * x[:, 0] ** 3, 0 * x[:, 1]], 1)


@pytest.fixture(params=[pretend.NAME, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """A device that is not the CPU: one that is made up here, and a GPU where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if request.param == pretend.NAME:
        if ALONE not in os.environ:
            pytest.skip("see test_on_the_pretend_device")
        pretend.install()
        monkeypatch.setattr(torch, "Generator", pretend.Generator)
        monkeypatch.setattr("skcds.explore.modes.descend", lambda energy, points, max_iter: points)
    return request.param


@pytest.mark.skipif(ALONE in os.environ, reason="this is that process")
@pytest.mark.parametrize("marker, at_least", [("not slow", 13), *slow(("slow", 2))])
def test_on_the_pretend_device(marker, at_least):
    """The tests below, in a process of their own: PyTorch counts its devices once, at the first gradient."""
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend  # noqa: F401
    except ImportError:
        pytest.skip("this version of PyTorch has no devices in Python")
    these = ["-k", pretend.NAME, "-m", marker, __file__]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *these]
    found = subprocess.run(command, env={**os.environ, ALONE: "1"}, capture_output=True, text=True)
    assert found.returncode == 0 and " passed" in found.stdout, found.stdout[-5000:] + found.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", found.stdout)[1]) >= at_least


@functools.cache
def fitted_on(device):
    """A short fit; do not change it."""
    return skcds.DiffusionSampler(**QUICK, max_iter=5, device=device).fit(on_its_device)


def agrees(fitted, reference):
    """The same fit on the pretend device, until rounding has grown; another one, but as good, on a GPU.

    The tolerance of log Z is six standard errors of both, and a tenth for what a short fit leaves undone.
    """
    if fitted.device == pretend.NAME:
        assert fitted.loss_curve_[:5] == pytest.approx(reference.loss_curve_[:5], rel=1e-4, abs=1e-4)
    error = np.hypot(fitted.log_evidence_se_, reference.log_evidence_se_)
    assert fitted.log_evidence_ == pytest.approx(reference.log_evidence_, abs=6 * error + 0.1)


def skip_jacobians(device, network):
    if (device, network) == (pretend.NAME, "residual"):
        pytest.skip("torch.func crashes on devices in Python")


def test_pretend_device_tells_what_is_elsewhere(device):
    """Negative control: the mistakes that the tests below would catch."""
    here = torch.zeros(3, 2, device=device)
    with pytest.raises(RuntimeError):
        here + torch.zeros(2)
    with pytest.raises(RuntimeError):
        torch.nn.Linear(2, 2)(here)
    with pytest.raises((RuntimeError, TypeError)):
        here.numpy()
    assert (here + torch.tensor(1.0)).device == here.device and devices.to_numpy(here).shape == (3, 2)


@pytest.mark.parametrize("energy", [on_its_device, back_on_the_cpu, on_the_cpu, in_numpy])
def test_energy_is_called_where_it_works(device, energy):
    found = Energy(energy, 2, generator=devices.generator_on(device, 0))
    x = devices.randn(devices.generator_on(device, 1), 5, 2)
    log_prob = found.log_prob(x)
    assert log_prob.device == x.device and log_prob.dtype == torch.float64
    assert devices.to_numpy(log_prob) == pytest.approx(-on_the_cpu(x.cpu().double()).numpy())
    assert found.device.type == torch.device(device).type
    assert found.call_device.type == ("cpu" if energy in (on_the_cpu, in_numpy) else device)


@pytest.mark.parametrize(
    "options",
    [
        *slow({"start": Pilot(n_particles=100, **SHORT)}),
        *slow({"start": Prior(100), "max_iter": 8, "loss": PathLoss(batch_size=64)}),
        *slow({"network": Control(langevin=False, variance="fixed")}),
        *slow({"start": Prior(100), "loss": PathLoss("kl", batch_size=64), "reference": "dds", "max_iter": 10}),
        *slow({"loss": PathLoss(share=0.2), "reference": "pis", "max_iter": 30}),
        {"bounds": [(0, None), (-3, 1)], "max_iter": 5},
    ],
)
def test_diffusion_sampler(device, options):
    fitted, reference = (
        skcds.DiffusionSampler(**TEACHER | options, device=place).fit(on_its_device) for place in (device, "cpu")
    )
    agrees(fitted, reference)
    assert fitted._model.device.type == device
    for method in ("sde", "ode"):
        draws = fitted.sample(20, random_state=1, method=method)
        assert isinstance(draws, np.ndarray) and draws.shape == (20, 2)
        if device == pretend.NAME and fitted.pilot_ is not None:
            assert draws == pytest.approx(reference.sample(20, random_state=1, method=method), abs=5e-2)
    assert np.isfinite(fitted.sample_weighted(120, random_state=1).log_weights).all()
    assert fitted.diagnose(200, random_state=0).verdict in ("ok", "suspect", "failed")


@pytest.mark.parametrize(
    "energy, grad", [*slow((on_the_cpu, None)), (in_numpy, gradient_in_numpy), *slow((in_numpy, None))]
)
def test_fit_to_an_energy_that_is_elsewhere(device, energy, grad):
    fitted, reference = (
        skcds.DiffusionSampler(**QUICK, max_iter=10, device=place).fit(energy, grad_fn=grad)
        for place in (device, "cpu")
    )
    agrees(fitted, reference)


@pytest.mark.parametrize("network", ["coupling", "residual"])
def test_distiller(device, network):
    skip_jacobians(device, network)
    teacher = skcds.DiffusionSampler(**QUICK, max_iter=30).fit(on_its_device)  # on the CPU, or a GPU where there is one
    where = teacher._model.device
    options = {"network": MAPS[network], "max_iter": 10, "batch_size": 64, "random_state": 0}
    fitted, reference = (
        skcds.ConsistentSamplerDistiller(teacher, **options, device=place).fit(on_its_device)
        for place in (device, "cpu")
    )
    agrees(fitted, reference)
    assert fitted._model.device.type == device and teacher._model.device == where
    assert fitted.sample(20, n_steps=2, random_state=1).shape == (20, 2)
    if network == "coupling":
        polished = fitted.sample_polished(20, 4, random_state=1).samples
        assert np.isfinite(polished).all()
    fitted.set_params(warm_start=True, max_iter=2).fit(on_its_device)
    assert fitted._model.device.type == device


@pytest.mark.parametrize(
    "options", [{"network": MAPS["coupling"]}, {"network": "residual"}, *slow({"start": Prior(100), "max_iter": 18})]
)
def test_scratch(device, options):
    skip_jacobians(device, options.get("network"))
    options = QUICK | {"max_iter": 16, "objective": SCRATCH} | options
    fitted, reference = (
        skcds.ConsistentSamplerScratch(**options, device=place).fit(on_its_device) for place in (device, "cpu")
    )
    agrees(fitted, reference)
    assert fitted.sample(20, n_steps=4, random_state=1).shape == (20, 2)
    assert fitted.sample_weighted(120, n_steps=4, random_state=1).samples.shape == (120, 2)


def test_high_dimension(device):
    """Laplace's approximation is sought by SciPy, on the CPU."""
    fitted = skcds.DiffusionSampler(
        n_features=80,
        max_iter=2,
        n_steps=4,
        batch_size=16,
        random_state=0,
        device=device,
        start=Pilot(n_particles=100, **SHORT),
    ).fit(lambda x: 0.5 * (x**2).sum(1))
    assert fitted._model.device.type == device and fitted.ess_ > 0.5


def test_goes_on_from_a_checkpoint(device, tmp_path):
    options = {**QUICK, "max_iter": 20, "loss": PathLoss(training=Training(n_judged=1000))}
    options["max_energy_evals"] = 1_000_000  # else the probe of its speed takes as many as time allows
    seen = []

    def counted(x):
        seen.append(len(x))
        return on_its_device(x)

    whole = skcds.DiffusionSampler(**options, device=device)
    whole.fit(counted, checkpoint=tmp_path / "state")
    before, _ = sum(seen), seen.clear()
    again = skcds.DiffusionSampler(**options, device=device)
    again.fit(counted, checkpoint=tmp_path / "state")
    assert before > whole.n_energy_evals_ - 100 > 2 * sum(seen)  # the pilot and the training are in the file
    assert again.n_energy_evals_ == whole.n_energy_evals_
    assert again.loss_curve_ == whole.loss_curve_
    assert again.log_evidence_ == pytest.approx(whole.log_evidence_, abs=1e-6)
    with pytest.raises(ValueError, match="its device is"):
        skcds.DiffusionSampler(**options, device="cpu").fit(on_its_device, checkpoint=tmp_path / "state")


def test_file_and_pickle_of_another_device(device, tmp_path, monkeypatch):
    fitted = fitted_on(device)
    fitted.save(tmp_path / "sampler")
    pickled = pickle.dumps(fitted)
    draws = fitted.sample(5, random_state=0)
    for loaded in (skcds.load(tmp_path / "sampler"), pickle.loads(pickled)):
        assert loaded._model.device.type == device
        assert loaded.sample(5, random_state=0, energy_fn=on_its_device) == pytest.approx(draws, abs=1e-6)

    def missing(name):
        raise ValueError(f"device={name!r} cannot be used here.")

    monkeypatch.setattr(devices, "find_device", missing)
    with pytest.warns(UserWarning, match="The sampler is on the CPU now"):
        loaded = skcds.load(tmp_path / "sampler")
    assert loaded._model.device.type == "cpu"
    assert loaded.sample(5, random_state=0, energy_fn=on_its_device) == pytest.approx(draws, abs=1e-3)


def test_density_is_shown(device):
    pytest.importorskip("matplotlib").use("agg")
    from skcds.plotting import SamplerDisplay

    SamplerDisplay.from_estimator(fitted_on(device), n=200, random_state=0)


def test_auto_is_cuda_where_it_works(monkeypatch):
    monkeypatch.setattr(devices, "_fault", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.find_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.find_device("auto") == torch.device("cuda")
    monkeypatch.setattr(devices, "_fault", lambda device: RuntimeError("no kernel image"))
    assert devices.find_device("auto") == torch.device("cpu")


def test_teacher_is_fitted_where_its_student_is(device, monkeypatch):
    """ "auto" would be the device, and the student is told to stay on the CPU."""
    monkeypatch.setattr(
        skcds.estimators.base, "find_device", lambda name: torch.device(device if name == "auto" else name)
    )
    teacher = skcds.DiffusionSampler(**QUICK, max_iter=2)
    student = skcds.ConsistentSamplerDistiller(teacher, max_iter=1, batch_size=16, random_state=0, device="cpu")
    student.fit(on_its_device)
    assert student._model.device.type == student.teacher_._model.device.type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x", "cuda:-1"])
def test_unknown_device(name):
    with pytest.raises(ValueError, match=r"device has to be 'auto', 'cpu', 'cuda'"):
        skcds.DiffusionSampler(n_features=2, device=name).fit(on_its_device)


@pytest.mark.parametrize("name", ["meta", "mps", pytest.param("cuda", id="cuda, where there is none")])
def test_device_that_cannot_be_used(name, monkeypatch):
    """Meta has no values, Apple's no double precision."""
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=f"device='{name}' cannot be used here"):
        skcds.ConsistentSamplerScratch(n_features=2, device=name).fit(on_its_device)


def test_networks_on_meta():
    """Shapes alone, on a device that every PyTorch has: nothing is made on the CPU."""
    with skeletons():
        network = GatedMLP(4, 3, 16, 3)
    assert network(torch.zeros(5, 2, device="meta"), torch.zeros(1, 2, device="meta")).shape == (5, 3)


def test_random_numbers_are_where_their_generator_is(device):
    generator = devices.generator_on(device, 0)
    for numbers in (
        devices.randn(generator, 4, 2), devices.rand(generator, 4), devices.randint(generator, 0, 9, (4,)),
        devices.randperm(generator, 4),
    ):  # fmt: skip
        assert numbers.device.type == device and len(numbers) == 4
