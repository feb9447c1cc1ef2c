"""The one rule of what may be said of a matrix, by how much of it is rounding."""

import math

import pytest

from deltaw.metrics import REGISTRY
from deltaw.results.rows import Rows, quote, quoted, rounding_share

HIDDEN = [m.name for m in REGISTRY.values() if m.hidden_by_noise]


def row(share, **more):
    words = ((0.01, "resolved"), (0.5, "noisy"), (math.inf, "below_precision"))
    plain = dict.fromkeys(HIDDEN, 100.0)
    return {
        **plain,
        **{"route": "dense", "ndim": 2, "fro_norm": 2.0, "rounding_noise": 2 * math.sqrt(share), "cosine_to_base": 0.0},
        **{"rank_90_null": 400.0, "rank_90_ratio": 0.25, "relative_change": 0.01},
        **{"rank_90_denoised": 40.0, "rank_90_denoised_low": 36.0, "rank_90_denoised_high": 44.0, "signal_rank": 60},
        **{"energy_at_16_denoised": 0.5, "effective_rank_denoised": 50.0},
        "resolution": next(word for limit, word in words if share <= limit),
    } | more


@pytest.mark.parametrize("column", HIDDEN)
def test_without_rounding_the_plain_columns_speak(column):
    for share in (0, 1e-6, 1e-5):
        found = quote(row(share), column)
        assert found == (found.value, found.value, found.value, column)
        assert found.value == (0.25 if column == "rank_90_ratio" else 100)


TWINS = {"rank_90": 40, "energy_at_16": 0.5, "effective_rank": 50, "numerical_rank": 60, "rank_90_ratio": 0.1}
TWINS |= {"rank_90_residual": 40, "effective_rank_residual": 50}


@pytest.mark.parametrize("share", [2e-5, 0.009, 0.0101, 0.3, 0.5])
@pytest.mark.parametrize("column", TWINS)
def test_with_rounding_their_twins_do(column, share):
    """No cliff at 1 %: the same column speaks on both sides of it."""
    assert quoted(row(share), column) == pytest.approx(TWINS[column])
    found = quote(row(share), "rank_90")
    assert (found.low, found.high, found.column) == (36, 44, "rank_90_denoised")
    assert quote(row(share), "rank_90_ratio")[:3] == pytest.approx((0.1, 0.09, 0.11))


def test_what_has_no_twin_is_said_where_squares_are_added_up_and_rounding_is_small():
    assert (
        quoted(row(0.009), "rank_95") == quoted(row(0.009), "energy_at_64") == quoted(row(0.009), "stable_rank") == 100
    )
    for column in ("rank_95", "energy_at_64", "stable_rank"):
        assert quote(row(0.02), column) is None
    for share in (2e-5, 0.009, 0.02):
        assert quote(row(share), "nuclear_norm") is None  # a sum of σ


@pytest.mark.parametrize("column", HIDDEN)
def test_below_precision_nothing_is_said(column):
    assert quote(row(0.51), column) is None
    assert math.isnan(quoted(row(0.51), column))


@pytest.mark.parametrize("share", [0, 0.009, 0.3, 0.9])
def test_sizes_are_always_said(share):
    assert quoted(row(share), "relative_change") == 0.01
    assert quoted(row(share), "rank_90_null") == 400
    assert quoted(row(share), "signal_rank") == 60


def test_residuals_differ_only_where_decay_was_taken_out():
    decayed = row(0.009, cosine_to_base=-0.3, rank_90_residual=33.0)
    assert quoted(decayed, "rank_90_residual") == 33
    assert quote(decayed, "effective_rank_residual") is None  # rounding is in it, and no twin is known
    assert quoted(row(0, cosine_to_base=-0.3), "effective_rank_residual") == 100


def test_results_without_the_twins_are_quoted_where_squares_permit():
    old = {k: v for k, v in row(0.005).items() if "denoised" not in k}
    assert quoted(old, "rank_90") == 100
    assert quoted(old, "rank_90_ratio") == 0.25
    assert quote(old, "effective_rank") is None
    assert quote({**old, "resolution": "noisy", "rounding_noise": 0.4}, "rank_90") is None


def test_intervals_of_estimates_are_kept():
    estimated = row(0, rank_90_low=90.0, rank_90_high=110.0)
    assert quote(estimated, "rank_90") == (100, 90, 110, "rank_90")


def test_a_table_is_quoted_row_by_row():
    rows = Rows((row(0), row(0.3), row(0.9), {}))
    assert [None if q is None else q.value for q in rows.quotes("rank_90")] == [100, 40, None, None]
    assert rows.spread("rank_90").n == 2


def test_the_share_of_rounding():
    assert rounding_share(row(0.3)) == pytest.approx(0.3)
    assert rounding_share({"rounding_noise": 5.0, "fro_norm": 1.0}) == 1
    assert rounding_share({}) == rounding_share({"rounding_noise": 0.0, "fro_norm": 0.0}) == 0
