"""Which shrink passes for a decay, and the word for one that does not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaw.metrics.shrink_marks import ShrinkMarks
from deltaw.metrics.uniformity import are_witnesses, decay_rows_kind, is_shrink, kind, shrinkage_kind

EVEN = ShrinkMarks(
    c=0.01,
    bulk=0.01,
    sizes=np.full(4, 0.01),
    sizes_sd=np.full(4, 1e-5),
    between_rows=1e-4,
    between_cols=1e-4,
    norms=1.0,
    rest=np.full(4, 1e-3),
    base=np.array([0.01, 0.1, 0.5, 2.0]),
    steps=0.0,
    same_precision=True,
    values=1.0,
)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, "uniform"),
        ({"sizes": np.array([0.03, 0.011, 0.01, 0.0099])}, "uneven"),
        ({"sizes": np.array([0.03, 0.011, 0.01, 0.0099]), "sizes_sd": np.array([0.005, 1e-3, 1e-4, 1e-5])}, "uniform"),
        ({"between_rows": 0.006}, "uneven"),
        ({"between_cols": 0.006}, "uneven"),
        ({"norms": 0.05}, "norms"),
        ({"steps": 1.0}, "step"),
        ({"steps": 1.0, "same_precision": False}, "grid"),
        ({"steps": 0.9}, "uniform"),
        ({"values": 0.3}, "grid"),
        ({"values": np.nan, "steps": np.nan}, "uniform"),  # W was never stored
        ({"rest": np.full(4, 0.33)}, "grid"),  # as large as the entry: cut digits
        ({"rest": np.array([60.0, 6.0, 1.2, 0.3])}, "uniform"),  # the same for small and large entries: learnt
        ({"c": 2.0, "sizes": np.full(4, 2.0)}, ""),
    ],
)
def test_the_word_for_a_shrink(change, word):
    assert kind(replace(EVEN, **change)) == word
    assert decay_rows_kind(0.5, replace(EVEN, **change)) == word


def test_what_comes_before_the_marks():
    assert shrinkage_kind(0.01, 0.02, 1000, 1000, 0.0, EVEN) == "uniform"
    assert shrinkage_kind(0.01, 0.2, 1000, 1000, 0.0, EVEN) == "turn"  # δ²/4
    assert shrinkage_kind(0.01, 0.02, 1000, 1000, 0.5, EVEN) == "sparse"
    assert shrinkage_kind(0.0001, 0.02, 100, 100, 0.0, EVEN) == ""  # half a standard deviation
    assert shrinkage_kind(-0.01, 0.02, 1000, 1000, 0.0, EVEN) == ""
    assert shrinkage_kind(0.01, 0.02, 1000, 1000, 0.0) == ""  # factors
    assert decay_rows_kind(0.5) == ""


@given(st.floats(1e-6, 1.9), st.floats(0.0, 1.4), st.integers(64, 10**9))
def test_a_turn_pruning_and_a_grid_are_no_shrink(change, share, entries):
    """A turn gives c = δ²/2, pruning δ², centroids up to 1.4 δ²; pruning of over 90 % is left to the size of |w|."""
    c = share * change**2
    assert not is_shrink(c, change, entries) or c > 0.9 * change


@given(st.floats(1e-6, 0.79), st.integers(64, 10**9))
def test_a_pure_decay_is_a_shrink(c, entries):
    assert is_shrink(c, c, entries)


def test_witnesses_are_many_and_long():
    assert are_witnesses(0.1, 500, 64)
    assert not are_witnesses(0.09, 500, 64)
    assert not are_witnesses(0.1, 40, 64)  # four rows
    assert not are_witnesses(0.5, 500, 4)
    assert not are_witnesses(0.5, 0, 64)
