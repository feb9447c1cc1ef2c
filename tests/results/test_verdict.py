"""The verdict's rules, one by one, on rows made by hand."""

import math

import pytest

from deltaw.results.summarize import summarize
from deltaw.results.verdict import RULES, Verdict


def row(**more):
    return {
        **{"name": "a", "kind": "mlp", "rows": 400, "cols": 400, "ndim": 2, "route": "dense"},
        **{"fro_norm": 1.0, "relative_change": 0.01, "rounding_noise": 0.01, "resolution": "resolved"},
        **{"shrinkage": 0.0, "norm_growth": 0.0, "cosine_to_base": 0.0},
        **{"rank_90": 200.0, "rank_90_null": 204.0, "rank_90_ratio": 200 / 204, "signal_rank": 300},
        **{"signal_energy": 0.9},
    } | more


def verdict(*rows):
    return summarize(rows).verdict


def test_every_verdict_states_its_rule():
    assert set(RULES) == set(Verdict)


def test_the_plain_ones():
    assert verdict() == "empty"
    assert verdict(row(fro_norm=0.0, route="unchanged")) == "unchanged"
    assert verdict(row(fro_norm=0.0, route="unchanged"), row(route="vector", ndim=1)) == "vectors_only"
    assert verdict(row()) == "spread"


@pytest.mark.parametrize(
    ("cosine", "change", "expected"), [(0.49, 0.9, "unrelated"), (0.51, 0.9, "spread"), (0.4, 0.4, "spread")]
)
def test_unrelated_needs_both_a_low_cosine_and_a_large_change(cosine, change, expected):
    assert verdict(row(shrinkage=1 - cosine, relative_change=change)) == expected


def test_a_new_head_makes_no_other_model():
    """A base and another model have no matrix in common; a head that starts anew lies on one that did not move."""
    new, still = row(kind="head", shrinkage=1.0, relative_change=1.4), row(fro_norm=0.0, route="unchanged")
    assert verdict(new) == "unrelated"
    assert verdict(new, still) == "embeddings_only"
    assert verdict(new, row(shrinkage=1.0, relative_change=1.4), still) == "unrelated"
    assert verdict({**new, "adapter_type": "lora"}) == "spread"  # `modules_to_save`: all else is the base's


def test_an_adapter_is_read_from_factors():
    assert verdict(row(route="factored"), row(route="factored"), row()) == "adapter"
    assert verdict(row(route="factored"), row()) == "spread"


def test_embeddings_only_where_there_is_more():
    still = row(fro_norm=0.0, route="unchanged")
    assert verdict(row(kind="embedding"), row(kind="head"), still) == "embeddings_only"
    assert verdict(row(kind="embedding"), row(kind="head")) == "spread"  # there is nothing else


def test_half_below_precision():
    below = row(resolution="below_precision")
    assert verdict(below, row()) == "below_precision"
    assert verdict(below, row(), row()) == "spread"


@pytest.mark.parametrize(
    ("cosine", "shrinkages", "expected"),
    [(-0.96, (0.01, 0.0101), "decay_only"), (-0.96, (0.01, 0.02), "spread"), (-0.9, (0.01, 0.01), "spread")],
)
def test_decay_only_is_one_factor_along_the_base(cosine, shrinkages, expected):
    rows = [row(cosine_to_base=cosine, shrinkage=c, shrinkage_kind="uniform") for c in shrinkages]
    assert verdict(*rows) == expected
    assert verdict(*(r | {"shrinkage_kind": "turn"} for r in rows)) == "spread"


@pytest.mark.parametrize(
    ("beyond", "expected"), [(0.4, "low_rank"), (1.5, "low_rank"), (1.51, "spread"), (30, "spread")]
)
def test_low_rank_needs_a_rest_that_rounding_explains(beyond, expected):
    assert (
        verdict(row(signal_rank=16, rank_90=14.0, rounding_noise=0.125, signal_energy=1 - beyond * 0.125**2))
        == expected
    )
    assert verdict(row(signal_rank=51, rounding_noise=0.125, signal_energy=1 - beyond * 0.125**2)) == "spread"


@pytest.mark.parametrize(("ratio", "expected"), [(0.2, "concentrated"), (0.25, "concentrated"), (0.26, "spread")])
def test_concentrated_is_a_quarter_of_noise(ratio, expected):
    assert verdict(row(rank_90_ratio=ratio)) == expected


def noisy(low, high):
    bounds = {"rank_90_denoised_low": 204 * low, "rank_90_denoised_high": 204 * high}
    return row(resolution="noisy", rank_90_denoised=102 * (low + high), **bounds)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([noisy(0.1, 0.2)], "concentrated"),
        ([noisy(0.3, 0.9)], "spread"),
        ([noisy(0.2, 0.3)], "noisy"),
        ([row(resolution="noisy")], "noisy"),  # nothing is known of its rank
        ([row(resolution="noisy"), *[row(rank_90_ratio=0.1)] * 2], "concentrated"),  # nor need it be
        ([row(resolution="noisy"), *[row(rank_90_ratio=0.9)] * 2], "spread"),
        ([row(rank_90=math.nan, rank_90_ratio=math.nan)], "spread"),
    ],
)
def test_noisy_where_rounding_leaves_the_side_open(rows, expected):
    assert verdict(*rows) == expected
