"""Who was rounded, and by how much: right values for what a file hides, with the true update known."""

import numpy as np
import pytest
import torch

import deltaw
from deltaw.delta.rounding import _code_cells, _even_cells
from deltaw.delta.sums import sweep
from deltaw.metrics import evaluate
from deltaw.metrics.quantities import Quantities
from deltaw.spectra import singular_values

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(m, n, r, size, seed=10):
    update = normal(m, r, seed=seed) @ normal(r, n, seed=seed + 1)
    return update * (size / update.norm())


def measured(w0, w):
    delta, sums = sweep(w0, w)
    row = evaluate(sums.quantities() | Quantities(s=singular_values(delta).values))
    return row | {"share": row["rounding_noise"] ** 2 / row["fro_norm"] ** 2, "sums": sums}


W = normal(512, 384, scale=0.02)
U = low_rank(512, 384, 8, 0.02 * float(W.norm()))


@pytest.mark.parametrize("stored", [FP32, FP16, BF16], ids=str)
def test_a_merge_in_bfloat16_in_any_file(stored):
    """Merged rank 8, saved as float32: 8, and not 384."""
    w0 = W.bfloat16()
    row = measured(w0, (w0.float() + U).bfloat16().to(stored))
    true = float(((w0.float() + U).bfloat16().float() - w0.float() - U).norm())
    assert row["signal_rank"] == 8
    assert row["sums"].ft_precision == "bfloat16"
    assert row["rounding_noise"] == pytest.approx(true, rel=0.02)
    assert row["base_rounding"] == 0


@pytest.mark.parametrize("base", [FP32, FP16], ids=str)
@pytest.mark.parametrize("stored", [BF16, FP32], ids=str)
def test_a_base_that_was_cast_before_the_merge(base, stored):
    """float16 base, merged in bfloat16: both roundings, rank 8 (and not 66)."""
    w0 = W.to(base)
    row = measured(w0, (w0.bfloat16().float() + U).bfloat16().to(stored))
    assert row["signal_rank"] == 8
    assert row["base_rounding"] == pytest.approx(float((w0.bfloat16().double() - w0.double()).norm()), rel=1e-9)
    true = float(((w0.bfloat16().float() + U).bfloat16().double() - w0.double() - U.double()).norm())
    assert row["rounding_noise"] == pytest.approx(true, rel=0.02)


def test_a_base_that_was_not_cast():
    """Stored once: only the rounding at the end, which the projection on the base's own error tells."""
    row = measured(W, (W + U).bfloat16())
    assert row["signal_rank"] == 8
    assert row["base_rounding"] == 0
    assert row["rounding_noise"] == pytest.approx(float(((W + U).bfloat16().float() - W - U).norm()), rel=0.02)


@pytest.mark.parametrize(
    ("w0", "w"),
    [
        (W, W.bfloat16().float()),
        (W, W.bfloat16()),
        (W, W.half().float()),
        (W.half(), W.half().bfloat16()),
        (W.double(), W.double().bfloat16().double()),
    ],
)
def test_a_round_trip_is_all_rounding(w0, w):
    row = measured(w0, w)
    assert row["share"] == pytest.approx(1, abs=1e-6)
    assert row["signal_rank"] == 0
    assert row["resolution"] == "below_precision"


def test_truncation_is_all_rounding():
    row = measured(W, (W.view(torch.int32) & -65536).view(torch.float32).bfloat16())
    assert row["share"] == pytest.approx(1)
    assert row["signal_rank"] == 0


@pytest.mark.parametrize("seen", [0.5, 0.1, 0.01, 0.005])
def test_rows_that_were_not_trained_hold_no_rounding(seen):
    """1 % of an embedding's rows trained: .11 % of the energy is rounding (and not 10.9 %), rank 4, resolved."""
    w0 = normal(8000, 256, scale=0.02).bfloat16()
    rows = torch.randperm(8000, generator=torch.Generator().manual_seed(1))[: int(8000 * seen)]
    update = torch.zeros(8000, 256)
    update[rows] = low_rank(len(rows), 256, 4, 0.05 * float(w0.float()[rows].norm()))
    w = (w0.float() + update).bfloat16()
    for old, new in ((w0, w), (w0.T, w.T), (w0.T.contiguous(), w.T.contiguous())):  # columns as well
        row = measured(old, new)
        true = float((w.double() - w0.double() - update.double()).norm() / (w.double() - w0.double()).norm()) ** 2
        assert row["share"] == pytest.approx(true, rel=0.05)
        assert row["share"] == pytest.approx(0.0011, abs=1e-4)
        assert row["signal_rank"] == 4
        assert row["resolution"] == "resolved"
        assert row["unchanged_fraction_null"] == pytest.approx(row["unchanged_fraction"], abs=0.02)


