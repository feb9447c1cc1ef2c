import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaw.metrics.null import marchenko_pastur_rank
from deltaw.metrics.rank import rank_at
from deltaw.reports.curves import curve, log_spaced, noise_curve, rank_above_noise
from deltaw.types import Spectrum


@given(st.integers(1, 100_000), st.integers(1, 400))
def test_indices_are_distinct_ascending_and_reach_both_ends(k, points):
    index = log_spaced(k, points)
    assert index[0] == 1
    assert index[-1] == (k if points > 1 or k == 1 else 1)
    assert len(index) == k or k > points
    assert (np.diff(index) > 0).all()
    assert len(index) <= points


def test_a_curve_is_the_spectrum_at_its_indices():
    s = np.linspace(5, 0, 500)
    drawn = curve(Spectrum(s, 500, 800), 60)
    assert (drawn.sigma == s[drawn.at - 1]).all()
    assert drawn.energy == pytest.approx(np.cumsum(s**2)[drawn.at - 1] / (s**2).sum(), rel=1e-12)
    assert drawn.energy[-1] == pytest.approx(1)


def test_the_energy_of_a_truncated_spectrum_refers_to_all_of_it():
    drawn = curve(Spectrum(np.array([3.0, 1.0]), 50, 50, "estimate", energy=20.0))
    assert drawn.energy.tolist() == pytest.approx([9 / 20, 10 / 20])


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_a_curve_neither_overflows_nor_underflows(scale):
    drawn = curve(Spectrum(np.array([2.0, 1.0]) * scale, 2, 2))
    assert drawn.energy.tolist() == pytest.approx([0.8, 1.0])


def test_the_zero_spectrum_has_no_energy():
    assert curve(Spectrum(np.zeros(3), 3, 3)).energy.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("rows", "cols"), [(200, 200), (400, 150), (90, 900)])
def test_noise_follows_the_spectrum_of_a_gaussian_matrix(rows, cols):
    k = min(rows, cols)
    x = np.random.default_rng(0).normal(size=(rows, cols))
    s = np.linalg.svd(x / np.linalg.norm(x), compute_uv=False)
    noise = noise_curve(rows, cols)
    inside = noise.at <= 0.9 * k
    assert noise.sigma[inside] == pytest.approx(s[noise.at - 1][inside], rel=0.05)
    assert noise.energy == pytest.approx(np.cumsum(s**2)[noise.at - 1], abs=0.01)


@pytest.mark.parametrize(("rows", "cols"), [(512, 512), (384, 1536)])
def test_noise_reaches_a_share_of_energy_at_the_null_rank(rows, cols):
    noise = noise_curve(rows, cols, 10_000)
    for q in (0.5, 0.9, 0.99):
        assert np.interp(q, noise.energy, noise.at) == pytest.approx(
            marchenko_pastur_rank(rows, cols, q), rel=2e-3, abs=0.05
        )


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_without_noise_the_rank_is_the_plain_one(values, q):
    s = np.sort(np.array(values))[::-1]
    if s[0] < 1e-3:
        return
    assert rank_above_noise(Spectrum(s, len(s), len(s)), float(len(s)), q) == rank_at(s, q)


def test_what_is_below_the_noise_edge_does_not_count():
    s = np.array([4.0, 3.0, 0.5, 0.5, 0.5])
    assert rank_above_noise(Spectrum(s, 5, 5), 2, 0.9) == 2
    assert rank_above_noise(Spectrum(s, 5, 5), 2, 16 / 25) == 1  # exactly at the threshold counts
    assert rank_above_noise(Spectrum(s, 5, 5), 0, 0.9) == 0
    assert rank_above_noise(Spectrum(np.zeros(5), 5, 5), 0, 0.9) == 0


def test_a_spectrum_that_is_too_short_gives_no_rank():
    short = Spectrum(np.array([2.0, 1.0]), 50, 50, "estimate", energy=100.0)
    assert math.isnan(rank_above_noise(short, 5, 0.9))
    assert math.isnan(rank_above_noise(short, math.nan, 0.9))
    assert rank_above_noise(short, 2, 0.9) == 2
