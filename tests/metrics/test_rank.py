"""Ranks: closed forms, thresholds met exactly, and invariances."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deltaw import metrics
from deltaw.errors import OptionError

RANKS = ("stable_rank", "effective_rank", "effective_rank_energy", "participation_ratio")
COUNTS = ("rank_50", "rank_90", "rank_95", "rank_99")

spectra = arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1e6, allow_subnormal=False))


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize("k", [1, 2, 7, 384])
def test_k_equal_values_have_rank_k(name, k):
    assert getattr(metrics, name)(np.full(k, 0.3)) == pytest.approx(k, rel=1e-12)


@pytest.mark.parametrize("name", RANKS + COUNTS)
def test_one_direction_has_rank_one(name):
    assert getattr(metrics, name)([0.0, 2.5, 0.0]) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("name", RANKS + COUNTS)
@pytest.mark.parametrize("s", [[0.0], [0.0, 0.0, 0.0]])
def test_zero_matrix_has_rank_zero(name, s):
    assert getattr(metrics, name)(s) == 0
    assert metrics.numerical_rank(s, 5, len(s)) == 0


def test_roy_vetterli_by_hand():
    p = np.array([2, 1, 1]) / 4
    assert metrics.effective_rank([1, 2, 1]) == pytest.approx(np.exp(-np.sum(p * np.log(p))))
    q = np.array([4, 1, 1]) / 6
    assert metrics.effective_rank_energy([1, 2, 1]) == pytest.approx(np.exp(-np.sum(q * np.log(q))))
    assert metrics.participation_ratio([1, 2, 1]) == pytest.approx(36 / 18)
    assert metrics.stable_rank([1, 2, 1]) == pytest.approx(6 / 4)


@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 3, 7e-5, 1e-200, 1e200])
def test_exactly_at_the_threshold_counts(scale):
    assert metrics.rank_90(scale * np.array([3.0, 1.0])) == 1  # 9 of 10
    assert metrics.rank_50(scale * np.ones(4)) == 2
    assert metrics.rank_95(scale * np.ones(20)) == 19
    assert metrics.rank_99(scale * np.ones(100)) == 99
    assert metrics.rank_90(scale * np.ones(4000)) == 3600


def test_the_threshold_holds_for_a_measured_orthogonal_matrix():
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 60)))
    s = np.linalg.svd(q, compute_uv=False)
    assert [metrics.rank_at(s, x) for x in (0.5, 0.9, 0.95)] == [30, 54, 57]


def test_just_below_the_threshold_does_not_count():
    assert metrics.rank_90([3.0 - 1e-9, 1.0]) == 2


def test_numerical_rank_is_strict_and_relative():
    eps = float(np.finfo(np.float32).eps)
    edge = 100 * eps
    assert metrics.numerical_rank([1, edge], 100, 2) == 1
    assert metrics.numerical_rank([1, np.nextafter(edge, 1)], 100, 2) == 2
    assert metrics.numerical_rank([1e-20, 1e-20 * edge], 100, 2) == 1
    assert metrics.numerical_rank([], 0, 3) == 0


@given(spectra, st.floats(1e-6, 1e6))
def test_ranks_do_not_depend_on_scale_or_order(s, scale):
    for name in RANKS:
        value = getattr(metrics, name)(s)
        assert getattr(metrics, name)(scale * s[::-1]) == pytest.approx(value, rel=1e-9)


@given(spectra)
def test_padding_with_zeros_changes_no_rank(s):
    for name in RANKS + COUNTS:
        f = getattr(metrics, name)
        assert f(np.append(s, np.zeros(5))) == pytest.approx(f(s), rel=1e-9)


@given(spectra)
def test_order_of_the_ranks(s):
    """The Rényi ranks of one p fall with their order: energy entropy ≥ participation ≥ stable rank."""
    entropy, participation, stable = (getattr(metrics, n)(s) for n in ("effective_rank_energy", *RANKS[3:], RANKS[0]))
    assert entropy >= participation * (1 - 1e-9)
    assert participation >= stable * (1 - 1e-9)
    assert metrics.effective_rank(s) >= entropy * (1 - 1e-9)
    counts = [getattr(metrics, n)(s) for n in COUNTS]
    assert counts == sorted(counts)


@given(spectra.filter(np.any), st.floats(0.01, 1))
def test_rank_at_is_the_smallest(s, q):
    s = np.sort(s)[::-1] / s.max()
    r = metrics.rank_at(s, q)
    total = math.fsum(s**2)
    assert math.fsum(s[:r] ** 2) >= q * total * (1 - 1e-12)
    assert math.fsum(s[: r - 1] ** 2) < q * total * (1 + 1e-12)


@pytest.mark.parametrize("bad", [[[1.0, 2.0]], [1.0, -1.0], [np.nan], [np.inf, 1.0]])
def test_what_is_no_spectrum_is_refused(bad):
    for name in (*RANKS, *COUNTS, "nuclear_norm", "spectral_norm", "energy_at_4"):
        with pytest.raises(OptionError):
            getattr(metrics, name)(bad)


@pytest.mark.parametrize("q", [0, -0.1, 1.1, float("nan")])
def test_a_share_beyond_its_range_is_refused(q):
    with pytest.raises(OptionError, match=r"share"):
        metrics.rank_at([1.0], q)


def test_leading_values_tell_only_what_they_can():
    full = np.linspace(10, 1, 50)
    energy = float(full @ full)
    head = full[:30]
    assert metrics.rank_at(head, 0.5, energy) == metrics.rank_at(full, 0.5)
    assert math.isnan(metrics.rank_at(head, 0.999, energy))
    assert metrics.stable_rank(head, energy) == pytest.approx(metrics.stable_rank(full))
    assert math.isnan(metrics.effective_rank(head, energy))
    assert math.isnan(metrics.participation_ratio(head, energy))
    assert metrics.effective_rank(full, energy) == metrics.effective_rank(full)


def test_values_that_underflow_carry_no_entropy():
    for tiny in (2.55e-156, 1e-300, 5e-324):
        s = [9.37e5, 8e5, 4.89e5, tiny]
        assert metrics.effective_rank(s) == pytest.approx(metrics.effective_rank(s[:3]))
        assert metrics.effective_rank_energy(s) == pytest.approx(metrics.effective_rank_energy(s[:3]))
