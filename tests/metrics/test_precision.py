"""Noise edge, signal and shrinkage: closed forms and the Gavish–Donoho reference."""

import math

import numpy as np
import pytest

from deltaw import metrics
from deltaw.errors import OptionError

# beta, lambda_star, omega = lambda_star/sqrt(mu_beta): Gavish & Donoho 2014
REFERENCE = [
    (0.05, 1.506607, 1.519341),
    (0.125, 1.61514, 1.650016),
    (0.3720930233, 1.873261, 2.003235),
    (0.5, 1.978599, 2.171185),
    (0.75, 2.156094, 2.50143),
    (1.0, 2.309401, 2.858362),
]


@pytest.mark.parametrize(("beta", "lam", "omega"), REFERENCE)
def test_gavish_donoho_2014(beta, lam, omega):
    assert metrics.gavish_donoho_lambda(beta) == pytest.approx(lam, abs=1e-6)
    assert lam / math.sqrt(metrics.marchenko_pastur_median(beta)) == pytest.approx(omega, abs=2e-6)
    assert metrics.gavish_donoho_threshold(round(beta * 10**10), 10**10, noise=2.0) == pytest.approx(
        2e5 * lam, rel=1e-6
    )


def test_threshold_from_the_median():
    s = np.array([9.0, 3.0, 2.0, 1.0])
    expected = metrics.gavish_donoho_lambda(0.5) / math.sqrt(metrics.marchenko_pastur_median(0.5)) * 2.5
    assert metrics.gavish_donoho_threshold(4, 8, s=s) == pytest.approx(expected)
    assert metrics.gavish_donoho_lambda(1) == pytest.approx(4 / math.sqrt(3))


@pytest.mark.parametrize("kwargs", [{}, {"noise": 1.0, "s": np.ones(4)}, {"s": np.ones(3)}])
def test_threshold_needs_one_complete_source(kwargs):
    with pytest.raises(OptionError):
        metrics.gavish_donoho_threshold(4, 8, **kwargs)


def test_edge_of_equal_variances_is_the_bulk_edge():
    assert metrics.noise_edge(np.full(30, 50 * 4.0), np.full(50, 30 * 4.0)) == pytest.approx(
        2 * (math.sqrt(50) + math.sqrt(30))
    )
    assert metrics.rounding_noise(np.full(30, 50 * 4.0)) == pytest.approx(2 * math.sqrt(1500))
    assert metrics.noise_edge(np.zeros(0), np.zeros(3)) == 0


def test_signal_is_strictly_above_the_edge():
    s = np.array([5.0, 3.0, 2.0])
    assert metrics.signal_rank(s, 3.0, 3) == 1
    assert metrics.signal_energy(s, 1) == pytest.approx(25 / 38)
    assert metrics.signal_energy(s[:1], 1, 38.0) == pytest.approx(25 / 38)
    assert math.isnan(metrics.signal_energy(np.zeros(2), 0))


def test_without_noise_the_signal_is_the_numerical_rank():
    s = np.array([1.0, 0.5, 1e-12])
    rank = metrics.numerical_rank(s, 40, 30)
    assert metrics.signal_rank(s, 0.0, rank) == 2
    assert metrics.effective_rank_denoised(s, 2, 0.0, 40, 30) == pytest.approx(metrics.effective_rank([1, 0.5]))
    assert metrics.resolution(0.0, 1.0) == "resolved"


@pytest.mark.parametrize(
    ("noise", "word"),
    [(0.1, "resolved"), (0.11, "noisy"), (0.70, "noisy"), (0.71, "below_precision"), (3, "below_precision")],
)
def test_resolution(noise, word):
    assert metrics.resolution(noise, 1.0) == word


def test_shrinkage_closed_form():
    """Gavish & Donoho 2017: √(y² − 4) for square matrices; 0 at the edge; the identity without noise."""
    y = np.array([4.0, 3.0, 2.0, 1.0])
    n = 100
    assert metrics.optimal_shrinkage(y * math.sqrt(n) * 0.3, n, n, 0.3) == pytest.approx(
        0.3 * math.sqrt(n) * np.sqrt(np.maximum(y**2 - 4, 0))
    )
    beta = 0.25
    y = np.array([3.0, 1 + math.sqrt(beta)])
    expected = np.sqrt(np.maximum((y**2 - beta - 1) ** 2 - 4 * beta, 0)) / y
    assert metrics.optimal_shrinkage(y * math.sqrt(400), 100, 400, 1.0) == pytest.approx(expected * 20, abs=1e-6)
    assert metrics.optimal_shrinkage([3.0, 1.0], 5, 9, 0.0).tolist() == [3.0, 1.0]


@pytest.mark.parametrize("noise", [-1, float("nan"), float("inf")])
def test_shrinkage_refuses_a_noise_that_is_none(noise):
    with pytest.raises(OptionError, match="noise"):
        metrics.optimal_shrinkage([1.0], 2, 2, noise)


def test_shrinkage_is_the_best_estimate():
    """No other common factor on the shrunk values comes closer to the truth in Frobenius loss, to a few per cent."""
    g = np.random.default_rng(1)
    m, n = 200, 300
    u, v = np.linalg.qr(g.standard_normal((m, 3)))[0], np.linalg.qr(g.standard_normal((n, 3)))[0]
    truth = (u * np.array([60.0, 50.0, 40.0])) @ v.T
    a, s, b = np.linalg.svd(truth + g.standard_normal((m, n)), full_matrices=False)
    shrunk = metrics.optimal_shrinkage(s, m, n, 1.0)[:3]

    def loss(values):
        return np.linalg.norm((a[:, :3] * values) @ b[:3] - truth)

    best = min(np.linspace(0.8, 1.2, 81), key=lambda f: loss(f * shrunk))
    assert best == pytest.approx(1, abs=0.02)
    assert loss(shrunk) < loss(s[:3])


def test_clipped_fraction():
    assert metrics.clipped_fraction(6, 24) == 0.25
    assert metrics.clipped_fraction(0, 24) == 0