def sparse(share, exact, seed=0):
    g = torch.Generator().manual_seed(seed)
    w0 = (0.02 * torch.randn(256, 256, generator=g)).bfloat16()
    there = torch.rand(256, 256, generator=g) < share
    ulp = 2.0 ** (torch.floor(torch.log2(w0.float().abs())) - 7)
    moves = torch.randint(3, 9, w0.shape, generator=g) * torch.randn(w0.shape, generator=g).sign() * ulp
    update = (moves if exact else 4e-4 * torch.randn(w0.shape, generator=g)) * there
    return w0, (w0.float() + update).bfloat16(), update


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("share", [0.005, 0.05, 0.2])
def test_a_sparse_update_is_not_mostly_rounding(share, exact):
    row = measured(*sparse(share, exact)[:2])
    assert row["share"] < 0.01
    assert row["resolution"] == "resolved"
    assert row["unchanged_fraction_null"] == pytest.approx(row["unchanged_fraction"], abs=0.03)


def kinds(kind, m, n):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(m, n, generator=g)
    if kind == "rows":
        x *= torch.exp(torch.randn(m, 1, generator=g))
    if kind == "cols":
        x *= torch.exp(torch.randn(1, n, generator=g))
    if kind == "rank 1":
        x = torch.randn(m, 1, generator=g) @ torch.randn(1, n, generator=g)
    if kind == "student":
        x /= torch.randn(3, m, n, generator=g).square().mean(0).sqrt()
    return x


@pytest.mark.parametrize("kind", ["normal", "rows", "cols", "rank 1", "student"])
@pytest.mark.parametrize("size", [1e-3, 3e-3, 1e-2])
def test_a_dense_update_is_not_taken_for_a_sparse_one(kind, size):
    """However unevenly it is spread: entries that did not move by rounding hold rounding."""
    w0 = W.bfloat16()
    update = kinds(kind, 512, 384)
    w = (w0.float() + update * (size * float(W.norm() / update.norm()))).bfloat16()
    _, sums = sweep(w0, w)
    every = 2.0 ** (2 * (np.floor(np.log2(np.abs(w.double().numpy()))) - 7)) / 12
    assert sums.noise_row.sum() == pytest.approx(every.sum(), rel=0.02)
    row = evaluate(sums.quantities())
    assert row["rounding_noise"] <= row["fro_norm"]  # no more than it all
    assert row["unchanged_fraction"] < row["unchanged_fraction_null"] + 0.1
    if kind != "rank 1":  # once rows and columns are scaled, its entries are all ±1
        assert row["unchanged_fraction_null"] == pytest.approx(row["unchanged_fraction"], abs=0.1)


def test_shares_are_never_above_one():
    w0 = W.bfloat16()
    for size in (1e-5, 1e-4, 1e-3):
        row = measured(w0, (w0.float() + U * (size / 0.02)).bfloat16())
        assert row["share"] <= 1
        assert row["resolution"] == "below_precision"


def trained(keep, rate, steps):
    """Adam-like steps, in weights that are kept in bfloat16 or in float32."""
    g = torch.Generator().manual_seed(2)
    w0 = (0.02 * torch.randn(512, 384, generator=g)).bfloat16()
    towards, w = torch.randn(512, 384, generator=g), w0.float()
    for _ in range(steps):
        w = (w + rate * torch.tanh(0.3 * towards + torch.randn(512, 384, generator=g))).to(keep).float()
    return w0, w.bfloat16()


