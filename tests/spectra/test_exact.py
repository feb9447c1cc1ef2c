from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.delta.sums import sweep
from deltaw.errors import TensorError
from deltaw.metrics import noise_edge
from deltaw.spectra import Noise, exact, singular_values, singular_values_batched, spectrum

EPS32 = float(np.finfo(np.float32).eps)


def oracle(x):
    return np.linalg.svd(x.double().numpy(), compute_uv=False)


def random(m, n, seed=0, dtype=torch.float32):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def entropy_rank(s):
    p = s[s > 0] / s.sum()
    return np.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (7, 1), (5, 5), (64, 200), (200, 64), (5000, 6), (3, 9000), (600, 600)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_lapack_in_float64(shape, dtype):
    x = random(*shape).to(dtype)
    got = singular_values(x)
    expected = oracle(x)
    assert (got.rows, got.cols) == shape
    assert got.complete
    assert got.method == "exact"
    assert got.note == ""
    assert got.values.dtype == np.float64
    np.testing.assert_allclose(got.values, expected, rtol=0, atol=1e-10 * expected[0])
    assert got.energy == pytest.approx(float(x.double().square().sum()), rel=1e-12)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_an_empty_matrix_has_no_singular_values(shape):
    assert singular_values(torch.zeros(shape)).values.shape == (0,)


def test_zero():
    s = singular_values(torch.zeros(6, 4))
    assert s.values.tolist() == [0, 0, 0, 0]
    assert s.energy == 0


@pytest.mark.parametrize("decades", [3, 6, 9, 12])
def test_ill_conditioned_spectra_keep_every_rank(prescribed, decades):
    sigma = np.logspace(0, -decades, 120)
    x = prescribed(sigma, 150, 120)
    s = singular_values(x).values
    np.testing.assert_allclose(s, sigma, rtol=0, atol=1e-7)
    assert s.sum() == pytest.approx(sigma.sum(), rel=1e-6)
    assert entropy_rank(s) == pytest.approx(entropy_rank(sigma), rel=1e-4)
    for tolerance in (EPS32 * 150, 1.1e-4, 1.1e-3):
        assert (s > tolerance * s[0]).sum() == (sigma > tolerance * sigma[0]).sum()


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_an_exactly_low_rank_matrix_is_resolved(prescribed, rank):
    """The Gram matrix alone would put its zeros at 1e-8·σ1, which adds up in Σσ."""
    x = prescribed(np.ones(rank), 512, 300)
    s = singular_values(x).values
    assert s[rank:].max() < 1e-13
    assert entropy_rank(s) == pytest.approx(rank, rel=1e-10)


def test_repeated_singular_values(prescribed):
    sigma = np.repeat([3.0, 2.0, 0.5], [25, 50, 25])
    x = prescribed(sigma, 100, 130)
    np.testing.assert_allclose(singular_values(x).values, sigma, atol=1e-12)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30, 3e36])
def test_float32_near_the_ends_of_its_range(size):
    x = random(40, 30) * size
    expected = oracle(x)
    np.testing.assert_allclose(singular_values(x).values, expected, rtol=0, atol=1e-12 * expected[0])


@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_float64_near_the_ends_of_the_range_of_squares(size):
    x = random(40, 30, dtype=torch.float64)
    np.testing.assert_allclose(singular_values(x * size).values / size, oracle(x), rtol=1e-10)


