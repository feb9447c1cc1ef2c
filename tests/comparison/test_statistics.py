import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deltaw.comparison import statistics as s
from deltaw.comparison.ranking import cliffs_delta, wilcoxon_many
from deltaw.comparison.welch import two_sided

LAYERS = 28


def planted(
    rng: np.random.Generator,
    seeds: tuple[int, int],
    factor: float,
    seed_noise: float,
    layer_noise: float,
    n: int = LAYERS,
) -> tuple[np.ndarray, np.ndarray]:
    """Layers of very different sizes; a and b differ by a factor, by their seeds, and by noise in each layer."""
    layers = np.exp(rng.normal(0, 1, n))
    a, b = (layers * np.exp(rng.normal(0, seed_noise, (k, 1)) + rng.normal(0, layer_noise, (k, n))) for k in seeds)
    return a * factor, b


@pytest.mark.parametrize(
    ("seeds", "seed_noise", "layer_noise"),
    [((2, 2), 0.2, 0.1), ((3, 3), 0.1, 0.02), ((3, 3), 0.0, 0.2), ((3, 1), 0.1, 0.05)],
)
def test_interval_covers_the_planted_factor(seeds: tuple[int, int], seed_noise: float, layer_noise: float) -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for i in range(100):
        a, b = planted(rng, seeds, 3.0, seed_noise, layer_noise)
        c = s.contrast(a, b, seed=i)
        covered += c.ratio_low <= 3.0 <= c.ratio_high
    assert covered >= 93


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (5, 2)])
def test_a_signed_metric_has_a_difference_that_its_interval_covers(seeds: tuple[int, int]) -> None:
    """Shrinkage on both sides of zero: a ratio of such numbers means nothing."""
    rng = np.random.default_rng(9)
    covered = 0
    for i in range(100):
        a, b = (
            level + rng.normal(0, 0.002, (k, 1)) + rng.normal(0, 0.001, (k, LAYERS))
            for k, level in zip(seeds, (0.010, -0.001), strict=True)
        )
        c = s.contrast(a, b, signed=True, seed=i)
        covered += c.difference_low <= 0.011 <= c.difference_high
        assert math.isnan(c.median_ratio)
        assert math.isnan(c.ratio_low)
    assert covered >= 93
    ratio = s.contrast(np.ones((2, 3)), np.full((2, 3), 2.0))
    assert (ratio.median_ratio, math.isnan(ratio.median_difference)) == (0.5, True)


def test_a_layer_counts_in_all_runs_or_in_none() -> None:
    """A seed that lacks the large layers does not look like one of small rank."""
    layers = np.array([10.0, 10.0, 60.0, 60.0])
    a, b = np.tile(layers, (3, 1)), np.tile(layers, (3, 1))
    a[0, 2:] = np.nan
    c = s.contrast(a, b)
    assert (c.n_layers, c.median_ratio, c.p_seeds) == (2, 1.0, 1.0)


def test_one_seed_covers_layers_only_and_says_so() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for i in range(100):
        a, b = planted(rng, (1, 1), 0.5, 0.0, 0.1)
        c = s.contrast(a, b, seed=i)
        assert c.interval_covers == "layers"
        assert math.isnan(c.p_seeds)
        covered += c.ratio_low <= 0.5 <= c.ratio_high
    assert covered >= 93


@pytest.mark.parametrize("seed_noise", [0.0, 0.2])
def test_no_difference_is_rarely_significant(seed_noise: float) -> None:
    """Also where a seed moves all layers together, which Wilcoxon's test over layers cannot know."""
    rng = np.random.default_rng(7)
    found, alone = 0, 0
    for i in range(1000):
        a, b = planted(rng, (3, 3), 1.0, seed_noise, 0.1)
        c = s.contrast(a, b, seed=i)
        found += max(c.p_value, c.p_seeds) < 0.05
        alone += c.p_value < 0.05
    assert found <= 50
    if seed_noise:
        assert alone > 500  # what `p_seeds` is there for


def test_resampling_seeds_would_not_cover() -> None:
    """Why the seeds' error is drawn from Student's t: the usual bootstrap of two seeds covers far too rarely."""
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(200):
        a, b = (rng.normal(0, 1, 2) for _ in range(2))
        means = [np.mean([a[i], a[j]]) - np.mean([b[k], b[m]]) for i, j, k, m in product(range(2), repeat=4)]
        low, high = np.quantile(means, [0.025, 0.975])
        covered += low <= 0 <= high
    assert covered < 150


def test_same_seed_same_numbers_and_order_does_not_matter() -> None:
    a, b = planted(np.random.default_rng(1), (2, 3), 2.0, 0.1, 0.1)
    assert s.contrast(a, b, seed=4) == s.contrast(a[::-1], b, seed=4)
    assert s.contrast(a, b, seed=4) == s.contrast(a, b, seed=4)
    assert s.contrast(a, b, seed=4) != s.contrast(a, b, seed=5)
    mixed = np.random.default_rng(2).permutation(a.shape[1])
    assert s.contrast(a[:, mixed], b[:, mixed], seed=4).ratio_low == pytest.approx(s.contrast(a, b, seed=4).ratio_low)


