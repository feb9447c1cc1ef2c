"""The matrix that a sentence speaks of."""

import math

from deltaw.results.rows import Rows
from deltaw.results.typical import NO_MATRIX, typical


def row(name, rank, null, rows=64, cols=48, **more):
    return {
        **{"name": name, "part": "", "rows": rows, "cols": cols, "route": "dense", "resolution": "resolved"},
        **{"rank_90": rank, "rank_90_null": null, "rank_90_ratio": rank / null, "energy_at_16": 0.5},
        **{"rounding_noise": 0.0, "fro_norm": 1.0},
    } | more


def of(*rows):
    return typical(Rows(tuple(rows)))


def test_its_numbers_belong_together():
    found = of(
        row("a", 4, 20.6, 31, 31),
        row("b", 30, 40, 64, 64, energy_at_16=0.25),
        row("c", 90, 100, 200, 150),
    )
    assert (found.name, found.dimensions, found.rank_90, found.rank_90_null) == ("b", 64, 30, 40)
    assert (found.ratio, found.energy_at_16) == (0.75, 0.25)
    assert (found.rank_90_low, found.rank_90_high) == (30, 30)


def test_of_an_even_number_the_lower_one_and_of_equals_the_largest():
    assert of(row("a", 10, 20), row("b", 18, 20)).name == "a"
    assert of(row("a", 10, 20, 40, 40), row("b", 20, 40, 80, 80), row("c", 5, 10, 20, 20)).name == "b"


def test_small_ones_only_where_there_is_nothing_else():
    assert of(row("a", 1, 1, 64, 1), row("b", 1, 1, 1, 64), row("c", 5, 20)).name == "c"
    assert of(row("a", 1, 1, 64, 1)).dimensions == 1


def test_a_part_is_named():
    assert of(row("a", 5, 20, part="q")).name == "a[q]"


def test_none():
    assert of() == NO_MATRIX
    assert of(row("a", math.nan, math.nan)) == NO_MATRIX
