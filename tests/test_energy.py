"""The user's energy: what is accepted, what is counted, what is refused in which words, and the affine coordinates."""

import traceback
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from skcds.density.energy import CHUNK_ROWS, Energy, InvalidEnergyError
from skcds.density.probe import FAST_TOLERANCE, PROBE_SIZES
from skcds.density.standardize import Standardization
from skcds.density.standardize import StandardizedTarget as Target

D = 3
MEAN = np.array([1.0, -2.0, 0.5])
COV = np.array([[2.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.5]])
PRECISION = np.linalg.inv(COV)
N_PROBED = sum(PROBE_SIZES)  # rows of the three probes; the gradient and float32 are tried on max(PROBE_SIZES) more
N_MAX = max(PROBE_SIZES)


def in_torch(x):
    centred = x - torch.tensor(MEAN, dtype=x.dtype)
    return 0.5 * ((centred @ torch.tensor(PRECISION, dtype=x.dtype)) * centred).sum(1)


def in_numpy(x):
    assert isinstance(x, np.ndarray)
    return 0.5 * np.einsum("ni,ij,nj->n", x - MEAN, PRECISION, x - MEAN)


def gradient_in_numpy(x):
    assert isinstance(x, np.ndarray)
    return (x - MEAN) @ PRECISION


def gradient_in_torch(x):
    return (x - torch.tensor(MEAN, dtype=x.dtype)) @ torch.tensor(PRECISION, dtype=x.dtype)


def torch_only(x):
    """Without a graph, so that the gradient has to come from grad_fn."""
    assert isinstance(x, torch.Tensor)
    return in_torch(x.detach())


def normal(n, d=D, seed=0, dtype=torch.float64):
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make(energy_fn, d=D, **options):
    return Energy(energy_fn, d, generator=torch.Generator().manual_seed(0), **options)


def single_precision_only(energy_fn):
    def strict(x):
        if x.dtype not in (torch.float32, np.float32):
            raise RuntimeError("expected scalar type Float")
        return energy_fn(x)

    return strict


class Counted:
    """Calls through to a function, and notes the rows and the type of every batch."""

    def __init__(self, function):
        self.function, self.rows, self.dtypes = function, [], []

    def __call__(self, x):
        self.rows.append(len(x))  # also of a call that raises
        self.dtypes.append(x.dtype)
        return self.function(x)


KINDS = {
    "torch": (in_torch, None, "torch"),
    "torch and grad_fn": (torch_only, gradient_in_torch, "torch"),
    "torch without gradient": (torch_only, None, "torch"),
    "numpy and grad_fn": (in_numpy, gradient_in_numpy, "numpy"),
    "numpy without gradient": (in_numpy, None, "numpy"),
}


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_is_found(self, kind):
        energy_fn, grad_fn, framework = KINDS[kind]
        energy = make(energy_fn, grad_fn=grad_fn)
        assert energy.framework == framework and energy.has_gradient == ("without" not in kind)
        assert energy.dtype == torch.float64 and energy.n_invalid == 0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_log_prob(self, kind, dtype):
        energy_fn, grad_fn, _ = KINDS[kind]
        x = normal(5, dtype=dtype)
        log_prob = make(energy_fn, grad_fn=grad_fn).log_prob(x)
        assert log_prob.dtype == torch.float64 and not log_prob.requires_grad
        np.testing.assert_allclose(log_prob, -in_numpy(x.double().numpy()), rtol=1e-12)

    def test_score(self, kind):
        energy_fn, grad_fn, _ = KINDS[kind]
        energy = make(energy_fn, grad_fn=grad_fn)
        if energy.has_gradient:
            x = normal(5)
            log_prob, score = energy.log_prob_and_score(x)
            assert log_prob.dtype == score.dtype == torch.float64
            assert not log_prob.requires_grad and not score.requires_grad
            np.testing.assert_allclose(log_prob, -in_numpy(x.numpy()), rtol=1e-12)
            np.testing.assert_allclose(score, -gradient_in_numpy(x.numpy()), rtol=1e-12, atol=1e-12)

    def test_counts(self, kind):
        energy_fn, grad_fn, _ = KINDS[kind]
        values, gradients = Counted(energy_fn), grad_fn and Counted(grad_fn)
        energy = make(values, grad_fn=gradients)
        n_grad = N_MAX if energy.has_gradient else 0
        tried = {"torch and grad_fn": 2, "numpy without gradient": 2}.get(kind, 0)  # with what did not work before
        probed = N_PROBED + n_grad + N_MAX + tried * N_MAX
        assert (energy.n_energy_evals, energy.n_grad_evals) == (probed, n_grad)
        energy.log_prob(normal(5))
        energy.log_prob(normal(CHUNK_ROWS + 1))
        assert energy.n_energy_evals == probed + 5 + CHUNK_ROWS + 1
        assert energy.n_grad_evals == n_grad
        if energy.has_gradient:
            energy.log_prob_and_score(normal(11))
            assert energy.n_energy_evals == probed + 5 + CHUNK_ROWS + 1 + 11
            assert energy.n_grad_evals == n_grad + 11
        assert sum(values.rows) == energy.n_energy_evals
        assert gradients is None or sum(gradients.rows) == energy.n_grad_evals

    def test_large_batches_are_cut(self, kind):
        energy_fn, grad_fn, _ = KINDS[kind]
        values = Counted(energy_fn)
        energy = make(values, grad_fn=grad_fn)
        x, last = normal(2 * CHUNK_ROWS + 3), [CHUNK_ROWS, CHUNK_ROWS, 3]
        np.testing.assert_allclose(energy.log_prob(x), -in_numpy(x.numpy()), rtol=1e-12)
        assert values.rows[-3:] == last
        if energy.has_gradient:
            _, score = energy.log_prob_and_score(x)
            np.testing.assert_allclose(score, -gradient_in_numpy(x.numpy()), rtol=1e-12, atol=1e-12)
            assert values.rows[-3:] == last

    def test_no_points(self, kind):
        energy_fn, grad_fn, _ = KINDS[kind]
        assert make(energy_fn, grad_fn=grad_fn).log_prob(torch.zeros(0, D)).shape == (0,)


