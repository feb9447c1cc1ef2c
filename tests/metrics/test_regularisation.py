"""Decay, norms and directions: against naive float64 computations and closed forms."""

import math

import numpy as np
import pytest

from deltaw import metrics


def sums(w0, w):
    d = w - w0
    return (d**2).sum(1), (w0**2).sum(1), (d * w0).sum(1)


@pytest.fixture
def pair():
    g = np.random.default_rng(0)
    w0 = g.standard_normal((50, 30))
    return w0, w0 + 0.1 * g.standard_normal((50, 30))


@pytest.mark.parametrize("c", [1e-9, 1e-4, 0.1])
def test_pure_decay(c):
    w0 = np.random.default_rng(0).standard_normal((20, 9))
    rows = sums(w0, w0 - c * w0)
    d, b, db = (float(x.sum()) for x in rows)
    assert metrics.shrinkage(db, b) == pytest.approx(c, rel=1e-6)
    assert metrics.shrinkage_z(metrics.shrinkage(db, b), math.sqrt(d / b), 180) == pytest.approx(
        math.sqrt(180), rel=1e-6
    )
    assert metrics.cosine_to_base(*rows) == pytest.approx(-1, abs=1e-12)
    assert metrics.norm_growth(*rows) == pytest.approx(-c, rel=1e-6)
    assert metrics.decay_rows_fraction(*rows) == 1
    assert metrics.decay_estimate(*rows) == pytest.approx(c, rel=1e-6)
    assert metrics.direction_change(*rows) == pytest.approx(0, abs=1e-15)
    assert metrics.magnitude_change(*rows) == pytest.approx(c * np.linalg.norm(w0, axis=1).mean(), rel=1e-6)
    assert metrics.residual_shrinkage(db, d, b) == pytest.approx(c, rel=1e-6)


def test_against_naive_formulas(pair):
    w0, w = pair
    rows = sums(w0, w)
    a, b = np.linalg.norm(w0, axis=1), np.linalg.norm(w, axis=1)
    cos = (w0 * w).sum(1) / a / b
    assert metrics.magnitude_change(*rows) == pytest.approx(np.abs(b - a).mean())
    assert metrics.direction_change(*rows) == pytest.approx((1 - cos).mean())
    assert metrics.norm_growth(*rows) == pytest.approx(np.linalg.norm(w) / np.linalg.norm(w0) - 1)
    d = w - w0
    assert metrics.cosine_to_base(*rows) == pytest.approx((d * w0).sum() / np.linalg.norm(d) / np.linalg.norm(w0))


def test_small_changes_keep_their_digits():
    """‖w‖/‖w0‖ − 1 of a change in the 12th digit: a difference of norms would leave four digits of it."""
    w0 = np.random.default_rng(0).standard_normal((8, 5))
    d = 1e-12 * w0
    rows = (d**2).sum(1), (w0**2).sum(1), (d * w0).sum(1)
    assert metrics.norm_growth(*rows) == pytest.approx(1e-12, rel=1e-9)
    assert metrics.magnitude_change(*rows) == pytest.approx(1e-12 * np.linalg.norm(w0, axis=1).mean(), rel=1e-9)


def test_a_turn_without_growth():
    angle = 1e-4
    w0 = np.array([[1.0, 0.0], [0.0, 2.0]])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    rows = sums(w0, w0 @ turn)
    assert metrics.direction_change(*rows) == pytest.approx(1 - math.cos(angle), rel=1e-6)
    assert metrics.magnitude_change(*rows) == pytest.approx(0, abs=1e-15)


def test_only_rows_that_moved_straight_to_zero_are_decayed():
    w0 = np.ones((5, 4))
    d = np.zeros((5, 4))
    d[0] = -1e-3  # decay
    d[1] = -3e-3  # decay
    d[2] = 1e-3  # growth
    d[3] = [1e-3, -1e-3, 1e-3, -1e-3]  # a turn; row 4 did not move
    rows = sums(w0, w0 + d)
    assert metrics.decay_rows_fraction(*rows) == pytest.approx(2 / 5)
    assert metrics.decay_estimate(*rows) == pytest.approx(2e-3)


def test_zero_update():
    rows = sums(np.ones((3, 2)), np.ones((3, 2)))
    assert metrics.shrinkage(0.0, 6.0) == 0
    assert math.copysign(1, metrics.shrinkage(0.0, 6.0)) == 1
    assert math.isnan(metrics.shrinkage_z(0.0, 0.0, 6))
    assert math.isnan(metrics.cosine_to_base(*rows))
    assert metrics.norm_growth(*rows) == metrics.magnitude_change(*rows) == metrics.direction_change(*rows) == 0
    assert metrics.decay_rows_fraction(*rows) == 0
    assert math.isnan(metrics.decay_estimate(*rows))
    assert metrics.residual_shrinkage(0.0, 0.0, 6.0) is None


def test_zero_base():
    rows = sums(np.zeros((3, 2)), np.ones((3, 2)))
    for value in (
        metrics.shrinkage(0.0, 0.0),
        metrics.norm_growth(*rows),
        metrics.cosine_to_base(*rows),
        metrics.direction_change(*rows),
    ):
        assert math.isnan(value)
    assert metrics.magnitude_change(*rows) == pytest.approx(math.sqrt(2))
    assert metrics.residual_shrinkage(0.0, 6.0, 0.0) is None


def test_the_residual_is_taken_where_the_cosine_shows():
    assert metrics.residual_shrinkage(-0.019, 1.0, 1.0) is None
    assert metrics.residual_shrinkage(-0.021, 1.0, 1.0) == pytest.approx(0.021)
    assert metrics.residual_shrinkage(0.021, 1.0, 1.0) == pytest.approx(-0.021)


def test_residual_ranks_are_those_of_the_given_spectrum():
    assert metrics.rank_90_residual([3.0, 1.0]) == 1
    assert metrics.effective_rank_residual(np.ones(5)) == pytest.approx(5)


def test_factor_balance():
    g = np.random.default_rng(0)
    u, s, vt = np.linalg.svd(g.standard_normal((9, 3)) @ g.standard_normal((3, 7)), full_matrices=False)
    b, a = u[:, :3] * np.sqrt(s[:3]), np.sqrt(s[:3])[:, None] * vt[:3]
    for scaling in (1.0, 2.0, -0.5):
        nuclear = abs(scaling) * s.sum()

        def balance(b, a, scaling=scaling, nuclear=nuclear):
            return metrics.factor_balance((a**2).sum(), ((scaling * b) ** 2).sum(), scaling, nuclear)

        assert balance(b, a) == pytest.approx(1)
        assert balance(3 * b, a / 3) == pytest.approx((9 + 1 / 9) / 2)
    assert math.isnan(metrics.factor_balance(1.0, 0.0, 2.0, 0.0))
