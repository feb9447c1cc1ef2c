from __future__ import annotations

import numpy as np
import pytest
import torch

from deltaw.delta.sums import sweep
from deltaw.metrics.quantities import Quantities
from deltaw.metrics.registry import evaluate
from deltaw.spectra import Noise, low_rank_spectrum, singular_values, spectrum
from deltaw.spectra.quadrature import SECTIONS
from deltaw.types import Factors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def merged(update, relative, dtype=torch.bfloat16, seed=0, spread=0.0):
    """ΔW, its noise and its energy for an update of this relative size, merged into Gaussian weights and stored."""
    g = seeded(seed)
    W0 = torch.randn(*update.shape, generator=g) * 0.02 * torch.exp(spread * torch.randn(len(update), 1, generator=g))
    W0 = W0.to(dtype)
    update = update * (relative * W0.float().norm() / update.norm())
    delta, sums = sweep(W0, (W0.double() + update).to(dtype))
    noise = Noise(float(sums.noise_row.sum()), sums.noise_row, sums.noise_col)
    return delta, noise, float(sums.delta_row_sq.sum()), update


def lora(m, n, r, seed=1):
    return torch.randn(m, r, generator=seeded(seed)) @ torch.randn(r, n, generator=seeded(seed + 1))


def exact_metrics(delta, noise):
    s = singular_values(delta).values
    rows, cols = delta.shape
    known = Quantities(s=s, energy=float(s @ s), rows=rows, cols=cols, noise_row=noise.row, noise_col=noise.col)
    return s, evaluate(known, SECTIONS)


@pytest.mark.parametrize(
    ("shape", "rank", "relative", "spread"),
    [
        ((800, 800), 16, 1e-2, 0.0),
        ((800, 800), 4, 5e-2, 0.0),
        ((1000, 768), 16, 2.5e-3, 0.0),
        ((768, 1300), 32, 1e-2, 0.3),
    ],
)
def test_a_merged_update_is_certified(shape, rank, relative, spread):
    delta, noise, energy, _ = merged(lora(*shape, rank), relative, spread=spread)
    found = low_rank_spectrum(delta, noise, energy=energy, generator=seeded())
    assert found is not None
    assert found.method == "low_rank"
    assert (found.rows, found.cols) == shape
    assert not found.complete
    s, expected = exact_metrics(delta, noise)
    np.testing.assert_allclose(found.values, s[: len(found.values)], rtol=1e-5)
    assert len(found.values) == expected["signal_rank"]
    missed = {n: (v, expected[n]) for n, v in found.estimates.items() if not v.low <= expected[n] <= v.high}
    assert len(missed) <= 1, missed
    for name in ("spectral_norm", "stable_rank", "signal_rank", "signal_energy", "energy_at_1", "energy_at_4"):
        value, low, high = found.estimates[name]
        assert value == pytest.approx(expected[name], rel=1e-4), name
        assert high - low <= 1e-4 * value, name
    assert found.estimates["effective_rank"].value == pytest.approx(expected["effective_rank"], rel=0.04)


def test_float32_storage_leaves_a_tail_that_only_float64_sees():
    delta, noise, energy, update = merged(lora(900, 800, 8), 1e-2, torch.float32)
    assert noise.energy < 1e-9 * energy
    found = spectrum(delta, energy=energy, noise=noise, generator=seeded())
    assert found.method == "low_rank"
    np.testing.assert_allclose(found.values, torch.linalg.svdvals(update.double())[:8].numpy(), rtol=1e-5)
    _, expected = exact_metrics(delta, noise)
    for name in ("effective_rank", "nuclear_norm", "participation_ratio"):
        assert found.estimates[name].value == pytest.approx(expected[name], rel=1e-3), name


def full(m, n, seed=5):
    return torch.randn(m, n, generator=seeded(seed))


def decaying(m, n, power):
    U, _, V = torch.linalg.svd(full(m, n), full_matrices=False)
    return U * torch.arange(1, len(V) + 1) ** -power @ V


@pytest.mark.parametrize(
    ("update", "relative"),
    [
        (full(800, 800), 1e-2),
        (decaying(800, 800, 0.7), 1e-2),
        (decaying(800, 800, 1.5), 5e-2),
        (lora(800, 800, 16) + 2.0 * full(800, 800), 1e-2),  # a low rank on top of a full one
        (lora(800, 800, 300), 1e-2),
    ],
)
def test_what_is_more_than_rounding_is_not_certified(update, relative):
    delta, noise, energy, _ = merged(update, relative)
    assert low_rank_spectrum(delta, noise, energy=energy, generator=seeded()) is None
    assert spectrum(delta, energy=energy, noise=noise, generator=seeded()).method == "exact"


def test_an_update_below_the_rounding_is_not_certified():
    delta, noise, energy, _ = merged(lora(800, 800, 16), 2e-4)
    assert low_rank_spectrum(delta, noise, energy=energy, generator=seeded()) is None


def test_an_update_that_was_never_stored_is_not_certified():
    """Without rounding there is nothing that the rest could be certified as."""
    delta = lora(800, 800, 16)
    nothing = Noise(0.0, np.zeros(800), np.zeros(800))
    assert low_rank_spectrum(delta, nothing, energy=float(delta.square().sum()), generator=seeded()) is None


def test_one_direction_hidden_from_the_sample_of_rows_is_found():
    """The sample sees a few rows; the Krylov space must find what lies in the others, or refuse."""
    update = lora(800, 800, 8)
    hidden = torch.zeros(800, 800)
    hidden[17] = full(1, 800)[0] * float(update.norm()) / 28
    delta, noise, energy, _ = merged(update + hidden, 1e-2)
    found = low_rank_spectrum(delta, noise, energy=energy, generator=seeded())
    s, _ = exact_metrics(delta, noise)
    assert found is not None
    np.testing.assert_allclose(found.values, s[:9], rtol=1e-5)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_routes(mode):
    factors = Factors(full(900, 4), full(4, 800))
    assert spectrum(factors, mode=mode).complete
    assert spectrum(torch.zeros(900, 800), mode=mode).values.max() == 0
    assert spectrum(full(900, 800) * 1e-35, mode=mode, generator=seeded()).complete
    assert spectrum(torch.zeros(0, 5), mode=mode).values.size == 0


def test_fast_mode_estimates_a_large_matrix():
    x = torch.diag(torch.exp(-torch.arange(1536) / 500.0))
    found = spectrum(x, mode="fast", generator=seeded())
    assert found.method == "estimate"
    assert spectrum(x, mode="exact").method == "exact"