def test_does_not_modify_its_argument():
    x = random(20, 30)
    before = x.clone()
    singular_values(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_entries_that_are_not_finite(bad):
    x = random(12, 8)
    x[3, 4] = bad
    with pytest.raises(TensorError, match="12×8 matrix has entries that are not finite"):
        singular_values(x)


@settings(max_examples=40)
@given(m=st.integers(1, 40), n=st.integers(1, 40), seed=st.integers(0, 10_000), exponent=st.integers(-60, 60))
def test_invariances(m, n, seed, exponent):
    x = random(m, n, seed, torch.float64)
    s = singular_values(x).values
    tolerance = 1e-7 * s[0]
    assert (np.diff(s) <= 0).all()
    np.testing.assert_allclose(singular_values(x.T).values, s, atol=tolerance)
    np.testing.assert_array_equal(singular_values(x * 2.0**exponent).values, s * 2.0**exponent)
    Q, _ = torch.linalg.qr(random(m, m, seed + 1, torch.float64))
    np.testing.assert_allclose(singular_values(Q @ x).values, s, atol=tolerance)
    padded = torch.zeros(m + 3, n + 2, dtype=torch.float64)
    padded[:m, :n] = x
    np.testing.assert_allclose(singular_values(padded).values[: len(s)], s, atol=tolerance)
    assert singular_values(padded).values[len(s) :].max() <= tolerance


@pytest.mark.parametrize("energy", [1.1e-60, 1e-8, 0.9e60])
def test_moderate_entries_need_no_scale(energy):
    x = random(40, 30, dtype=torch.float64)
    x *= (energy / float(x.square().sum())) ** 0.5
    x[0, 0] = x[1, 1] = 0
    expected = singular_values(x).values
    np.testing.assert_allclose(singular_values(x, moderate=True).values, expected, rtol=1e-12)
    unrounded = Noise(0.0, np.zeros(40), np.zeros(30))  # a stored update goes this way
    np.testing.assert_allclose(spectrum(x, noise=unrounded).values, expected, rtol=1e-12)


def test_a_stack_equals_one_by_one():
    xs = torch.stack([random(24, 40, seed) for seed in range(5)])
    xs[2] = xs[2, :, :1] * torch.ones(40)
    for got, x in zip(singular_values_batched(xs), xs, strict=True):
        assert (got.rows, got.cols) == (24, 40)
        np.testing.assert_allclose(got.values, oracle(x), atol=1e-7 * got.values[0])
    xs[3] = 0
    assert singular_values_batched(xs)[3].values.max() == 0


def diverges(*_args, **_kwargs):
    raise torch.linalg.LinAlgError("the algorithm failed to converge")


def diverges_in_numpy(*_args, **_kwargs):
    raise np.linalg.LinAlgError("Eigenvalues did not converge")


def test_falls_back_when_a_driver_does_not_converge(monkeypatch):
    x = random(30, 20)
    monkeypatch.setattr(np.linalg, "eigvalsh", diverges_in_numpy)
    monkeypatch.setattr(torch.linalg, "eigvalsh", diverges)
    s = singular_values(x)
    assert s.note == "eigvalsh of the Gram matrix did not converge; values from LAPACK gesdd"
    np.testing.assert_allclose(s.values, oracle(x), atol=1e-12)
    monkeypatch.setattr(torch.linalg, "svdvals", diverges)
    s = singular_values(x)
    assert s.note == "eigvalsh of the Gram matrix, LAPACK gesdd did not converge; values from LAPACK gesvd"
    np.testing.assert_allclose(s.values, oracle(x), atol=1e-12)
    np.testing.assert_allclose(singular_values_batched(x[None])[0].values, oracle(x), atol=1e-12)


def test_a_driver_that_returns_nan_counts_as_not_converged(monkeypatch):
    x = random(30, 20)
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda g, **_: np.full(g.shape[:-1], np.nan))
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda g, **_: torch.full(g.shape[:-1], float("nan")).double())
    assert singular_values(x).note.startswith("eigvalsh of the Gram matrix did not converge")
    np.testing.assert_allclose(singular_values_batched(x[None])[0].values, oracle(x), atol=1e-12)


def test_when_nothing_converges_the_error_names_the_shape_and_what_was_tried(monkeypatch):
    monkeypatch.setitem(exact.DRIVERS, "cpu", dict.fromkeys(["first", "second"], diverges))
    with pytest.raises(TensorError, match=r"30×20 matrix did not converge with any of: first, second\."):
        singular_values(random(30, 20))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (64, 64)])
def test_cuda_agrees_with_the_cpu(shape):
    x = random(*shape)
    for name, driver in exact.DRIVERS["cuda"].items():
        tall = x.T if shape[0] < shape[1] else x
        np.testing.assert_allclose(driver(tall.cuda(), 1.0), oracle(x), atol=1e-6, err_msg=name)
    np.testing.assert_allclose(singular_values(x.cuda()).values, singular_values(x).values, atol=1e-10)


@pytest.mark.parametrize("shape", [(64, 64), (128, 64), (96, 96), (384, 128)])
def test_float32_rounding_below_a_large_low_rank_update_is_resolved(shape):
    """An update larger than its base: the edge of float32 lies where a Gram matrix sees nothing."""
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        w0 = 0.02 * torch.randn(*shape, generator=g)
        update = torch.randn(shape[0], 4, generator=g).double() @ torch.randn(4, shape[1], generator=g).double()
        update *= (1 + seed % 3) * float(w0.norm() / update.norm())
        delta, sums = sweep(w0, (w0.double() + update).float())
        s = singular_values(delta, moderate=True).values
        exact = np.linalg.svd(delta.numpy(), compute_uv=False)
        np.testing.assert_allclose(s, exact, atol=1e-14 * exact[0])
        assert np.count_nonzero(s > noise_edge(sums.noise_row, sums.noise_col)) == 4
