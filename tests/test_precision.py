"""Rounding noise in real matrices: what is predicted against what is true, in every stored format.

The base and the update are made in float32, the sum is stored; so the true rounding error is known.
"""

import math

import numpy as np
import pytest
import torch

from deltaw.delta.sums import sweep
from deltaw.metrics import effective_rank, evaluate
from deltaw.metrics.quantities import Quantities
from deltaw.spectra import singular_values

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(m, n, r, size, seed=10):
    """A random update of exact rank r and Frobenius norm `size`."""
    update = normal(m, r, seed=seed) @ normal(r, n, seed=seed + 1)
    return update * (size / update.norm())


def measured(w0, w):
    delta, sums = sweep(w0, w)
    return evaluate(sums.quantities() | Quantities(s=singular_values(delta).values))


def heavy(kind, m, n, seed):
    x = normal(m, n, seed=seed, scale=0.02)
    if kind == "rows":
        return x * torch.exp(normal(m, 1, seed=seed + 1))
    if kind == "student":
        return x / torch.randn(3, m, n, generator=torch.Generator().manual_seed(seed + 1)).square().mean(0).sqrt()
    if kind == "cauchy":
        return x / normal(m, n, seed=seed + 1).abs()
    return x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "rank_90", "naive"), [(5e-2, 15, 84), (1e-2, 15, 531), (2.5e-3, 484, 1225)], ids=["5e-2", "1e-2", "2.5e-3"]
)
def test_the_published_table(size, rank_90, naive):
    """Rank 16 in bf16 at 2048×2048: the naive ranks report the rounding, the signal rank the update."""
    w0 = normal(2048, 2048, scale=0.02).bfloat16()
    w = (w0.float() + low_rank(2048, 2048, 16, size * float(w0.float().norm()), seed=1)).bfloat16()
    row = measured(w0, w)
    assert row["signal_rank"] == 16
    assert row["rank_90"] == pytest.approx(rank_90, rel=0.01)
    assert row["effective_rank"] == pytest.approx(naive, rel=0.01)
    assert row["effective_rank_denoised"] == pytest.approx(16, rel=0.05)
    if size >= 1e-2:
        assert row["rounding_noise"] == pytest.approx(0.0681, abs=1e-4)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("shape", [(256, 256), (128, 640), (640, 128)])
@pytest.mark.parametrize("rows_differ", [False, True])
def test_an_update_is_found_in_every_format(dtype, shape, rows_differ):
    w0 = normal(*shape, scale=0.02)
    if rows_differ:
        w0 *= 10 ** torch.linspace(-1, 1, shape[0])[:, None]
    w0 = w0.to(dtype)
    # 20 times the noise of one entry in the format, spread over 8 directions
    size = 20 * {BF16: 2.0**-7, FP16: 2.0**-10, FP32: 2.0**-23}[dtype] * float(w0.float().norm())
    update = low_rank(*shape, 8, size).double()
    w = (w0.double() + update).to(dtype)
    row = measured(w0, w)
    assert row["signal_rank"] == 8
    assert row["effective_rank_denoised"] == pytest.approx(effective_rank(np.linalg.svd(update)[1][:8]), rel=0.05)
    assert row["resolution"] == "resolved"


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("rows_differ", [False, True])
def test_the_noise_is_predicted_to_one_per_cent(dtype, rows_differ):
    """At a size where chance alone moves the true error by .1 %."""
    w0 = normal(1200, 1000, scale=0.02)
    if rows_differ:
        w0 *= 10 ** torch.linspace(-1, 1, 1200)[:, None]
    w0 = w0.to(dtype).double()
    size = 20 * {BF16: 2.0**-7, FP16: 2.0**-10, FP32: 2.0**-23}[dtype] * float(w0.norm())
    update = low_rank(1200, 1000, 8, size).double()
    w = (w0 + update).to(dtype)
    _, sums = sweep(w0.to(dtype), w, keep=False)
    true = float((w.double() - w0 - update).norm())
    assert evaluate(sums.quantities())["rounding_noise"] == pytest.approx(true, rel=0.01)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("kind", ["gaussian", "rows", "student", "cauchy"])
def test_rounding_alone_is_no_signal(kind, dtype):
    """W = round(W0): over 27 matrices of each kind, none shows a direction above the edge."""
    found = []
    for seed, shape in enumerate([(64, 64), (64, 256), (200, 64)] * 9):
        w0 = heavy(kind, *shape, seed=3 * seed).clamp(-1e3, 1e3)
        row = measured(w0, w0.to(dtype))
        found.append(row["signal_rank"])
        assert row["resolution"] != "resolved"
        assert row["effective_rank_denoised"] == 0
    assert sum(found) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "student"])
