from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.errors import TensorError
from deltaw.spectra import factored_singular_values, factored_svd
from deltaw.types import Factors


def random(m, n, seed=0, dtype=torch.float64):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def oracle(f):
    return np.linalg.svd((f.B.double() @ f.A.double()).numpy(), compute_uv=False)


@settings(max_examples=60)
@given(m=st.integers(1, 30), n=st.integers(1, 30), r=st.integers(1, 35), seed=st.integers(0, 10_000))
def test_equals_the_product(m, n, r, seed):
    f = Factors(random(m, r, seed), random(r, n, seed + 1))
    got = factored_singular_values(f)
    expected = oracle(f)
    assert (got.rows, got.cols, got.method) == (m, n, "exact")
    assert got.complete
    np.testing.assert_allclose(got.values, expected, atol=1e-12 * expected[0])
    assert (got.values[r:] == 0).all()
    assert got.energy == pytest.approx(float((f.B @ f.A).square().sum()), rel=1e-10)
    U, S, Vh = factored_svd(f)
    assert U.shape == (m, len(S))
    assert Vh.shape == (len(S), n)
    np.testing.assert_allclose((U * S @ Vh).numpy(), (f.B @ f.A).numpy(), atol=1e-12 * expected[0])
    np.testing.assert_allclose((U.T @ U).numpy(), np.eye(len(S)), atol=1e-12)
    np.testing.assert_allclose((Vh @ Vh.T).numpy(), np.eye(len(S)), atol=1e-12)


def test_a_fresh_adapter_is_zero():
    s = factored_singular_values(Factors(torch.zeros(9, 4), random(4, 7, dtype=torch.float32)))
    assert s.values.tolist() == [0] * 7


def test_rank_zero():
    s = factored_singular_values(Factors(torch.zeros(9, 0), torch.zeros(0, 7)))
    assert s.values.tolist() == [0] * 7


@pytest.mark.parametrize(("b", "a"), [(1e-200, 1e-100), (1e-30, 1e-30), (1e100, 1e50)])
def test_factors_near_the_ends_of_the_range(b, a):
    f = Factors(random(20, 3), random(3, 10, 1))
    got = factored_singular_values(Factors(f.B * b, f.A * a))
    np.testing.assert_allclose(got.values[:3] / (b * a), oracle(f)[:3], rtol=1e-10)


def test_bfloat16_factors_are_multiplied_in_float64():
    f = Factors(random(50, 4).bfloat16(), random(4, 60, 1).bfloat16())
    np.testing.assert_allclose(factored_singular_values(f).values, oracle(f), atol=1e-12 * oracle(f)[0])


def test_no_matrix_of_the_size_of_the_update_is_formed():
    """A 7B embedding's update would take 200 000 × 200 000 × 8 bytes = 320 GB."""
    f = Factors(random(200_000, 2, dtype=torch.float32), random(2, 200_000, dtype=torch.float32))
    s = factored_singular_values(f)
    assert s.complete
    assert (s.values > 0).sum() == 2


@pytest.mark.parametrize("side", [0, 1])
def test_factors_that_are_not_finite(side):
    f = [random(6, 2), random(2, 5)]
    f[side][1, 1] = float("nan")
    with pytest.raises(TensorError, match="factor has entries that are not finite"):
        factored_singular_values(Factors(*f))