class TestGradient:
    def test_grad_fn_is_preferred_to_autograd(self):
        energy = make(in_torch, grad_fn=lambda x: 0 * x + 5.0)
        assert (energy.log_prob_and_score(normal(4))[1] == -5).all()

    def test_points_may_carry_a_graph(self):
        x = normal(4).requires_grad_()
        energy = make(in_torch)
        assert not energy.log_prob(2 * x).requires_grad
        assert not energy.log_prob_and_score(2 * x)[1].requires_grad
        assert x.grad is None

    def test_parameters_collect_no_gradient(self):
        layer = torch.nn.Linear(D, 1).double()
        energy = make(lambda x: layer(x).square().sum(1))
        energy.log_prob_and_score(normal(4))
        assert energy.has_gradient and layer.weight.grad is None

    def test_is_zero_where_not_finite(self):
        energy = make(lambda x: x.abs().sqrt().sum(1))
        score = energy.log_prob_and_score(torch.tensor([[0.0, 1.0, -4.0]]))[1]
        np.testing.assert_allclose(score, [[0, -0.5, 0.25]])
        nan_gradient = make(in_numpy, grad_fn=lambda x: np.where(x > 0, np.nan, np.inf))
        assert (nan_gradient.log_prob_and_score(normal(4))[1] == 0).all()

    def test_is_found_without_grad_mode(self):
        with torch.no_grad():
            assert make(in_torch).has_gradient


def slope(x, **options):
    """Gradient of a quadratic by autograd, whose points may lack a graph."""
    return torch.autograd.grad((0.5 * (x - 1.0) ** 2).sum(), x, **options)[0]


def of_its_argument(x):
    """Differentiates by the very tensor that it is given."""
    return 0.5 * (slope(x, create_graph=True) ** 2).sum(1)


def of_a_leaf(x):
    """Differentiates by a tensor of its own, and so has no gradient for others."""
    return 0.5 * (slope(x.detach().clone().requires_grad_()) ** 2).sum(1)


def of_a_leaf_numpy(x):
    assert isinstance(x, np.ndarray)
    return of_a_leaf(torch.from_numpy(x)).numpy()


class TestAutogradInside:
    """Functions that differentiate something themselves work wherever others do, under ``no_grad`` too.

    They had passed the probe, where autograd was on, and failed later; or were refused in the words of PyTorch.
    """

    each = pytest.mark.parametrize(
        "energy_fn, has_gradient", [(of_its_argument, True), (of_a_leaf, False), (of_a_leaf_numpy, False)]
    )

    @each
    @pytest.mark.parametrize("grad_mode", [True, False])
    def test_values(self, energy_fn, has_gradient, grad_mode):
        x = normal(9)
        with torch.set_grad_enabled(grad_mode):
            energy = make(energy_fn)
            assert energy.has_gradient == has_gradient and energy.fast_dtype == torch.float32
            np.testing.assert_allclose(energy.log_prob(x), -0.5 * ((x - 1) ** 2).sum(1))
            if has_gradient:
                np.testing.assert_allclose(energy.log_prob_and_score(x)[1], 1 - x)

    @pytest.mark.parametrize("grad_mode", [True, False])
    @pytest.mark.parametrize("energy_fn", [of_a_leaf, of_a_leaf_numpy])
    def test_gradients(self, energy_fn, grad_mode):
        """And functions of gradients, by autograd as well."""

        def gradient(x):
            found = slope(torch.as_tensor(x).clone().requires_grad_())
            return found if isinstance(x, torch.Tensor) else found.numpy()

        x = normal(9)
        with torch.set_grad_enabled(grad_mode):
            log_prob, score = make(energy_fn, grad_fn=gradient).log_prob_and_score(x)
        np.testing.assert_allclose(log_prob, -0.5 * ((x - 1) ** 2).sum(1))
        np.testing.assert_allclose(score, 1 - x)


