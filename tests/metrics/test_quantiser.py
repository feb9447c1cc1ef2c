"""The Gaussian-input quantiser against a rounding that is carried out."""

import math

import numpy as np
import pytest

from deltaw.metrics.quantiser import gaussian_rounding, inside_cells, moments, uneven_rounding


@pytest.mark.parametrize("ratio", [0.05, 0.19, 0.21, 0.5, 1, 2, 4])
def test_moments_of_a_rounding_that_is_carried_out(ratio):
    x = np.random.default_rng(0).standard_normal(1_000_000)
    q = np.round(x / ratio) * ratio
    kept, gain, unchanged = (float(v[0]) for v in moments(np.array([ratio])))
    assert kept * ratio**2 == pytest.approx((q**2).mean(), rel=5e-3)
    assert gain == pytest.approx((q * x).mean(), abs=4e-3)
    assert unchanged == pytest.approx((q == 0).mean(), abs=2e-3)


@pytest.mark.parametrize("size", [0.15, 0.2, 0.3, 0.5, 1])
def test_how_far_a_gaussian_fills_its_cells(size):
    x = size * np.random.default_rng(0).standard_normal(1_000_000)
    error = 12 * ((x - np.round(x)) ** 2).mean()
    still = np.array([(np.round(x) == 0).mean()])
    assert inside_cells(still)[0] == pytest.approx(error, rel=0.01)
    assert inside_cells(np.array([0.0, 0.3]))[:] == pytest.approx(1, abs=1e-6)


def test_limits():
    kept, gain, unchanged = moments(np.array([1e-12, 1e3]))
    assert kept == pytest.approx([1e24, 0])
    assert gain.tolist() == [1, 0]
    assert unchanged == pytest.approx([0, 1])


@pytest.mark.parametrize("size", [0.05, 0.3, 1, 5, 100])
def test_the_size_of_an_update_is_found_again(size):
    g = np.random.default_rng(1)
    steps = 2.0 ** g.integers(-3, 3, 400_000)
    x = size * g.standard_normal(steps.size)
    q = np.round(x / steps) * steps
    kinds, counts = np.unique(steps, return_counts=True)
    found = gaussian_rounding(kinds, counts.astype(float), float((q**2).sum()))
    assert found.scale == pytest.approx(size, rel=0.02)
    assert found.unchanged == pytest.approx((q == 0).mean(), abs=0.005)
    assert found.gain == pytest.approx((q * x).mean() / size**2, abs=0.02)
    if size <= 1:  # beyond, the difference is that of two large numbers, which chance moves
        assert found.variance == pytest.approx((q**2).mean() - (found.gain * size) ** 2, rel=0.1)


def test_nothing_moved():
    found = gaussian_rounding(np.array([1.0]), np.array([5.0]), 0.0)
    assert found == (0, 0, 0, 1)
    assert math.isfinite(gaussian_rounding(np.array([1e-30, 1.0]), np.array([5.0, 1.0]), 1e-70).scale)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_rows_of_their_own_size_are_told_apart(spread):
    """Rows that differ in size, on a grid whose steps differ between rows, too: each is solved by itself."""
    g = np.random.default_rng(2)
    fineness = np.exp(0.5 * g.standard_normal((300, 1)))
    steps = fineness * 2.0 ** g.integers(-1, 2, (300, 500))
    x = 0.4 * np.exp(spread * g.standard_normal((300, 1))) * g.standard_normal(steps.shape)
    q = np.round(x / steps) * steps
    kinds, counts = np.unique(steps / fineness, return_counts=True)
    typical = np.sqrt(np.mean(fineness**2))
    found = uneven_rounding(kinds * typical, counts.astype(float), (q**2).mean(axis=1), (fineness / typical).ravel())
    assert found.scale**2 == pytest.approx((x**2).mean(), rel=0.02)
    assert found.unchanged == pytest.approx((q == 0).mean(), abs=0.01)
    one_size = gaussian_rounding(kinds * typical, counts.astype(float), float((q**2).sum()))
    if spread:  # as if all rows were of one size
        assert abs(one_size.scale**2 / (x**2).mean() - 1) > 0.05


def test_rows_of_one_size_are_one_update():
    steps, counts = np.array([0.5, 1.0, 2.0]), np.array([2000.0, 5000.0, 1000.0])
    whole = gaussian_rounding(steps, counts, 3000.0)
    rows = uneven_rounding(steps, counts, np.full(80, 3000.0 / 8000), np.ones(80))
    assert rows.scale == pytest.approx(whole.scale, rel=2e-3)
    assert rows.unchanged == pytest.approx(whole.unchanged, abs=2e-3)
    assert uneven_rounding(steps, counts, np.zeros(80), np.ones(80)) == (0, 0, 0, 1)
