"""AdamW against that of PyTorch, and that it loads no compiler."""

import subprocess
import sys

import pytest
import torch

from skcds.train.optimizer import AdamW


def train(make, set_rate, n=7, unused=False):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, 3, generator=generator)), torch.nn.Parameter(torch.zeros(3))]
    if unused:
        weights.insert(1, torch.nn.Parameter(torch.ones(2)))
    optimizer = make(weights)
    for step in range(n):
        set_rate(optimizer, 0.1 / (1 + step))
        optimizer.zero_grad()
        x = torch.randn(5, 4, generator=generator)
        (torch.tanh(x @ weights[0] + weights[-1]) ** 3).sum().backward()
        optimizer.step()
    return weights, optimizer


def set_group(optimizer, rate):
    optimizer.param_groups[0]["lr"] = rate


def set_own(optimizer, rate):
    optimizer.learning_rate = rate


@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_bit_for_bit(decay, unused):
    theirs, _ = train(lambda w: torch.optim.AdamW(w, 0.1, weight_decay=decay, fused=True), set_group, unused=unused)
    ours, _ = train(lambda w: AdamW(w, 0.1, decay), set_own, unused=unused)
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


def test_state():
    """A state that was kept is not changed by later steps once it is copied, and leads to the same ones again."""
    import copy

    weights, optimizer = train(lambda w: AdamW(w, 0.1), set_own)
    state, kept = copy.deepcopy(optimizer.state_dict()), [w.detach().clone() for w in weights]

    def go_on():
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        return [w.detach().clone() for w in weights]

    first = go_on()
    optimizer.load_state_dict(state)
    with torch.no_grad():
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)
    assert all(torch.equal(a, b) for a, b in zip(first, go_on(), strict=True))


FIT = """
import skcds
sampler = skcds.DiffusionSampler(2, start=skcds.Pilot((0, 1), 100), n_steps=2, max_iter=3, max_time=60)
sampler.fit(lambda x: (x**2).sum(1))
"""
MARGINALS = """
import torch
from skcds.models.maps import OneStepModel, coupling_sizes
from skcds.train.marginals import fit_marginals
assert fit_marginals(OneStepModel("coupling", 24, 6.0, True, **coupling_sizes(24, 6.0)), torch.randn(4000, 24))
"""


@pytest.mark.parametrize("code", [FIT, MARGINALS], ids=["fit", "marginals"])
def test_a_fit_loads_no_compiler(code):
    """Loading it takes seconds, of which a fit of five seconds has none to spare."""
    code += "import sys; assert 'torch._dynamo' not in sys.modules"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