class TestNumPyResults:
    def test_lists_and_integers(self):
        energy = make(lambda x: [int(value) for value in in_numpy(x)])
        np.testing.assert_array_equal(energy.log_prob(normal(9)), -np.floor(in_numpy(normal(9).numpy())))

    def test_a_buffer_that_is_used_again(self):
        buffer = np.empty(CHUNK_ROWS)

        def energy_fn(x):
            buffer[: len(x)] = in_numpy(x)
            return buffer[: len(x)]

        x = normal(2 * CHUNK_ROWS + 3)
        np.testing.assert_allclose(make(energy_fn).log_prob(x), -in_numpy(x.numpy()), rtol=1e-12)

    @pytest.mark.parametrize("step", [1, 2, -1])
    def test_memory_of_any_kind(self, step):
        """Read-only, as the arrays of JAX are, strided or reversed."""

        def energy_fn(x):
            result = np.empty(2 * len(x))[:: 2 if step == 2 else 1][: len(x)][:: np.sign(step)]
            result[:] = in_numpy(x)
            result.flags.writeable = False
            return result

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            log_prob = make(energy_fn).log_prob(normal(5))
        np.testing.assert_allclose(log_prob, -in_numpy(normal(5).numpy()), rtol=1e-12)


class TestPrecision:
    @pytest.mark.parametrize("energy_fn, grad_fn", [(in_torch, None), (in_numpy, gradient_in_numpy)])
    def test_single_precision_only(self, energy_fn, grad_fn):
        values = Counted(single_precision_only(energy_fn))
        energy = make(values, grad_fn=grad_fn and single_precision_only(grad_fn))
        assert energy.dtype == energy.fast_dtype == torch.float32
        assert (
            energy.has_gradient
            and energy.n_energy_evals
            and sum(values.rows) == energy.n_energy_evals == N_PROBED + N_MAX + N_MAX
        )
        x = normal(5)
        log_prob, score = energy.log_prob_and_score(x)
        assert log_prob.dtype == score.dtype == torch.float64
        np.testing.assert_allclose(log_prob, -in_numpy(x.numpy()), rtol=1e-4)

    def test_a_network_in_single_precision(self):
        layer = torch.nn.Linear(D, 1)
        energy = make(lambda x: layer(x)[:, 0] ** 2 + (x**2).sum(1))
        assert energy.dtype == energy.fast_dtype == torch.float32 and energy.has_gradient

    def test_double_precision_only(self):
        def strict(x):
            if x.dtype == torch.float32:
                raise RuntimeError("expected scalar type Double")
            return in_torch(x)

        energy = make(strict)
        assert energy.dtype == energy.fast_dtype == torch.float64

    @pytest.mark.parametrize("error, fast", [(0.5, torch.float32), (2.0, torch.float64)])
    def test_fast_dtype_depends_on_the_error(self, error, fast):
        def rounded(x):
            return in_torch(x) + error * FAST_TOLERANCE * (x.dtype == torch.float32)

        assert make(rounded).fast_dtype == fast

    def test_overflow_in_single_precision(self):
        energy = make(lambda x: 1e-30 * (x * 1e25).square().sum(1) / 1e20)
        assert energy.dtype == energy.fast_dtype == torch.float64

    def test_points_outside_the_support_do_not_decide(self):
        energy = make(lambda x: torch.where(x[:, 0] > 0, in_torch(x), torch.inf))
        assert energy.fast_dtype == torch.float32

    def test_the_supports_have_to_agree(self):
        def energy_fn(x):
            return torch.where((x[:, 0] > 0) & (x.dtype == torch.float64), torch.inf, in_torch(x))

        assert make(energy_fn).fast_dtype == torch.float64

    def test_is_chosen_by_the_caller(self):
        values = Counted(in_torch)
        energy = make(values)
        assert energy.log_prob(normal(4), torch.float32).dtype == torch.float64
        assert values.dtypes[-1] == torch.float32
        assert energy.log_prob_and_score(normal(4), torch.float32)[1].dtype == torch.float64
        assert values.dtypes[-1] == torch.float32
        energy.log_prob(normal(4, dtype=torch.float32))
        assert values.dtypes[-1] == torch.float64


def noisy():
    generator = torch.Generator().manual_seed(1)
    return lambda x: in_torch(x) + torch.rand(len(x), dtype=x.dtype, generator=generator)


def raises(error):
    def energy_fn(x):
        raise error

    return energy_fn