def test_swapping_the_groups_inverts_the_ratio() -> None:
    a, b = planted(np.random.default_rng(3), (2, 2), 2.0, 0.1, 0.1, n=14)
    x, y = s.contrast(a, b), s.contrast(b, a)
    assert x.median_ratio == pytest.approx(1 / y.median_ratio)
    assert x.cliffs_delta == -y.cliffs_delta
    assert x.p_value == pytest.approx(y.p_value)


def test_layer_bootstrap_is_that_of_resampling() -> None:
    """The drawn order statistic has the distribution of the median of a resample."""
    rng = np.random.default_rng(0)
    for n in (9, 10):
        x = np.sort(rng.normal(size=n))
        naive = np.median(x[rng.integers(0, n, (40000, n))], axis=1)
        low, high = s._middle_ranks(n, 0, 40000)
        drawn = (x[low] + x[high]) / 2
        for q in (0.025, 0.25, 0.5, 0.75, 0.975):
            assert np.mean(naive <= np.quantile(naive, q)) == pytest.approx(
                np.mean(drawn <= np.quantile(naive, q)), abs=0.015
            )


def test_zeros_nans_and_nothing() -> None:
    a = np.array([[0.0, 0.0, 2.0, np.nan, 4.0]])
    b = np.array([[0.0, 1.0, 1.0, 5.0, 2.0]])
    c = s.contrast(a, b)
    assert c.n_layers == 4  # a layer without a value in one group is not compared
    assert c.median_ratio == 2.0  # 0/0 is no ratio; of 0, 2, 2 the median is 2
    nothing = s.contrast(np.full((1, 3), np.nan), np.ones((1, 3)))
    assert nothing.n_layers == 0
    assert math.isnan(nothing.median_ratio)
    same = s.contrast(np.zeros((2, 3)), np.zeros((2, 3)))
    assert (same.median_a, same.p_value, same.cliffs_delta) == (0.0, 1.0, 0.0)
    assert math.isnan(same.median_ratio)
    infinite = s.contrast(np.ones((1, 3)), np.zeros((1, 3)))
    assert infinite.median_ratio == math.inf
    none = s.contrast(np.zeros((1, 3)), np.ones((1, 3)))
    assert none.median_ratio == 0.0


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9), st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_cliffs_delta_is_the_double_loop(x: list[int], y: list[int]) -> None:
    a, b = np.array(x, float), np.array(y, float)
    naive = np.mean([(u > v) - (u < v) for u in x for v in y])
    assert cliffs_delta(a, b) == pytest.approx(naive)


@settings(max_examples=20)
@given(st.integers(3, 80), st.integers(0, 10))
def test_wilcoxon_in_one_call_is_scipys(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = rng.normal(0.2, 1, (4, n))
    d[1, : n // 3] = np.nan
    d[2] = 0
    many = wilcoxon_many(d)
    assert many[2] == 1.0
    for i in (0, 1, 3):
        assert many[i] == pytest.approx(stats.wilcoxon(d[i][np.isfinite(d[i])]).pvalue, rel=1e-9)


def test_seeds_of_many_metrics_at_once_are_each_metrics() -> None:
    rng = np.random.default_rng(4)
    a, b = (np.exp(rng.normal(size=(n, 6, 9))) for n in (3, 2))
    a[:, 1] = rng.normal(size=(3, 9))  # of both signs
    a[0, 2, :4] = np.nan  # layers that one run lacks
    b[1, 3] = np.nan  # a metric that one run lacks
    a[:, 4, 0] = 0.0
    signed = [False, True, False, False, False, True]
    expected = []
    for m, sign in enumerate(signed):
        x, y = s.shared(a[:, m], b[:, m])
        expected.append(two_sided(s.seed_difference(x, y, signed=sign)))
    assert math.isnan(expected[3])
    assert s.seed_p_many(a, b, signed) == pytest.approx(expected, nan_ok=True)


def test_median_interval_of_one_group() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(100):
        a = 5.0 * np.exp(rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 0.3, (3, 30)))
        interval, covers = s.median_interval(a, seed=i)
        assert covers == "seeds and layers"
        covered += interval.low <= 5.0 <= interval.high
    assert covered >= 93
    assert s.median_interval(np.ones((1, 4)))[1] == "layers"
    assert math.isnan(s.median_interval(np.full((1, 4), np.nan))[0].value)


def test_mean_interval_is_students() -> None:
    x = [1.0, 2.0, 4.0]
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert s.mean_interval(x) == pytest.approx((np.mean(x), expected.low, expected.high))
    assert math.isnan(s.mean_interval([1.0]).low)
    assert math.isnan(s.mean_interval([1.0]).low)
