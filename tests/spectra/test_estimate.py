from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.coverage import FAMILIES, marchenko_pastur, random_spectrum
from deltaw.metrics.quantities import Quantities
from deltaw.metrics.registry import evaluate
from deltaw.spectra import estimate_spectrum, spectrum
from deltaw.spectra.quadrature import SECTIONS, crossing, estimated_values, excess
from deltaw.types import Interval

K = 1024


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def exact_metrics(sigma, rows=None, cols=None, **known):
    rows, cols = rows or len(sigma), cols or len(sigma)
    sums = Quantities(s=sigma, s_denoised=sigma, energy=float(sigma @ sigma), rows=rows, cols=cols)
    return evaluate(sums | Quantities(**known), SECTIONS)


def test_intervals_cover_and_are_narrow():
    """A Gaussian start does not know the singular vectors: a diagonal matrix stands for all with its spectrum."""
    covered, widths = [], []
    for number, family in enumerate(FAMILIES):
        for seed in range(3):
            sigma = random_spectrum(family, K, 100 * number + seed)
            found = estimate_spectrum(torch.diag(torch.from_numpy(sigma)), generator=seeded(10 * number + seed))
            assert found is not None
            assert found.method == "estimate"
            expected = exact_metrics(sigma)
            assert set(found.estimates) == set(expected) - {"rank_90_null"}
            np.testing.assert_allclose(found.values, sigma[: len(found.values)], rtol=1e-5, err_msg=family)
            for name, (value, low, high) in found.estimates.items():
                assert low <= value <= high, (family, name)
                covered.append(low <= expected[name] <= high)
                if name != "numerical_rank" and expected[name]:
                    widths.append((high - low) / expected[name])
    assert np.mean(covered) >= 0.95
    assert np.median(widths) <= 0.03
    assert np.quantile(widths, 0.9) <= 0.06


@pytest.mark.parametrize("shape", [(1100, 1024), (1024, 2000)])
def test_a_gaussian_matrix(shape):
    x = torch.randn(*shape, generator=seeded(3)) * 1e-4
    found = estimate_spectrum(x, generator=seeded())
    assert found is not None
    assert (found.rows, found.cols) == shape
    expected = exact_metrics(torch.linalg.svdvals(x.double()).numpy(), *shape)
    missed = [n for n, (_, low, high) in found.estimates.items() if not low <= expected[n] <= high]
    assert len(missed) <= 1, missed
    assert found.estimates["rank_90_ratio"].value == pytest.approx(1, abs=0.03)


def test_a_tail_below_float32_is_seen_in_float64():
    sigma = np.concatenate([np.linspace(2, 1, 8), 1e-6 * marchenko_pastur(K - 8, 0.5)])
    found = estimate_spectrum(torch.diag(torch.from_numpy(sigma)), generator=seeded())
    assert found is not None
    assert found.estimates["nuclear_norm"].value == pytest.approx(sigma.sum(), rel=1e-4)
    assert found.estimates["effective_rank"].value == pytest.approx(exact_metrics(sigma)["effective_rank"], rel=1e-2)
    assert found.estimates["numerical_rank"].value == 8


def test_more_is_spent_where_the_tolerance_asks_for_it():
    x = torch.diag(torch.exp(-torch.arange(1400) / 350.0))
    loose, tight = (estimate_spectrum(x, tolerance=t, generator=seeded()) for t in (0.2, 0.05))
    assert loose is not None
    assert tight is not None
    assert "tolerance" not in loose.note
    dimension = [int(s.note.split("dimension ")[1].split(";")[0]) for s in (loose, tight)]
    assert dimension[0] < dimension[1]
    assert excess(tight.estimates, 1) < excess(loose.estimates, 1)


def test_what_cannot_be_reached_is_said():
    found = estimate_spectrum(torch.diag(torch.exp(-torch.arange(1024) / 100.0)), tolerance=1e-4, generator=seeded())
    assert found is not None
    assert "times the tolerance" in found.note


def test_a_small_matrix_is_left_to_the_exact_solver():
    assert estimate_spectrum(torch.randn(300, 300, generator=seeded())) is None
    assert spectrum(torch.randn(300, 200, generator=seeded()), mode="fast").method == "exact"


def test_the_quadrature_of_all_values_is_the_spectrum():
    sigma = np.sort(np.random.default_rng(0).uniform(1, 2, 50))[::-1]
    got = estimated_values(sigma, np.ones(50), np.array([]), 50, float(sigma @ sigma))
    np.testing.assert_allclose(got, sigma, rtol=1e-12)


def test_a_node_without_weight_does_not_bend_the_values_beside_it():
    """Gauss–Radau's node at 0 has no weight where every singular value is the same."""
    weights = np.r_[1.0, 1.0, 98.0, 1e-14, 0.0]
    s = estimated_values(np.array([2.0, 2.0, 2.0, 0.0, 0.0]), weights, np.array([]), 100, 400.0)
    np.testing.assert_allclose(s, 2.0, rtol=1e-12)


@pytest.mark.parametrize("head", [0, 3, 20])
def test_estimated_values_have_the_count_and_the_energy(head):
    rng = np.random.default_rng(1)
    nodes = np.sort(rng.uniform(1, 5, 20))[::-1]
    leading = nodes[:head] * 1.001
    energy = float(leading @ leading) + (100 - head) * 2.0
    s = estimated_values(nodes, rng.uniform(1, 9, 20), leading, 100, energy)
    assert s.shape == (100,)
    assert (np.diff(s) <= 0).all()
    assert float(s @ s) == pytest.approx(energy, rel=1e-12)


def test_crossing_is_the_rank_between_the_counts():
    s = np.array([2.0, 1.0, 1.0, 1.0, 1.0])
    assert crossing(s, 0.5) == pytest.approx(1.0)
    assert crossing(s, 0.75) == pytest.approx(3.0)
    assert crossing(s, 0.25) == pytest.approx(0.5)


def test_excess_leaves_out_what_no_probe_can_sharpen():
    wide = Interval(10.0, 5.0, 15.0)
    assert excess({"nuclear_norm": wide}, 0.5) == pytest.approx(2)
    assert excess({"numerical_rank": wide, "rank_90_ratio": wide}, 0.5) == 0
    assert excess({"rank_50": Interval(3, 2, 4)}, 0.01) == 0
    assert excess({"rank_50": Interval(3, 1, 4)}, 1.0) == pytest.approx(1)
    assert excess({"energy_at_1": Interval(math.nan, math.nan, math.nan)}, 0.01) == 0


@pytest.mark.parametrize("top", ["equal", "within 1e-6", "within 1e-3", "fifty and fifty"])
def test_the_largest_of_a_cluster(top):
    """σ1 and what hangs on it, where more values crowd at the top than there are probes."""
    g = np.random.default_rng(0)
    tops = {
        "equal": np.ones(K),
        "within 1e-6": np.r_[1 + 1e-6 * g.random(200), np.linspace(0.5, 0.1, K - 200)],
        "within 1e-3": np.r_[1 + 1e-3 * g.random(100), np.linspace(0.5, 0.1, K - 100)],
        "fifty and fifty": np.repeat(np.linspace(1, 0.05, 20), [52] * 19 + [36]),
    }
    sigma = np.sort(tops[top])[::-1].copy()
    expected = exact_metrics(sigma)
    for seed in range(4):
        found = estimate_spectrum(torch.diag(torch.from_numpy(sigma)), generator=seeded(seed))
        for name in ("spectral_norm", "stable_rank", "energy_at_1"):
            value, low, high = found.estimates[name]
            assert low <= expected[name] <= high, (name, seed)
            assert high - low <= 0.01 * value