NAN = np.nan
ERRORS = {
    "column": (lambda x: (x**2).sum(1, keepdims=True), r"shape \(7,\) .*got shape \(7, 1\).* Drop the last axis.*:, 0"),
    "matrix": (lambda x: x**2, r"shape \(7,\) for an input of shape \(7, 3\); got shape \(7, 3\)\.(\n|$)"),
    "scalar": (lambda x: (x**2).sum(), r"got shape \(\)\. Sum over the features only"),
    "Python number": (lambda x: 1.0, r"got shape \(\)\. Sum over the features only"),
    "transposed": (lambda x: (x**2).sum(0), r"got shape \(3,\)\.(\n|$)"),
    "squeezed": (lambda x: (x**2).sum(1).squeeze(), r"shape \(1,\) for an input of shape \(1, 3\); got shape \(\)"),
    "NumPy scalar": (lambda x: np.asarray(in_numpy(x)).sum(), r"got shape \(\)\. Sum over the features only"),
    "None": (lambda x: None, "has to return real numbers of shape .* got NoneType"),
    "integers": (lambda x: (x**2).sum(1).long(), "got dtype torch.int64"),
    "Booleans": (lambda x: (x > 0).any(1), "got dtype torch.bool"),
    "NumPy Booleans": (lambda x: np.asarray(x.sum(1) > 0), "got ndarray of dtype bool"),
    "complex numbers": (lambda x: x.sum(1) * 1j, "got dtype torch.complex128"),
    "strings": (lambda x: ["low"] * len(x), r"got list of dtype <U3"),
    "ragged list": (lambda x: [[0.0]] + [[0.0, 1.0]] * (len(x) - 1), r"got list\.(\n|$)"),
    "NaN everywhere": (lambda x: NAN * x.sum(1), "returned nan at every one of 7 standard normal points"),
    "-inf everywhere": (lambda x: -np.inf * (x**2).sum(1), "returned -inf at every one of 7 standard normal points"),
    "row-dependent": (lambda x: ((x - x.mean(0)) ** 2).sum(1), "depend on that row alone, and not be random"),
    "normalised": (lambda x: (x**2).sum(1) / (x**2).sum(), "depend on that row alone, and not be random"),
    "random": (noisy(), "depend on that row alone, and not be random"),
}


class TestErrors:
    @pytest.mark.parametrize("name", ERRORS)
    def test_wrong_energies(self, name):
        energy_fn, message = ERRORS[name]
        with pytest.raises(InvalidEnergyError, match=f"^energy_fn .*{message}"):
            make(energy_fn)

    def test_numpy_scalar_for_one_point(self):
        def squeezed(x):
            return in_numpy(x).squeeze()

        with pytest.raises(InvalidEnergyError, match=r"shape \(1,\) for an input of shape \(1, 3\); got shape \(\)"):
            make(squeezed)

    def test_is_a_value_error(self):
        with pytest.raises(ValueError, match="energy_fn"):
            make(lambda x: None)

    @pytest.mark.parametrize("energy_fn", [None, 3.0, "energy", np.zeros((4, 3))])
    def test_not_callable(self, energy_fn):
        with pytest.raises(TypeError, match=f"^energy_fn has to be a function .* got {type(energy_fn).__name__}"):
            make(energy_fn)

    def test_grad_fn_not_callable(self):
        with pytest.raises(TypeError, match=r"^grad_fn has to be a function or None; got bool"):
            make(in_torch, grad_fn=True)

    @pytest.mark.parametrize(
        "grad_fn, message",
        [
            (lambda x: x.sum(1), r"shape \(7, 3\) for an input of shape \(7, 3\); got shape \(7,\)"),
            (lambda x: x.sum(1, keepdims=True), r"got shape \(7, 1\)"),
            (lambda x: None, "got NoneType"),
            (lambda x: x > 0, "of dtype bool"),
        ],
    )
    def test_wrong_gradients(self, grad_fn, message):
        with pytest.raises(InvalidEnergyError, match=f"^grad_fn has to return real numbers .*{message}"):
            make(in_numpy, grad_fn=grad_fn)

    @pytest.mark.parametrize("grad_fn", [None, gradient_in_numpy])
    @pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), KeyError("theta"), RuntimeError("no licence")])
    def test_exceptions_are_passed_on(self, error, grad_fn):
        with pytest.raises(type(error)) as caught:
            make(raises(error), grad_fn=grad_fn)
        assert caught.value is error

    def test_exceptions_of_grad_fn_are_passed_on(self):
        error = ZeroDivisionError("by zero")
        with pytest.raises(ZeroDivisionError) as caught:
            make(in_numpy, grad_fn=raises(error))
        assert caught.value is error

    def test_exceptions_of_numpy_code_are_not_hidden(self):
        """Behind those that a tensor causes in it."""

        def energy_fn(x):
            x = np.asarray(x)  # fails on a tensor that requires a gradient
            raise ZeroDivisionError(f"the temperature is zero in {type(x).__name__}")

        with pytest.raises(Exception) as caught:
            make(energy_fn)
        assert "the temperature is zero" in "".join(traceback.format_exception(caught.value))

    def test_exceptions_at_all_points_are_passed_on(self):
        """A callable that does not work any more, where it did before, either."""
        broken = []

        def energy_fn(x):
            if broken:
                raise ZeroDivisionError("by zero")
            return in_torch(x)

        energy = make(energy_fn)
        broken.append(True)
        with pytest.raises(ZeroDivisionError):
            energy.log_prob(torch.full((1, D), 5.0))

    @pytest.mark.parametrize("kind", ["torch", "numpy", "gradient of numpy"])
    @pytest.mark.parametrize("n_bad", [1, 3, 400])
    def test_exceptions_at_some_points_are_outside_the_support(self, kind, n_bad):
        """As libraries of distributions raise where a parameter underflows: the other rows of the batch keep theirs."""

        def refuse(x):
            if (x[:, 0] > 50).any():
                raise ValueError("the scale has to be positive")

        def in_one(x):
            refuse(x)
            return in_torch(x)

        def in_other(x):
            refuse(x)
            return in_numpy(np.asarray(x))

        def gradient(x):
            refuse(x)
            return gradient_in_numpy(x)

        options = {"grad_fn": gradient} if kind.startswith("gradient") else {}
        energy = make(in_one if kind == "torch" else in_other, **options)
        x = normal(CHUNK_ROWS + 100)
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:n_bad]
        x[rows, 0] = 60.0
        with pytest.warns(
            RuntimeWarning, match=r"raised ValueError \(the scale has to be positive\).* at x = \[60"
        ) as caught:
            log_prob = energy.log_prob(x)
        score = energy.log_prob_and_score(x)[1] if energy.has_gradient else 0 * x
        bad = torch.zeros(len(x), dtype=torch.bool)
        bad[rows] = True
        assert torch.equal(log_prob == -torch.inf, bad) and len(caught) == 1
        np.testing.assert_allclose(log_prob[~bad], -in_numpy(x[~bad].numpy()), rtol=1e-12)
        assert (score[bad] == 0).all() and energy.n_invalid == (1 + energy.has_gradient) * n_bad

    def test_shapes_are_checked_after_the_probe(self):
        energy = make(lambda x: in_torch(x)[: max(PROBE_SIZES)])
        with pytest.raises(InvalidEnergyError, match=r"shape \(9,\) for an input of shape \(9, 3\); got shape \(7,\)"):
            energy.log_prob(normal(9))


