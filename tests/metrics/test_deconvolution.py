"""The spectrum without its rounding: closed cases, noise that is added, and the limits."""

import numpy as np
import pytest

from deltaw.metrics import deconvolution, energy_at, rank_at
from deltaw.metrics.deconvolution import ENERGY, RANK, Denoised, Rounded, back, denoise, interval, without_rounding
from deltaw.metrics.quantities import Quantities

RNG = np.random.default_rng


def noisy(s, shape, noise, seed=0):
    """Singular values of a matrix with spectrum `s` after white noise of a standard deviation was added."""
    g, (m, n) = RNG(seed), shape
    u, v = np.linalg.qr(g.standard_normal((m, len(s))))[0], np.linalg.qr(g.standard_normal((n, len(s))))[0]
    return np.linalg.svd((u * s) @ v.T + noise * g.standard_normal(shape), compute_uv=False)


def rounded(shape, step, size):
    """The rounding of entries that all have one step."""
    m, n = shape
    v = step**2 / 12
    return Rounded.of(np.full(m, n * v), np.full(n, m * v), np.array([step]), np.array([float(m * n)]), size)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (250, 250)])
@pytest.mark.parametrize("exponent", [0.3, 0.7, 1.2])
def test_white_noise_is_taken_back(shape, exponent):
    s = 10 * np.arange(1.0, min(shape) + 1) ** -exponent
    noise = 0.1 * np.sqrt((s @ s) / (shape[0] * shape[1]))
    seen = noisy(s, shape, noise)
    found = np.sqrt(back(seen**2, noise**2, max(shape)))
    assert rank_at(found, 0.9) == pytest.approx(rank_at(s, 0.9), abs=1)
    assert energy_at(found, 16) == pytest.approx(energy_at(s, 16), abs=0.002)


def test_groups_pull_as_their_members_do(monkeypatch):
    """A long spectrum is followed in groups; value by value it comes out the same."""
    s = noisy(np.arange(1.0, 401) ** -0.5, (600, 400), 0.004)
    grouped = back(s**2, 0.004**2, 600)
    monkeypatch.setattr(deconvolution, "LEADING", 400)
    one_by_one = back(s**2, 0.004**2, 600)
    np.testing.assert_allclose(np.cumsum(grouped), np.cumsum(one_by_one), rtol=2e-3)
    assert np.all(np.diff(grouped) <= 1e-12)


def test_nothing_was_rounded():
    s = np.array([3.0, 2.0, 1.0])
    found = denoise(s, Rounded(0, 0, 0.0, np.zeros(0), np.zeros(0)), 14.0)
    assert found.values is s
    assert found.share == 0
    assert interval(found) == {RANK: (2, 2, 2), ENERGY: (1, 1, 1)}
    assert without_rounding(Quantities(s=s)).values is s
    assert without_rounding(Quantities(s=np.zeros(3))).values.tolist() == [0, 0, 0]


def test_negligible_rounding_leaves_the_spectrum_alone():
    s = np.array([3.0, 2.0, 1.0])
    found = denoise(s, rounded((4, 3), 1e-4, 14.0), 14.0)
    assert found.values is s
    assert found.share == 0


def test_what_is_mostly_rounding_is_refused():
    s = noisy(np.ones(1), (40, 30), 1 / np.sqrt(12))
    assert denoise(s, rounded((40, 30), 1.0, float(s @ s)), float(s @ s)) is None
    sums = {"noise_row": np.full(40, 30 / 12), "noise_col": np.full(30, 40 / 12)}
    steps = {"noise_steps": np.ones(1), "noise_counts": np.array([1200.0])}
    assert without_rounding(Quantities(s=s, **sums, **steps)) is None
    assert without_rounding(Quantities(s=s, **sums)) is None  # of which steps, nobody knows


@pytest.mark.parametrize("rank", [1, 8, 20])
def test_a_low_rank_update_gets_its_rank_back(rank):
    shape, step = (300, 200), 0.1
    s = noisy(np.linspace(30, 20, rank), shape, step / np.sqrt(12), seed=rank)
    found = denoise(s, rounded(shape, step, float(s @ s)), float(s @ s))
    truth = np.linspace(30, 20, rank)
    assert rank_at(found.values, 0.9) == rank_at(truth, 0.9)
    np.testing.assert_allclose(found.values[:rank], truth, rtol=0.03)
    assert found.values[rank:].max() < 0.1 * truth[-1]
    assert found.values @ found.values == pytest.approx(truth @ truth, rel=0.02)


def test_rows_that_were_not_rounded_add_no_dimensions():
    shape, step = (60, 50), 0.1
    s = noisy(np.full(4, 20.0), shape, step / np.sqrt(12))
    few = rounded(shape, step, float(s @ s))
    assert (few.rows, few.cols) == shape
    row = np.concatenate([np.full(60, 50 * step**2 / 12), np.zeros(940)])
    noise = Rounded.of(row, np.full(50, 60 * step**2 / 12), few.steps, few.counts, float(s @ s))
    assert (noise.rows, noise.cols) == shape
    np.testing.assert_allclose(denoise(s, noise, float(s @ s)).values, denoise(s, few, float(s @ s)).values)


def denoised(s, share, flat=0.0):
    return Denoised(np.asarray(s, dtype=float), share, flat)


def test_intervals_narrow_with_the_rounding():
    s = np.arange(1.0, 201) ** -0.5
    widths = []
    for share in (1e-4, 1e-3, 1e-2, 0.03):
        found = interval(denoised(s, share))
        assert found[RANK].low <= found[RANK].value == rank_at(s, 0.9) <= found[RANK].high
        assert found[ENERGY].low <= found[ENERGY].value <= found[ENERGY].high
        widths.append((found[RANK].high - found[RANK].low, found[ENERGY].high - found[ENERGY].low))
    assert widths == sorted(widths)
    assert widths[0][0] <= 1


def test_storing_again_corrects_and_widens():
    truth = np.arange(1.0, 201) ** -0.5
    first, second = np.arange(1.0, 201) ** -0.6, np.arange(1.0, 201) ** -0.7  # each time it looks steeper
    found = interval(denoised(first, 0.2), denoised(second, 0.2))
    assert rank_at(first, 0.9) < found[RANK].value
    assert found[RANK].low <= rank_at(truth, 0.9) <= found[RANK].high
    assert found[ENERGY].value < energy_at(first, 16)
    assert found[ENERGY].low <= energy_at(truth, 16) <= found[ENERGY].high
    assert interval(denoised(first, 0.2, flat=190.0), denoised(second, 0.2))[RANK].high == 190


@pytest.mark.parametrize("k", [1, 2, 15, 16, 17])
def test_small_spectra(k):
    s = np.linspace(2, 1, k)
    for again in (None, denoised(s, 0.1)):
        found = interval(denoised(s, 0.1), again)
        assert 1 <= found[RANK].low <= found[RANK].value <= found[RANK].high <= k
        assert 0 <= found[ENERGY].low <= found[ENERGY].value <= found[ENERGY].high <= 1
        if k <= 16:
            assert found[ENERGY].value == 1
