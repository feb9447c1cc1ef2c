"""The Marchenko–Pastur law against its reference values, quadrature and real Gaussian matrices."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from deltaw import metrics
from deltaw.errors import OptionError

# beta, rank_50, rank_90, rank_95, rank_99, effective_rank, effective_rank_energy, participation, stable, mean σ/√n
REFERENCE = [
    (1.0, 0.18169, 0.50981, 0.60936, 0.77056, 0.80504, 0.60653, 0.5, 0.25, 0.84883),
    (0.75, 0.20818, 0.58002, 0.69034, 0.86092, 0.87602, 0.68729, 0.57143, 0.28719, 0.89422),
    (0.5, 0.24576, 0.66388, 0.77695, 0.9269, 0.92605, 0.7788, 0.66667, 0.34315, 0.9328),
    (0.3720930233, 0.27239, 0.71203, 0.82064, 0.94944, 0.94756, 0.83023, 0.72881, 0.38579, 0.95102),
    (0.25, 0.30613, 0.7612, 0.86052, 0.96531, 0.96622, 0.8825, 0.8, 0.44444, 0.96769),
    (0.125, 0.3569, 0.81581, 0.89946, 0.97755, 0.98378, 0.93941, 0.88889, 0.54582, 0.98412),
    (0.0625, 0.39645, 0.84682, 0.91929, 0.98282, 0.99204, 0.96923, 0.94118, 0.64, 0.99213),
]
MEDIANS = {0.05: 0.983308, 0.1: 0.966565, 0.3720930233: 0.874445, 0.5: 0.830466, 0.95: 0.671068, 1.0: 0.652776}


@pytest.mark.parametrize("row", REFERENCE, ids=lambda r: str(r[0]))
def test_reference_values(row):
    beta, *ranks = row
    k = round(beta * 10**9)
    for q, expected in zip((0.5, 0.9, 0.95, 0.99), ranks[:4], strict=True):
        assert metrics.marchenko_pastur_rank(k, 10**9, q) / k == pytest.approx(expected, abs=6e-6)
    assert list(metrics.marchenko_pastur_moments(beta).values()) == pytest.approx(ranks[4:], abs=6e-6)


@pytest.mark.parametrize(("beta", "median"), MEDIANS.items())
def test_median(beta, median):
    assert metrics.marchenko_pastur_median(beta) == pytest.approx(median, abs=1e-6)


def test_the_published_levels():
    assert metrics.rank_90_null(4096, 4096) == pytest.approx(2088, abs=1)
    assert metrics.rank_90_null(4096, 11008) == metrics.rank_90_null(11008, 4096) == pytest.approx(2917, abs=1)


@pytest.mark.parametrize("beta", [1e-9, 1e-6, 1e-4, 0.01, 0.3, 0.999, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("q", [0.05, 0.5, 0.9, 0.999])
def test_closed_form_agrees_with_quadrature(beta, q):
    """Down to embeddings of a million rows, where the closed form must not lose its digits."""

    def energy(t):
        return (t - math.sin(t) * math.cos(t)) / math.pi

    low, high = 0.0, math.pi
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if energy(middle) < q else (low, middle)
    mass, _ = quad(
        lambda t: 2 / math.pi * math.sin(t) ** 2 / (1 + beta + 2 * math.sqrt(beta) * math.cos(t)), 0, low, limit=200
    )
    n = 10**12
    k = round(beta * n)
    assert metrics.marchenko_pastur_rank(k, n, q) / k == pytest.approx(mass, abs=1e-7)


@pytest.mark.parametrize("shape", [(300, 300), (200, 600), (640, 80), (512, 384)])
def test_gaussian_matrices_have_ratio_one(shape):
    s = np.linalg.svd(np.random.default_rng(0).standard_normal(shape), compute_uv=False)
    ratio = metrics.rank_90_ratio(metrics.rank_90(s), metrics.rank_90_null(*shape))
    assert ratio == pytest.approx(1, abs=0.03)
    beta = min(shape) / max(shape)
    assert metrics.effective_rank(s) / min(shape) == pytest.approx(
        metrics.marchenko_pastur_moments(beta)["effective_rank"], rel=0.03
    )
    assert np.median(s) ** 2 / max(shape) == pytest.approx(metrics.marchenko_pastur_median(beta), rel=0.03)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (1000, 1)])
def test_one_direction_is_the_null_of_a_vector(shape):
    assert metrics.rank_90_null(*shape) == 1
    assert metrics.rank_90_ratio(metrics.rank_90([3.0]), metrics.rank_90_null(*shape)) == 1


def test_a_larger_matrix_has_a_larger_null():
    nulls = [metrics.rank_90_null(n, 3000) for n in (*range(1, 17), *range(62, 2001))]  # both ways, and where they meet
    assert nulls == sorted(nulls)


@pytest.mark.parametrize("shape", [(2, 2), (5, 9), (8, 8), (12, 40), (24, 24), (64, 64), (90, 90), (100, 400)])
def test_it_is_the_mean_of_a_count(shape):
    """Of full SVDs of Gaussian matrices: within .05, and three standard errors of their own."""
    g, trials = np.random.default_rng(7), 4000 if min(shape) < 20 else 400
    found = [metrics.rank_90(np.linalg.svd(g.standard_normal(shape), compute_uv=False)) for _ in range(trials)]
    error = np.std(found) / math.sqrt(trials)
    assert metrics.rank_90_null(*shape) == pytest.approx(np.mean(found), abs=0.05 + 3 * error)
    assert metrics.rank_90_null(*shape) == metrics.rank_90_null(*reversed(shape))


@pytest.mark.parametrize(("shape", "mean"), [((8, 8), 4.461), ((8, 4096), 8.0), ((64, 4096), 56.997)])
def test_small_shapes(shape, mean):
    assert metrics.rank_90_null(*shape) == pytest.approx(mean, abs=0.02)
    assert metrics.rank_90_null(*shape) == metrics.rank_90_null(*shape)


def test_the_larger_dimension_costs_nothing():
    assert metrics.rank_90_null(16, 10**9) == 15  # all σ are equal: 90 % of 16, as a count


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (-1, 3)])
def test_empty_shapes_are_refused(shape):
    with pytest.raises(OptionError, match="shape"):
        metrics.rank_90_null(*shape)


@pytest.mark.parametrize("beta", [0, 1.5, float("nan")])
def test_ratios_beyond_their_range_are_refused(beta):
    with pytest.raises(OptionError, match="ratio"):
        metrics.marchenko_pastur_median(beta)
    with pytest.raises(OptionError, match="q is 1"):
        metrics.marchenko_pastur_rank(4, 4, 1.0)