def spoilt(value, far=10.0):
    """Energy that is `value` beyond `far` along the first axis, where the probe does not look."""
    return lambda x: torch.where(x[:, 0] > far, value, in_torch(x))


def batch(n, n_far):
    x = normal(n)
    x[:n_far, 0] = 20.0
    return x


class TestNonFinite:
    def test_plus_infinity_is_outside_the_support(self):
        energy = make(spoilt(torch.inf))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            log_prob, score = energy.log_prob_and_score(batch(8, 8))
            assert (log_prob == -torch.inf).all() and (score == 0).all()
            assert (energy.log_prob(batch(8, 3)).isfinite() == torch.arange(8).ge(3)).all()
        assert energy.n_invalid == 0

    def test_plus_infinity_at_every_probe_point(self):
        assert make(lambda x: torch.where(x[:, 0] > 100, in_torch(x), torch.inf)).n_invalid == 0

    def test_points_that_are_not_finite_are_not_the_fault_of_the_energy(self, recwarn):
        """States of a chain that diverged: outside the support, neither counted nor warned of, however many."""
        energy = make(in_torch)
        x = normal(8)
        x[:7, 0] = torch.nan
        log_prob = energy.log_prob(x)
        assert (log_prob[:7] == -torch.inf).all() and log_prob[7].isfinite()
        assert energy.n_invalid == 0 and not recwarn.list

    @pytest.mark.parametrize("value", [torch.nan, -torch.inf])
    def test_invalid_rows_are_dropped(self, value):
        energy, x = make(spoilt(value)), batch(8, 4)  # just half of the batch
        with pytest.warns(RuntimeWarning, match="for 4 of 8 points, for example at x = "):
            log_prob = energy.log_prob(x)
        assert (log_prob[:4] == -torch.inf).all()
        np.testing.assert_allclose(log_prob[4:], -in_numpy(x[4:].numpy()))
        assert energy.n_invalid == 4

    def test_they_are_warned_of_once(self):
        def use():
            energy = make(spoilt(torch.nan))
            for _ in range(3):
                energy.log_prob(batch(8, 2))
                energy.log_prob_and_score(batch(8, 1))
            return energy.n_invalid

        with pytest.warns(RuntimeWarning, match="treated as outside the support") as caught:
            assert use() == 9
        assert len(caught) == 1

    def test_the_probe_warns_too(self):
        with pytest.warns(RuntimeWarning, match="treated as outside the support"):
            energy = make(spoilt(torch.nan, far=0.7))
        before = energy.n_invalid
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            energy.log_prob(batch(20, 3) - 3)
        assert before > 0 and energy.n_invalid == before + 3

    def test_the_example_is_such_a_point(self):
        x = torch.tensor([[0.0, 1.0, 2.0], [11.0, 12.0, 13.25], [0.0, 0.0, 0.0]])
        with pytest.warns(RuntimeWarning, match=r"1 of 3 points, for example at x = \[11\.\s+12\.\s+13\.25\]"):
            make(spoilt(torch.nan)).log_prob(x)

    @pytest.mark.parametrize("value", [torch.nan, -torch.inf])
    @pytest.mark.parametrize("method", ["log_prob", "log_prob_and_score"])
    @pytest.mark.parametrize("n_far", [5, 9])
    def test_any_number_of_them(self, value, method, n_far):
        """One policy, whatever the size of the batch and the share of invalid rows in it."""
        energy = make(spoilt(value))
        with pytest.warns(RuntimeWarning, match=f"{'NaN' if value != value else '-inf'} for {n_far} of 9 points"):
            found = getattr(energy, method)(batch(9, n_far))
        log_prob = found if method == "log_prob" else found[0]
        assert int((log_prob == -torch.inf).sum()) == n_far == energy.n_invalid

    def test_a_wrong_sign_is_suspected(self):
        with pytest.warns(RuntimeWarning, match="Did you pass a log density"):
            make(spoilt(-torch.inf)).log_prob(batch(9, 2))

    def test_the_whole_batch_counts_not_one_chunk(self):
        with pytest.warns(RuntimeWarning, match=f"{CHUNK_ROWS} of {2 * CHUNK_ROWS} points"):
            make(spoilt(torch.nan)).log_prob(batch(2 * CHUNK_ROWS, CHUNK_ROWS))


