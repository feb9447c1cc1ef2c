"""Where clusters are cut, who is an outlier, what a copy is, which candidates are looked at: at their thresholds."""

import numpy as np
import pandas as pd
import pytest

from deltaw.surveys.clusters import CUT, Cut, axis_shares, clusters, coordinates, cut_at
from deltaw.surveys.flags import copies, flags
from deltaw.surveys.neighbours import MOST, candidates, nearest
from deltaw.surveys.parts import Looked

FIXED = Cut(CUT, 0.0, "fixed")


def grouped(groups: list[int], within: float, between: float = 0.0) -> np.ndarray:
    g = np.array(groups)
    cosine = np.where(g[:, None] == g, within, between)
    np.fill_diagonal(cosine, 1)
    return cosine


def test_clusters_are_cut_at_the_cosine_and_numbered_by_size():
    groups = [1, 1, 0, 0, 0, 2]
    assert clusters(grouped(groups, 0.31), FIXED).tolist() == [2, 2, 1, 1, 1, 3]
    assert sorted(clusters(grouped(groups, 0.29), FIXED).tolist()) == [1, 2, 3, 4, 5, 6]
    assert clusters(np.ones((1, 1)), FIXED).tolist() == [1]
    shared = grouped([0, 0, 1], 0.9)
    shared[0, 2] = shared[2, 0] = np.nan  # nothing in common counts as orthogonal
    assert clusters(shared, FIXED).tolist() == [1, 1, 2]


def test_opposite_adapters_are_no_cluster():
    assert clusters(np.array([[1, -1.0], [-1, 1]]), FIXED).tolist() == [1, 2]


def test_the_cut_is_chance_where_chance_reaches_further():
    assert cut_at(np.full(10, 0.1)) == Cut(0.3, pytest.approx(0.2326, abs=1e-4), "fixed")
    assert cut_at(np.full(10, 0.2)) == Cut(pytest.approx(0.4653, abs=1e-4), pytest.approx(0.4653, abs=1e-4), "null")
    assert cut_at(np.zeros(0)).cosine == 0.3


@pytest.mark.parametrize("count", [3, 30, 520])
def test_the_map_has_the_distances_of_the_cosines(count: int):
    """Points of four dimensions on the sphere have all of their distances on four axes."""
    X = np.random.default_rng(0).normal(size=(count, 4))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    at = coordinates(X @ X.T)
    distance = np.linalg.norm(at[:, None] - at, axis=2)
    assert np.allclose(distance, np.linalg.norm(X[:, None] - X, axis=2), atol=1e-6)
    assert (np.diff(at.var(axis=0)) <= 1e-9).all()


def test_few_adapters_have_a_map_too():
    assert coordinates(np.ones((1, 1))).tolist() == [[0, 0, 0, 0]]
    at = coordinates(np.eye(2))
    assert np.linalg.norm(at[0] - at[1]) == pytest.approx(np.sqrt(2))
    assert np.allclose(coordinates(np.ones((5, 5))), 0, atol=1e-7)


def test_candidates_are_those_whose_interval_reaches_the_nearest():
    cosine = np.array([[1, 0.5, 0.45, 0.2], [0.5, 1, 0.1, 0], [0.45, 0.1, 1, 0], [0.2, 0, 0, 1]], dtype=np.float32)
    half = np.full((4, 4), 0.03, dtype=np.float32)
    found = candidates(cosine, half)
    assert [0, 1] in found.tolist()
    assert [0, 2] in found.tolist()  # the nearest of 2
    assert [1, 2] not in found.tolist()
    assert (
        len(candidates(np.full((30, 30), 0.5, dtype=np.float32), np.full((30, 30), 0.1, dtype=np.float32))) <= 30 * MOST
    )


