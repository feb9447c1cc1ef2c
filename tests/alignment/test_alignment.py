"""Intruders, overlaps and rotation, against full SVDs in float64 and against peft."""

import copy
import re

import numpy as np
import pytest
import torch

from deltaw.alignment.alignment import TABLE_EPSILON, UNCHANGED, align, basis
from deltaw.alignment.cache import BaseCache
from deltaw.delta.sums import sweep, sweep_factors
from deltaw.metrics import evaluate
from deltaw.types import Factors

SHAPES = [(40, 40), (300, 330), (30, 50), (50, 30), (1, 20), (20, 1)]


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row(w0, delta, rank=4, **options):
    found = align(delta, w0, rank=rank, **options)
    _, sums = sweep(w0, w0 + delta)
    given = {"spectral_norm": float(torch.linalg.matrix_norm(delta, 2))}
    return evaluate(sums.quantities() | found.quantities, ("alignment",), given), found


def naive(w0, delta, r, k=10, epsilon=0.5):
    """The definitions, written with full SVDs."""
    u0, s0, v0 = torch.linalg.svd(w0, full_matrices=False)
    u, s, v = torch.linalg.svd(w0 + delta, full_matrices=False)
    ud, _, vd = torch.linalg.svd(delta, full_matrices=False)
    k = min(k, len(s))
    alien = (u0.T @ u[:, :k]).abs().max(0).values < epsilon
    alien_right = (v0 @ v[:k].T).abs().max(0).values < epsilon
    cos = torch.linalg.svdvals(u0[:, :k].T @ u[:, :k]).min().clamp(max=1)
    return {
        "intruders": int(alien.sum()),
        "intruders_right": int(alien_right.sum()),
        "intruder_energy": float(s[:k][alien].square().sum() / s[:k].square().sum()),
        "amplification": float(delta.norm() / (ud[:, :r].T @ w0 @ vd[:r].T).norm()),
        "base_overlap_left": float((ud[:, :r].T @ u0[:, :r]).square().sum() / r),
        "base_overlap_right": float((vd[:r] @ v0[:r].T).square().sum() / r),
        "spectral_shift": float((s - s0).norm() / s0.norm()),
        "rotation": float(torch.rad2deg(torch.arccos(cos))),
        "update_ratio": float(torch.linalg.matrix_norm(delta, 2) / s0[0]),
        "sign_flips": float((torch.sign(w0) != torch.sign(w0 + delta)).double().mean()),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_against_the_definitions(shape, scale):
    w0, delta = normal(*shape), normal(*shape, seed=1, scale=scale)
    r = min(4, *shape)
    found, _ = row(w0, delta, r)
    for name, value in naive(w0, delta, r).items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-5), name


@pytest.mark.parametrize("shape", [(60, 60), (40, 80), (80, 40)])
def test_one_direction_above_the_spectrum_is_one_intruder(shape):
    w0 = normal(*shape)
    u, v = normal(shape[0], seed=1), normal(shape[1], seed=2)
    theta = 3 * torch.linalg.matrix_norm(w0, 2)
    found, _ = row(w0, theta * torch.outer(u / u.norm(), v / v.norm()), 1)
    assert found["intruders"] == found["intruders_right"] == 1
    assert found["intruder_energy"] > 0.3


@pytest.mark.parametrize("shape", [(60, 60), (40, 80), (80, 40)])
@pytest.mark.parametrize("factor", [0.99, 1.05])
def test_a_scaling_has_no_intruder(shape, factor):
    w0 = normal(*shape)
    found, _ = row(w0, (factor - 1) * w0)
    assert found["intruders"] == found["intruders_right"] == found["intruder_energy"] == 0
    assert found["spectral_shift"] == pytest.approx(abs(factor - 1))
    assert found["rotation"] == pytest.approx(0, abs=1e-4)
    assert found["base_overlap_left"] == pytest.approx(1)
    assert found["base_overlap_right"] == pytest.approx(1)
    assert found["amplification"] == pytest.approx(
        abs(factor - 1) * float(w0.norm() / torch.linalg.svdvals(w0)[:4].norm())
    )


def test_factors_and_their_product_are_the_same():
    w0, B, A = normal(50, 30), normal(50, 3, seed=1), normal(3, 30, seed=2)
    dense, _ = row(w0, B @ A, 3)
    found = align(Factors(B, A), w0, rank=3)
    sums = sweep_factors(Factors(B, A), lambda rows: w0[rows])
    given = {"spectral_norm": float(torch.linalg.matrix_norm(B @ A, 2))}
    factored = evaluate(sums.quantities() | found.quantities, ("alignment",), given)
    assert factored == pytest.approx(dense, rel=1e-6, abs=1e-7)