def shifted_in_place(x):
    x -= 3
    return 0.5 * (x**2).sum(1)


def clamped_in_place(x):
    """Passes a probe for row dependence: doing it twice changes nothing more."""
    with torch.no_grad():
        x.clamp_(-1, 1)
    return (x**2).sum(1)


def clamped_numpy(x):
    np.clip(x, -1, 1, out=x)
    return (x**2).sum(1)


class TestInPlace:
    """Functions that write into their argument work, and the caller's points stay as they are."""

    def test_torch(self):
        energy, x = make(shifted_in_place), normal(4)
        np.testing.assert_allclose(energy.log_prob(x), -0.5 * ((normal(4) - 3) ** 2).sum(1))
        np.testing.assert_allclose(energy.log_prob_and_score(x)[1], 3 - normal(4))
        assert torch.equal(x, normal(4))

    @pytest.mark.parametrize("grad_fn", [None, lambda x: 2 * x])
    @pytest.mark.parametrize("energy_fn", [clamped_in_place, clamped_numpy])
    def test_without_an_effect_on_the_value(self, energy_fn, grad_fn):
        energy, x = make(energy_fn, grad_fn=grad_fn), 5 * normal(4)
        energy.log_prob(x)
        if grad_fn:
            np.testing.assert_array_equal(energy.log_prob_and_score(x)[1], -2 * x)  # at x, not where the energy left it
        assert torch.equal(x, 5 * normal(4))

    def test_numpy(self):
        def gradient(x):
            x -= 3
            return x

        energy, x = make(shifted_in_place, grad_fn=gradient), normal(4)
        assert energy.framework == "numpy"
        log_prob, score = energy.log_prob_and_score(x)
        np.testing.assert_allclose(log_prob, -0.5 * ((normal(4) - 3) ** 2).sum(1))
        np.testing.assert_allclose(score, 3 - normal(4))
        assert torch.equal(x, normal(4))


@pytest.mark.parametrize("kind", KINDS)
def test_construction_is_pure(kind):
    """With a generator of its own."""
    energy_fn, grad_fn, _ = KINDS[kind]
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    make(energy_fn, grad_fn=grad_fn).log_prob(normal(3))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)


def lower_triangular(d):
    below = arrays(float, (d, d), elements=st.integers(-8, 8).map(lambda i: i / 8))
    diagonal = arrays(float, d, elements=st.integers(-4, 4).map(lambda i: 2.0**i))
    return st.tuples(below, diagonal).map(lambda pair: np.tril(pair[0], -1) * pair[1] + np.diag(pair[1]))


factors = st.integers(1, 5).flatmap(lower_triangular)  # of covariances with condition number below about 1e8
EPS = np.finfo(float).eps