def test_pairs_that_were_looked_at_come_before_estimates():
    cosine = np.array([[1, 0.4, 0.9], [0.4, 1, 0.1], [0.9, 0.1, 1]])
    order = nearest(cosine, np.array([[0, 1]]))
    assert order.tolist() == [[1, 2], [0, 2], [0, 1]]
    assert nearest(np.full((2, 2), np.nan), np.zeros((0, 2), dtype=np.int64)).tolist() == [[-1], [-1]]


def pair(cosine: float, shared: float = 1.0, exact: bool = True, low: float = 0.0) -> pd.DataFrame:
    row = {"a": "x", "b": "y", "cosine": cosine, "cosine_low": low, "exact": exact, "shared_a": shared, "shared_b": 1.0}
    return pd.DataFrame([row])


def test_a_copy_is_one_in_all_that_both_have():
    assert copies(pair(0.9995), ["x", "y"]) == {0: "of y (cosine 0.9995)", 1: "of x (cosine 0.9995)"}
    assert copies(pair(0.9989), ["x", "y"]) == {}
    assert copies(pair(0.9999, shared=0.99), ["x", "y"]) == {}  # of a part
    assert copies(pair(0.9999, exact=False, low=0.99), ["x", "y"]) == {}  # it may be none
    assert len(copies(pair(0.9999, exact=False, low=0.9995), ["x", "y"])) == 2


def rows(change: list[float]) -> list[dict[str, str]]:
    n = len(change)
    looked = [Looked(keys=("a",), shapes=((4, 4),), ranks=(1,), norms=np.ones(1))] * n
    same = np.ones(n)
    columns = {"relative_change": np.array(change), "fro_norm": same, "effective_rank": same, "energy_at_1": same}
    return flags(looked, columns, {}, "base")


def test_an_outlier_needs_enough_others_and_five_deviations():
    usual = [0.01 * 1.1**k for k in range(-10, 11)]
    assert [i for i, f in enumerate(rows([*usual, 0.9])) if f] == [21]
    assert rows([*usual, 0.9])[21]["outlier"].startswith("relative_change 0.9, the median is 0.01")
    assert not any(rows([*usual, 0.3]))
    assert not any(rows([0.01] * 18 + [0.5]))  # of 19
    assert not any(rows([0.01] * 25 + [0.5])), "without spread nothing is far"


def test_diverged_is_above_the_size_of_the_weights():
    assert list(rows([1.01])[0]) == ["diverged"]
    assert rows([1.0]) == [{}]


def test_without_a_base_the_others_decide_which_one_is_meant():
    def of(names: list[str], base: str) -> list[list[str]]:
        looked = [Looked(keys=("a",), shapes=((4, 4),), ranks=(1,), norms=np.ones(1), base_name=n) for n in names]
        unknown = np.full(len(names), np.nan)
        columns = dict.fromkeys(("relative_change", "fro_norm", "effective_rank", "energy_at_1"), unknown)
        return [list(found) for found in flags(looked, columns, {}, base)]

    assert of(["gpt2", "org/gpt2", "distilbert", ""], "") == [[], [], ["other_base"], []]
    assert of(["gpt2", "distilbert"], "") == [[], []], "no most"
    assert of(["gpt2", "org/gpt2", "distilbert"], "distilbert") == [[], [], []]


def test_the_axes_of_the_map_hold_shares_of_all_squared_distances():
    three = np.eye(3)  # three orthogonal ones lie at the corners of a triangle: two axes hold all of it
    assert axis_shares(three, coordinates(three)) == pytest.approx((0.5, 0.5, 0, 0))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    distances = np.square(x[:, None] - x[None]).sum()
    at = coordinates(x @ x.T)
    expected = [np.square(column[:, None] - column[None]).sum() / distances for column in at.T]
    assert axis_shares(x @ x.T, at) == pytest.approx(expected)
    assert axis_shares(np.ones((2, 2)), coordinates(np.ones((2, 2)))) == ()
    assert axis_shares(np.ones((1, 1)), coordinates(np.ones((1, 1)))) == ()