def test_rounding_alone_is_no_signal_at_size_2048(kind):
    w0 = heavy(kind, 2048, 1024, seed=5)
    row = measured(w0, w0.bfloat16())
    assert row["signal_rank"] == 0
    assert row["rounding_noise"] == pytest.approx(row["fro_norm"], rel=0.01)


def drawn(x, seed):
    """Stochastic rounding to bfloat16: up with the probability of the rest."""
    bits = x.view(torch.int32)
    random = torch.randint(0, 2**16, x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    return ((bits + random) & -(2**16)).view(torch.float32).bfloat16()


def truncated(x):
    return (x.view(torch.int32) & -(2**16)).view(torch.float32).bfloat16()


@pytest.mark.parametrize("kind", ["gaussian", "rows", "student"])
@pytest.mark.parametrize("shape", [(300, 200), (64, 64), (100, 400)])
def test_two_roundings_of_one_matrix_are_no_signal(shape, kind):
    """Nearest, truncated, drawn, through float16, or the base cast alone: all of ΔW is rounding, on whichever side."""
    w0 = heavy(kind, *shape, seed=1)
    versions = [w0.bfloat16(), truncated(w0), drawn(w0, 1), drawn(w0, 2), w0.half().bfloat16(), w0.half(), w0]
    for old in versions:
        for new in versions:
            row = measured(old, new)
            assert row["signal_rank"] == (0 if row["fro_norm"] else row["numerical_rank"])


def test_a_real_update_is_not_taken_for_a_rounding():
    """However small against an ulp: it moves the small weights by many of theirs."""
    w0 = normal(300, 200, scale=0.02).bfloat16()
    for size in (1e-4, 1e-3, 1e-2):
        update = low_rank(300, 200, 4, size * float(w0.float().norm()))
        _, sums = sweep(w0, (w0.float() + update).bfloat16())
        assert not sums.within_ulp
        assert sums.quantities().noise_inflation == 1
    _, sums = sweep(w0, w0.float() + update)
    assert not sums.within_ulp


@pytest.mark.parametrize("shape", [(300, 300), (200, 600)])
def test_one_spike_against_the_threshold_of_the_spiked_model(shape):
    """Below θ = s·(mn)^¼ a spike leaves no trace (Baik, Ben Arous & Péché); 2.2 times above it is seen."""
    m, n = shape
    w0 = normal(m, n, scale=0.02)
    noise = measured(w0, w0.bfloat16())["rounding_noise"] / math.sqrt(m * n)
    theta = noise * (m * n) ** 0.25
    u, v = normal(m, seed=3), normal(n, seed=4)
    spike = torch.outer(u / u.norm(), v / v.norm())
    # The base is the exact one; whether it was cast first cannot be told, and the edge allows for that.
    assert measured(w0, (w0 + 2.2 * theta * spike).bfloat16())["signal_rank"] == 1
    assert measured(w0, (w0 + 0.5 * theta * spike).bfloat16())["signal_rank"] == 0


@pytest.mark.parametrize(
    ("size", "unchanged", "cosine"),
    [(1e-4, 0.977, 0.21), (1e-3, 0.776, 0.63), (3e-3, 0.474, 0.89), (1e-2, 0.174, 0.987)],
)
def test_what_bf16_leaves_of_a_gaussian_update(size, unchanged, cosine):
    w0 = normal(1000, 1000, scale=0.02).bfloat16()
    update = normal(1000, 1000, seed=1, scale=0.02 * size)
    w = (w0.float() + update).bfloat16()
    delta, sums = sweep(w0, w)
    assert evaluate(sums.quantities())["unchanged_fraction"] == pytest.approx(unchanged, abs=0.003)
    cos = float((delta * update).sum() / delta.norm() / update.norm())
    assert cos == pytest.approx(cosine, abs=0.01)


@pytest.mark.parametrize("c", [1e-4, 1e-3, 1e-2, 0.1])
def test_pure_decay_in_float32(c):
    w0 = normal(200, 150, scale=0.02)
    row = measured(w0, w0 * (1 - c))
    assert row["shrinkage"] == pytest.approx(c, rel=1e-3)
    assert row["cosine_to_base"] == pytest.approx(-1, abs=1e-4)
    assert row["norm_growth"] == pytest.approx(-c, rel=1e-3)


def test_the_bf16_gate():
    """Below half an ulp of every entry a decay stores as nothing; just above it reads as more than it is."""
    w0 = normal(400, 400, scale=0.02).bfloat16()

    def shrinkage(c):
        _, sums = sweep(w0, (w0.float() * (1 - c)).bfloat16())
        return evaluate(sums.quantities())["shrinkage"]

    assert shrinkage(1e-4) == shrinkage(0.99 * 2.0**-9) == 0
    assert shrinkage(0.0039) == pytest.approx(0.0056, rel=0.02)
    assert shrinkage(0.05) == pytest.approx(0.05, rel=0.02)