class TestStandardization:
    @pytest.mark.parametrize("full", [True, False])
    def test_starts_at_the_identity(self, full):
        affine, z = Standardization(D, full=full), normal(4)
        assert (
            torch.equal(affine(z), z) and torch.equal(affine.inverse(z), z) and torch.equal(affine.pull_back(z, z), z)
        )
        assert torch.equal(affine.log_det(z), torch.zeros(4).double())

    @given(factors, st.booleans(), st.integers(0, 99))
    def test_maps_are_consistent(self, factor, full, seed):
        d = len(factor)
        factor = factor if full else np.diag(np.diag(factor))
        covariance = torch.tensor(factor @ factor.T if full else np.diag(factor) ** 2)
        loc, z, w = normal(3, d, seed)[0], normal(4, d, seed + 1), normal(4, d, seed + 2)
        affine = Standardization.from_moments(loc, covariance)
        assert affine.full == full
        # Cholesky, product and triangular solve are backward stable: errors are rounding times the condition number
        scale, condition = np.abs(factor).sum(), np.linalg.cond(factor)
        tolerance = 50 * d * EPS * condition**2
        expected = loc.numpy() + z.numpy() @ factor.T
        np.testing.assert_allclose(affine(z), expected, rtol=0, atol=tolerance * scale * float(z.abs().max()) + EPS)
        np.testing.assert_allclose(affine.inverse(affine(z)), z, rtol=0, atol=tolerance * float(z.abs().max() + 9))
        np.testing.assert_allclose(affine.log_det(z), np.log(np.diag(factor)).sum(), rtol=0, atol=tolerance)
        u = z.clone().requires_grad_()
        (pulled,) = torch.autograd.grad((affine(u) * w).sum(), u)
        np.testing.assert_allclose(affine.pull_back(z, w), pulled, rtol=0, atol=50 * d * EPS * scale * 9)

    @pytest.mark.parametrize("covariance", [COV, np.diag(COV)])
    def test_from_moments_standardises(self, covariance):
        affine = Standardization.from_moments(torch.tensor(MEAN), torch.tensor(covariance))
        z = affine.inverse(torch.tensor(stats.multivariate_normal(MEAN, COV).rvs(500, random_state=0)))
        x = affine(z)
        np.testing.assert_allclose(affine.inverse(torch.tensor(MEAN)[None]), np.zeros((1, D)), atol=1e-15)
        np.testing.assert_allclose(x.mean(0), affine(z.mean(0, keepdim=True))[0])
        cov = np.cov(z.numpy().T)
        scale = affine.scale.numpy() if affine.full else np.diag(affine.scale)
        np.testing.assert_allclose(scale @ scale.T, covariance if affine.full else np.diag(covariance), atol=1e-15)
        np.testing.assert_allclose(scale @ cov @ scale.T, np.cov(x.numpy().T), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("full", [True, False])
    def test_is_in_double_precision(self, full):
        covariance = torch.eye(2) if full else torch.ones(2)  # moments of float32 particles
        affine = Standardization.from_moments(torch.zeros(2), covariance)
        z = torch.ones(3, 2)
        assert affine(z).dtype == affine.inverse(z).dtype == affine.pull_back(z, z.double()).dtype == torch.float64

    def test_does_not_follow_the_caller(self):
        loc = torch.tensor(MEAN)
        affine = Standardization.from_moments(loc, torch.tensor(COV))
        loc += 1
        np.testing.assert_array_equal(affine.loc, MEAN)

    @pytest.mark.parametrize("full", [True, False])
    def test_state(self, full):
        affine = Standardization.from_moments(torch.tensor(MEAN), torch.tensor(COV if full else np.diag(COV)))
        other = Standardization(D, full=full)
        other.load_state_dict(affine.state_dict())
        assert torch.equal(other(normal(4)), affine(normal(4)))
        assert list(affine.parameters()) == []


TAILS = torch.tensor([0.5, 0.0, -1.0]).double(), torch.tensor([torch.inf, 0.3, 2.0], dtype=torch.float64)


class TestTamedTails:
    """Coordinates with a hyperbolic sine, the others affine."""

    standardization = Standardization.from_moments(torch.tensor(MEAN), torch.tensor(COV), TAILS)

    def test_by_hand(self):
        affine, z = Standardization.from_moments(torch.tensor(MEAN), torch.tensor(COV)), normal(5)
        y, x = affine(z).numpy(), self.standardization(z).numpy()
        np.testing.assert_array_equal(x[:, 0], y[:, 0])
        np.testing.assert_allclose(x[:, 1], 0.3 * np.sinh(y[:, 1]), rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(x[:, 2], -1 + 2 * np.sinh(y[:, 2]), rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(self.standardization.tame(torch.tensor(x)), y, rtol=1e-12, atol=1e-12)

    @given(st.integers(0, 99), st.floats(0.01, 5))
    def test_is_invertible(self, seed, spread):
        z = spread * normal(4, seed=seed)
        np.testing.assert_allclose(self.standardization.inverse(self.standardization(z)), z, rtol=1e-9, atol=1e-9)

    @given(st.integers(0, 99))
    def test_jacobian(self, seed):
        z = normal(3, seed=seed)
        for row in z:
            jacobian = torch.func.jacrev(lambda u: self.standardization(u[None])[0])(row)
            log_det = self.standardization.log_det(row[None])[0]
            np.testing.assert_allclose(log_det, torch.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-9)

    def test_the_jacobian_is_needed(self):  # negative control: that of the affine part alone
        z = normal(5)
        affine = Standardization.from_moments(torch.tensor(MEAN), torch.tensor(COV))
        assert ((self.standardization.log_det(z) - affine.log_det(z)).abs() > 0.01).all()

    def test_far_out_is_outside_the_support(self):
        far = torch.tensor([[0.0, 1e4, 0.0]]).double()
        assert self.standardization(far).isfinite().all() and self.standardization.log_det(far) == -torch.inf
        assert self.standardization.pull_back(far, torch.ones(1, 3).double()).isfinite().all()

    def test_heavy_tails_become_light(self):
        """20 000 Cauchy draws: the kurtosis is in the thousands before, and below that of a Laplace (6) after."""
        x = torch.tensor(stats.cauchy.rvs(size=(20_000, 1), random_state=0))
        standardization = Standardization.from_moments(
            torch.zeros(1), torch.ones(1, 1), (torch.zeros(1), torch.tensor([0.3]))
        )
        assert stats.kurtosis(x.numpy(), fisher=False)[0] > 1000
        assert stats.kurtosis(standardization.tame(x).numpy(), fisher=False)[0] < 6


AFFINES = {
    "exact": Standardization.from_moments(torch.tensor(MEAN), torch.tensor(COV)),
    "diagonal": Standardization.from_moments(torch.tensor(MEAN), torch.tensor(np.diag(COV))),
    "other": Standardization.from_moments(torch.tensor([5.0, 0, 1]), torch.tensor(0.3 * COV + 2 * np.eye(3))),
}
TAMED = Standardization.from_moments(torch.tensor(MEAN), torch.tensor(COV), TAILS)


class TestTamedTarget:
    def test_density_and_score(self):
        """E is that of N(MEAN, COV): change of variables by SciPy; the score by central differences."""
        target, z = Target(make(in_torch), TAMED), normal(6)
        log_z = 0.5 * np.linalg.slogdet(2 * np.pi * COV)[1]
        log_det = [torch.linalg.slogdet(torch.func.jacrev(lambda u: TAMED(u[None])[0])(row))[1].item() for row in z]
        expected = stats.multivariate_normal(MEAN, COV).logpdf(TAMED(z).numpy()) + log_z + np.array(log_det)
        log_prob, score = target.log_prob_and_score(z)
        np.testing.assert_allclose(log_prob, expected, rtol=1e-9, atol=1e-9)
        h = 1e-4 * torch.eye(D).double()
        differences = torch.stack([target.log_prob(z + e) - target.log_prob(z - e) for e in h], 1) / 2e-4
        np.testing.assert_allclose(score, differences, rtol=1e-4, atol=1e-4 * float(score.abs().max()))

    def test_far_out(self):
        target = Target(make(in_torch), TAMED)
        log_prob, score = target.log_prob_and_score(torch.tensor([[0.0, 1e4, 0.0], [0.0, 0.0, 0.0]]).double())
        assert log_prob[0] == -torch.inf and log_prob[1].isfinite() and score.isfinite().all()


@pytest.mark.parametrize("name", AFFINES)
class TestStandardizedTarget:
    def test_density(self, name):
        """Change of variables by SciPy's Gaussian densities: E is that of N(MEAN, COV) but for its constant."""
        affine, z = AFFINES[name], normal(6)
        scale = affine.scale.numpy() if affine.full else np.diag(affine.scale)
        inverse = np.linalg.inv(scale)
        law = stats.multivariate_normal(inverse @ (MEAN - affine.loc.numpy()), inverse @ COV @ inverse.T)
        log_z = 0.5 * np.linalg.slogdet(2 * np.pi * COV)[1]
        log_prob = Target(make(in_torch), affine).log_prob(z)
        assert log_prob.dtype == torch.float64
        np.testing.assert_allclose(log_prob, law.logpdf(z.numpy()) + log_z, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("kind", ["torch", "numpy and grad_fn"])
    def test_score_against_finite_differences(self, name, kind):
        energy_fn, grad_fn, _ = KINDS[kind]
        target, z = Target(make(energy_fn, grad_fn=grad_fn), AFFINES[name]), normal(6)
        log_prob, score = target.log_prob_and_score(z)
        assert torch.equal(log_prob, target.log_prob(z))
        h = 1e-4 * torch.eye(D).double()  # central differences are exact for a quadratic but for rounding, 1e-16 / 1e-4
        differences = torch.stack([target.log_prob(z + e) - target.log_prob(z - e) for e in h], 1) / 2e-4
        np.testing.assert_allclose(score, differences, rtol=1e-9, atol=1e-9)

    def test_dtypes(self, name):
        values = Counted(in_torch)
        target = Target(make(values), AFFINES[name], torch.float32)
        log_prob, score = target.log_prob_and_score(normal(4, dtype=torch.float32))
        assert values.dtypes[-1] == torch.float32
        assert log_prob.dtype == torch.float64 and score.dtype == torch.float32
        assert target.log_prob_and_score(normal(4))[1].dtype == torch.float64
        Target(target.energy, AFFINES[name]).log_prob(normal(4, dtype=torch.float32))
        assert values.dtypes[-1] == torch.float64

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_without_gradient(self, name, dtype):
        target, z = Target(make(in_numpy), AFFINES[name]), normal(4, dtype=dtype)
        log_prob, score = target.log_prob_and_score(z)
        assert not target.has_gradient and target.energy.n_grad_evals == 0
        assert torch.equal(log_prob, target.log_prob(z))
        assert torch.equal(score, torch.zeros_like(z)) and score.dtype == dtype


def test_standard_coordinates_of_a_gaussian():
    """Standardised by its own moments, the score is -z and the density that of N(0, I)."""
    target, z = Target(make(in_torch), AFFINES["exact"]), normal(50)
    log_prob, score = target.log_prob_and_score(z)
    np.testing.assert_allclose(score, -z, atol=1e-13)
    log_z = 0.5 * np.linalg.slogdet(2 * np.pi * COV)[1]
    np.testing.assert_allclose(log_prob - log_z, stats.norm.logpdf(z.numpy()).sum(1), atol=1e-12)


def test_outside_the_support():
    target = Target(make(spoilt(torch.inf)), AFFINES["exact"])
    log_prob, score = target.log_prob_and_score(torch.full((2, D), 50.0))
    assert (log_prob == -torch.inf).all() and (score == 0).all()