def test_transposition_swaps_the_sides():
    w0, delta = normal(40, 30), normal(40, 30, seed=1, scale=0.5)
    one, _ = row(w0, delta)
    two, _ = row(w0.T, delta.T)
    assert one["intruders"] == two["intruders_right"]
    assert one["base_overlap_left"] == pytest.approx(two["base_overlap_right"])
    assert one["amplification"] == pytest.approx(two["amplification"])
    assert one["spectral_shift"] == pytest.approx(two["spectral_shift"])


def test_a_base_without_full_rank():
    """The vectors of σ = 0 are arbitrary: only the six real ones count, on both sides."""
    w0 = normal(40, 6) @ normal(6, 40, seed=1)
    u, v = normal(40, seed=2), normal(40, seed=3)
    found, _ = row(w0, 1000 * torch.outer(u / u.norm(), v / v.norm()), 1)
    assert found["intruders_right"] >= 1
    assert all(np.isfinite(v) for v in found.values())


def test_zero_base_and_zero_rank():
    found, _ = row(torch.zeros(12, 9, dtype=torch.float64), normal(12, 9))
    assert np.isnan(found["spectral_shift"])
    assert np.isnan(found["amplification"])
    found, _ = row(normal(12, 9), normal(12, 9, seed=1, scale=1e-3), rank=0)
    assert "amplification" not in found
    assert "base_overlap_left" not in found
    assert found["intruders"] == 0


def test_an_unchanged_matrix_is_known_without_work():
    w0 = normal(30, 20)
    found, _ = row(w0, torch.zeros_like(w0), rank=0)
    for name, value in UNCHANGED.items():
        assert found[name] == pytest.approx(value, abs=1e-5)


def test_the_cache_changes_nothing_but_the_work(tmp_path, monkeypatch):
    cache = BaseCache(tmp_path)
    w0, delta = normal(40, 30).bfloat16(), normal(40, 30, seed=1, scale=0.3).float()
    cold = align(delta, w0, rank=4, cache=cache)
    assert len(list(tmp_path.iterdir())) == 1
    worked = []
    monkeypatch.setattr("deltaw.alignment.alignment.basis", lambda x: (worked.append(x.shape), basis(x))[1])
    warm = align(delta, w0, rank=4, cache=cache)
    assert len(worked) == 1  # W; of ΔW the leading vectors do
    plain = align(delta, w0, rank=4)
    assert len(worked) == 3  # and W0
    assert warm.intruders == cold.intruders == plain.intruders
    for name, value in cold.quantities.known().items():
        np.testing.assert_allclose(np.abs(getattr(warm.quantities, name)), np.abs(value), atol=2e-6, err_msg=name)


def test_a_cached_file_of_another_shape_is_not_used(tmp_path):
    cache = BaseCache(tmp_path)
    w0, delta = normal(20, 10), normal(20, 10, seed=1)
    expected = align(delta, w0, rank=2, cache=cache).intruders
    (file,) = tmp_path.iterdir()
    key = file.stem.split("-")[-1]
    cache.put(key, {"s": np.ones(3), "q": np.eye(3, dtype=np.float32)})
    assert align(delta, w0, rank=2, cache=cache).intruders == expected


def test_intruders_by_other_definitions():
    w0, delta = normal(80, 60), normal(80, 60, seed=1)
    _, found = row(w0, delta, top_k=10, epsilon=0.5)
    at = {(r.k, r.epsilon): r for r in found.intruders}
    assert at[10, 0.5].intruders == naive(w0, delta, 4)["intruders"]
    assert {k for k, _ in at} == {1, 5, 10, 20, 50}
    for k in (1, 5, 10, 20, 50):
        counts = [at[k, e].intruders for e in TABLE_EPSILON]
        assert counts == sorted(counts)
        assert counts[-1] <= k
    assert at[50, 0.9].intruders_null == pytest.approx(50)


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(24, 48), torch.nn.Tanh(), torch.nn.Linear(48, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8)
    )


@pytest.mark.parametrize("r", [1, 8, 64])
def test_peft_counts_the_same(r):
    """LoRA adapters trained for real; `reduce_intruder_dimension` of peft prints its counts."""
    peft = pytest.importorskip("peft")
    intruders = pytest.importorskip("peft.tuners.lora.intruders")
    model = small_model()
    config = peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=["0", "2", "4"], init_lora_weights=True)
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    x, y = torch.randn(128, 24), torch.randn(128, 8)
    for _ in range(60):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    ours = []
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and name.endswith(("0", "2", "4")):
            w0 = layer.get_base_layer().weight.data
            delta = layer.get_delta_weight("default").data
            ours.append(row(w0.double(), delta.double(), r)[0]["intruders"])
    lines: list[str] = []
    intruders.reduce_intruder_dimension(
        copy.deepcopy(model), top_k=10, threshold_epsilon=0.5, logging_sink=lines.append
    )
    theirs = [int(m[1]) if (m := re.search(r"Intruders: (\d+)", line)) else 0 for line in lines if "ntruders" in line]
    assert ours == theirs
    assert sum(ours) > 0