@pytest.mark.parametrize(("rate", "steps"), [(1e-5, 150), (3e-5, 60)])
def test_training_kept_in_bfloat16_is_noticed(rate, steps):
    name = "model.layers.0.mlp.up_proj.weight"
    w0, w = trained(BF16, rate, steps)
    noted = deltaw.analyze({name: w0}, {name: w})
    assert any("kept in their stored precision" in note for note in noted.notes)
    w0, w = trained(FP32, rate, steps)
    once = deltaw.analyze({name: w0}, {name: w})
    assert not once.notes
    assert once.rows[0]["unchanged_fraction_null"] == pytest.approx(once.rows[0]["unchanged_fraction"], abs=0.02)


def test_a_cast_base_is_noted():
    name = "model.layers.0.mlp.up_proj.weight"
    found = deltaw.analyze({name: W.half()}, {name: (W.half().bfloat16().float() + U).bfloat16()})
    assert found.summary.verdict == "low_rank"
    assert "float16 to bfloat16" in found.notes[0]
    frame = found.to_pandas()
    assert frame["ft_precision"].tolist() == ["bfloat16"]
    assert frame["base_precision"].tolist() == ["float16"]
    assert not deltaw.analyze({name: W}, {name: (W + U).bfloat16()}).notes


def test_precision_of_every_route():
    w = {"a.weight": W.bfloat16().float(), "b.weight": W.half(), "n.bias": normal(8).bfloat16().float()}
    ft = {"a.weight": W.bfloat16().float(), "b.weight": (W + U).half(), "n.bias": normal(8, seed=1)}
    frame = deltaw.analyze(w, ft).to_pandas().set_index("name")
    assert frame["base_precision"].to_dict() == {"a.weight": "bfloat16", "b.weight": "float16", "n.bias": "bfloat16"}
    assert frame["ft_precision"].to_dict() == {"a.weight": "bfloat16", "b.weight": "float16", "n.bias": "float32"}


def evenly(w, bits, size):
    x = w.reshape(-1, size)
    step = x.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (torch.round(x / step) * step).reshape(w.shape)


@pytest.mark.parametrize(("bits", "size"), [(8, 384), (8, 128), (4, 384), (4, 64), (4, 32)])
@pytest.mark.parametrize("stored", [BF16, FP32], ids=str)
def test_a_quantised_round_trip_is_rounding(bits, size, stored):
    w0 = W.bfloat16()
    row = measured(w0, evenly(w0.float(), bits, size).to(stored))
    assert row["share"] > 0.85
    assert row["signal_rank"] == 0
    assert row["resolution"] == "below_precision"
    transposed = measured(w0.T, evenly(w0.float(), bits, size).to(stored).T)
    assert transposed["rounding_noise"] == pytest.approx(row["rounding_noise"])


def test_float8_round_trips_are_rounding():
    w0 = W.bfloat16()
    for scale in (64.0, 448 / float(W.abs().max())):
        w = ((w0.float() * scale).to(torch.float8_e4m3fn).float() / scale).bfloat16()
        row = measured(w0, w)
        assert row["share"] > 0.9
        assert row["signal_rank"] == 0


def test_cells_of_codes():
    """(b³ − a³)/(3(b − a)) over [−down/2, up/2]; the outermost cells are doubled."""
    x = torch.tensor([[0.0, 1.0, 3.0, 1.0, 0.0, 3.0], [5.0, 5.0, 5.0, 5.0, 5.0, 6.0]], dtype=torch.float64)

    def cell(down, up):
        a, b = -down / 2, up / 2
        return (b**3 - a**3) / (3 * (b - a))

    first, middle, last = cell(2, 1), cell(1, 2), cell(2, 4)
    np.testing.assert_allclose(_code_cells(x)[0], [first, middle, last, middle, first, last], rtol=1e-12)
    np.testing.assert_allclose(_code_cells(x)[1], [cell(2, 1)] * 5 + [cell(1, 2)], rtol=1e-12)


def test_cells_of_even_steps():
    x = torch.tensor([[-0.2, 0.0, 0.1, 0.7, 0.1, -0.7]], dtype=torch.float64)
    np.testing.assert_allclose(_even_cells(x, 1.0)[0], [0.01 / 12] * 3 + [0.04 / 12, 0.01 / 12, 0.04 / 12], rtol=1e-9)
