"""What holds for any invertible map of coordinates, by automatic differentiation."""

import torch


def check_by_autograd(found, z):
    """Its inverse, log determinant and `pull_back` at points (n, d) are those of the map itself."""
    z = z.requires_grad_()
    x, log_det, pull_back = found.call_and_pull_back(z)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda p: found(p[None])[0], point) for point in z])
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_det, atol=1e-8)
    (gradient,) = torch.autograd.grad((x.sin().sum(1) + log_det).sum(), z)
    with torch.no_grad():
        assert torch.allclose(found.inverse(x), z, atol=1e-6)
        assert torch.allclose(pull_back(x.cos()), gradient, atol=1e-6)
