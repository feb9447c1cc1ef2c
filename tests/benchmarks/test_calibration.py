"""The short form of `python -m benchmarks.calibration`: what it promises is kept, as far as few trials can show."""

import re
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from scipy import stats

from benchmarks.calibration import claims, contrasts, fronts, precision, quantised
from benchmarks.calibration.__main__ import entered
from benchmarks.calibration.rows import Row, markdown

UNLIKELY = 1e-4  # of a table with so many rows to break a bound that holds


def broken(row: Row) -> bool:
    """Whether so many trials could hardly come out like this if the bound held."""
    count = round(row.measured * row.n)
    if row.nominal == "0":
        return count > 0
    bound = re.fullmatch(r"([≤≥]) (\.\d+)", row.nominal)
    if bound is None:
        assert row.nominal == "published"
        return False
    p = float(bound[2])
    tail = stats.binom.sf(count - 1, row.n, p) if bound[1] == "≤" else stats.binom.cdf(count, row.n, p)
    return bool(tail < UNLIKELY)


@pytest.mark.parametrize(("table", "trials"), [(claims.table, 12), (contrasts.table, 4), (fronts.table, 6)])
def test_what_is_promised_is_kept(table: Callable[[int], Iterable[Row]], trials: int) -> None:
    rows = list(table(trials))
    assert len(rows) > 20
    assert [r for r in rows if broken(r)] == []


def test_a_broken_bound_is_seen() -> None:
    assert broken(Row("", "≤ .05", 0.3, 40))
    assert not broken(Row("", "≤ .05", 0.075, 40))
    assert broken(Row("", "≥ .80", 0.4, 40))
    assert not broken(Row("", "≥ .95", 0.9, 40))
    assert broken(Row("", "0", 0.025, 40))


def test_tables_are_entered_between_their_marks() -> None:
    page = "# Page\n\n<!-- calibration x -->\nold\n<!-- /calibration x -->\nrest\n"
    table = markdown([Row("a", "≤ .05", 0.0312, 1000)])
    once = entered(page, "x", table)
    assert "| a | ≤ .05 | 0.0312 | 1,000 |" in once
    assert "old" not in once
    assert once.endswith("rest\n")
    assert entered(once, "x", table) == once


@pytest.mark.parametrize("size", precision.SIZES)
def test_ranks_without_their_rounding(size):
    """Nine of ten intervals hold the truth, and are about as narrow as they are promised to be."""
    found = [
        precision.trial((512, 384), exponent, kind, size, 50 + j)
        for kind in precision.KINDS
        for j, exponent in enumerate(precision.EXPONENTS)
    ]
    assert sum(t.holds_rank for t in found) >= 9
    assert sum(t.holds_energy for t in found) >= 9
    ranks = np.median([(t.said_rank.high - t.said_rank.low) / t.rank for t in found])
    energies = np.median([t.said_energy.high - t.said_energy.low for t in found])
    widest = {0.003: (0.5, 0.08), 0.01: (0.15, 0.02), 0.03: (0.02, 0.003)}
    assert (ranks <= widest[size][0], energies <= widest[size][1]) == (True, True)


def test_precision_of_files():
    rows = list(precision.files(3))
    assert {r.measured for r in rows if "signal_rank 8" in r.name} == {1}
    assert {r.measured for r in rows if "above rounding" in r.name} == {0}
    assert {r.measured for r in rows if "below_precision" in r.name} == {1}


@pytest.mark.parametrize("scheme", quantised.SCHEMES)
def test_the_noise_of_quantised_storage(scheme: str) -> None:
    """The predicted noise is the true one within its bound, never below it, and shows no direction by itself."""
    for kind in quantised.KINDS:
        ratio, above = quantised.trial(kind, scheme, seed=3)
        assert 0.97 <= ratio <= float(quantised.bound(scheme, kind).removeprefix("≤ ")), kind
        assert above == 0, kind


@pytest.mark.parametrize(("scheme", "size", "rank"), [("FP8, rows", 0.03, 16), ("int4 g32", 0.01, 0)])
def test_an_update_above_quantised_storage(scheme: str, size: float, rank: int) -> None:
    assert quantised.trial(quantised.KINDS[0], scheme, seed=5, size=size)[1] == rank
