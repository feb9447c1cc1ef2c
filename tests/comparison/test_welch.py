import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from deltaw.comparison.welch import (
    Estimate,
    GroupShare,
    combination,
    difference,
    difference_p,
    grid,
    holm,
    holm_steps,
    two_sided,
)

values = st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=2, max_size=6)


def test_a_difference_is_welchs() -> None:
    x, y = [0.3, 0.32, 0.29], [0.2, 0.25]
    expected = stats.ttest_ind(x, y, equal_var=False)
    found = difference(x, y)
    assert two_sided(found) == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx((found.value, *expected.confidence_interval(0.95)))
    assert found.interval(0.01).low == pytest.approx(expected.confidence_interval(0.99).low)


def test_one_value_is_students() -> None:
    x = [0.1, 0.3, 0.35, 0.2]
    expected = stats.ttest_1samp(x, 0.1)
    assert two_sided(combination([GroupShare(1.0, x)], -0.1)) == pytest.approx(expected.pvalue)


def test_a_combination_of_three_groups_has_the_error_of_all() -> None:
    """A group that enters a difference and its yardstick is not counted twice."""
    rng = np.random.default_rng(0)
    sizes, coefficients = (3, 4, 5), (-1.0, 0.75, 0.25)
    values = []
    for _ in range(4000):
        parts = [GroupShare(c, rng.normal(0, 1, n)) for c, n in zip(coefficients, sizes, strict=True)]
        e = combination(parts)
        values.append((e.value, e.error**2))
    spread, claimed = np.var([v for v, _ in values]), np.mean([e for _, e in values])
    assert claimed == pytest.approx(spread, rel=0.05)


def test_a_single_seed_is_no_error() -> None:
    alone = difference([0.3], [0.2, 0.25])
    assert alone.value == pytest.approx(0.075)
    assert not alone.known
    assert math.isnan(two_sided(alone))
    assert math.isnan(alone.interval().low)
    assert (alone.above(), alone.below()) == (1.0, 1.0)
    assert math.isnan(difference([], [0.2]).value)


@given(values, values)
def test_sides_and_the_two_sided_p_agree(x: list[float], y: list[float]) -> None:
    found, back = difference(x, y), difference(y, x)
    assert found.above() == back.below()
    assert two_sided(found) == two_sided(back)
    low, high = found.interval()[1:]
    assert (two_sided(found) < 0.05) == (low > 0 or high < 0) or min(abs(low), abs(high)) < 1e-9


@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 1000))
def test_many_rows_at_once_are_each_row(na: int, nb: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = np.round(rng.normal(size=(5, na)), 1), np.round(rng.normal(size=(5, nb)), 1)
    each = [two_sided(difference(x, y)) for x, y in zip(a, b, strict=True)]
    assert difference_p(a, b) == pytest.approx(each)


def test_ties_are_below_the_grid_and_not_zero() -> None:
    """17 of 50 twice against 16 of 50 twice: the spread is unknown below 1/50, and nothing is decided."""
    tied = difference([0.34, 0.34], [0.32, 0.32])
    assert tied.error == pytest.approx(0.02 / math.sqrt(12))
    assert two_sided(tied) > 0.05
    assert two_sided(difference([0.3, 0.3], [0.3, 0.3])) == 1.0
    assert grid(np.array([0.1, 0.1 + 1e-12, 0.5])) == pytest.approx(0.4)
    assert grid(np.array([])) == 0.0


@pytest.mark.parametrize("sd", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_scores_on_a_grid_keep_the_level(seeds: int, sd: float) -> None:
    rng = np.random.default_rng(3)
    n = 2000
    shift = rng.uniform(0, 1, (n, 1))
    a, b = (np.round(shift + rng.normal(0, sd, (n, seeds))) for _ in range(2))
    found = sum(two_sided(difference(x, y)) < 0.05 for x, y in zip(a, b, strict=True))
    assert found / n <= 0.055


def test_the_best_of_many_settings_is_tested_for_it() -> None:
    one, five = difference([0.3, 0.32], [0.2, 0.25]), difference([0.3, 0.32], [0.2, 0.25], trials=5)
    assert two_sided(five) == pytest.approx(min(1.0, 5 * two_sided(one)))
    assert five.interval(0.05) == pytest.approx(one.interval(0.01))


def test_what_the_points_leave_open_widens_the_interval_and_the_p() -> None:
    e = Estimate(0.04, 0.01, 10.0, down=0.03, up=0.01)
    assert e.interval().low == pytest.approx(0.01 - 0.01 * stats.t.ppf(0.975, 10))
    assert e.above() == pytest.approx(stats.t.sf(1.0, 10))
    assert e.negated().below() == e.above()
    assert e.negated().interval().high == pytest.approx(-e.interval().low)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_textbook(p: list[float]) -> None:
    order = np.argsort(p, kind="stable")
    expected, running = np.empty(len(p)), 0.0
    for i, j in enumerate(order):
        running = max(running, min(1.0, (len(p) - i) * p[j]))
        expected[j] = running
    assert holm(np.array(p)) == pytest.approx(expected)


def test_holm_ignores_what_is_no_test() -> None:
    out = holm(np.array([0.01, np.nan, 0.04]))
    assert out[0] == 0.02
    assert math.isnan(out[1])
    assert out[2] == 0.04
    assert holm(np.array([])).size == 0


@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=8))
def test_an_interval_at_its_level_leaves_out_0_where_the_adjusted_p_is_small(p: list[float]) -> None:
    adjusted, level = holm_steps(np.array(p))
    for q, a, alpha in zip(p, adjusted, level, strict=True):
        assert (a < 0.05) == (q < alpha) or abs(a - 0.05) < 1e-12
