"""The pass over the entries, against naive float64 sums, for every stored dtype and layout."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deltaw
from deltaw.delta import compiled
from deltaw.delta import sums as sums_of_entries
from deltaw.delta.sums import (
    compute_dtype,
    sweep,
    sweep_factors,
    sweep_update,
    unchanged_sums,
)
from deltaw.errors import TensorError
from deltaw.metrics import evaluate
from deltaw.tensors.bits import same_bits, ulp
from deltaw.types import Factors

FRACTION = {
    torch.float64: 52,
    torch.float32: 23,
    torch.bfloat16: 7,
    torch.float16: 10,
    torch.float8_e4m3fn: 3,
    torch.float8_e5m2: 2,
    torch.float8_e4m3fnuz: 3,
    torch.float8_e5m2fnuz: 2,
}
DTYPES = list(FRACTION)


@pytest.fixture(autouse=True, scope="module", params=["torch", "compiled"])
def way(request):
    """Both ways of adding up the entries have to pass every test here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums_of_entries, "COMPILED_FROM", 0 if request.param == "compiled" else math.inf)
        yield request.param


def normal(*shape, seed=0, dtype=torch.float32, scale=1.0):
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def naive_variance(w):
    """ulp²/12 by logarithms and `finfo`."""
    values = np.abs(w.double().numpy())
    smallest = float(torch.finfo(w.dtype).smallest_normal)
    exponent = np.floor(np.log2(np.maximum(values, smallest)))
    return 2.0 ** (2 * (exponent - FRACTION[w.dtype])) / 12


def rounded_variance(w0, w):
    """`naive_variance` where a row and a column moved, and nothing else was rounded (as dense updates are)."""
    moved = (w0.double() != w.double()).numpy()
    return naive_variance(w) * moved.any(1, keepdims=True) * moved.any(0, keepdims=True)


@pytest.mark.parametrize("ft_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (1, 9), (9, 1), (33, 64)])
def test_against_naive_sums(base_dtype, ft_dtype, shape):
    w0 = normal(*shape, dtype=base_dtype)
    w = (w0.double() + normal(*shape, seed=1, scale=0.1, dtype=torch.float64)).to(ft_dtype)
    delta, sums = sweep(w0, w, block=13)
    assert delta.dtype == compute_dtype(base_dtype, ft_dtype)
    a, b = w0.double().numpy(), w.double().numpy()
    d = b - a
    np.testing.assert_allclose(delta.double().numpy(), d, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(sums.delta_row_sq, (d**2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(sums.base_row_sq, (a**2).sum(1), rtol=1e-12)
    np.testing.assert_allclose(sums.delta_base_row, (d * a).sum(1), rtol=1e-5, atol=1e-6)
    if not sums.base_noise:  # a few entries tell chance from a base that was cast: see test_rounding
        np.testing.assert_allclose(sums.noise_row, rounded_variance(w0, w).sum(1), rtol=1e-12)
        np.testing.assert_allclose(sums.noise_col, rounded_variance(w0, w).sum(0), rtol=1e-12)
    assert sums.max_abs == pytest.approx(np.abs(d).max(), rel=1e-6)
    assert sums.equal == int((a == b).sum())
    assert (sums.rows, sums.cols) == shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ulp_of_hard_entries(dtype):
    """Zero, powers of two and their neighbours, the smallest normal and subnormal, the largest."""
    info = torch.finfo(dtype)
    tiny = float(info.smallest_normal)
    grain = 2.0 ** -FRACTION[dtype]
    values = [0.0, -0.0, 1.0, 2.0, -0.5, 1 + grain, 2 - grain, tiny, tiny / 2, tiny * grain, -tiny, 3.0]
    if dtype != torch.float64:  # (ulp of its largest entry)² is beyond float64
        values.append(float(info.max))
    w = torch.tensor(values, dtype=torch.float64).to(dtype)
    np.testing.assert_array_equal(ulp(w).square().numpy() / 12, naive_variance(w))
    if dtype != torch.float64:
        for x in (w[None], w[:, None]):
            zeros = torch.zeros_like(x)
            _, sums = sweep(zeros, x)
            np.testing.assert_allclose(sums.noise_row, rounded_variance(zeros, x).sum(1), rtol=1e-14)
            np.testing.assert_allclose(sums.noise_col, rounded_variance(zeros, x).sum(0), rtol=1e-14)


@settings(max_examples=200)
@given(st.integers(0, 2**16 - 1), st.sampled_from([torch.bfloat16, torch.float16]))
def test_ulp_is_the_distance_to_the_next_number(bits, dtype):
    w = torch.tensor([bits], dtype=torch.int32).to(torch.int16).view(dtype)
    if not torch.isfinite(w).all() or w.abs() == torch.finfo(dtype).max:
        return
    up = (w.view(torch.int16).abs() if w.item() >= 0 else w.view(torch.int16)) + 1  # the next magnitude
    gap = abs(float(up.view(dtype).double()) - float(w.double()))
    assert float(ulp(w)) == gap


def test_transposed_views_and_vectors():
    w0, w = normal(6, 4), normal(6, 4, seed=1)
    delta, sums = sweep(w0.T, w.T, block=5)
    straight, other = sweep(w0.T.contiguous(), w.T.contiguous())
    assert torch.equal(delta, straight)
    assert delta.is_contiguous()
    np.testing.assert_array_equal(sums.delta_row_sq, other.delta_row_sq)
    vector, sums = sweep(w0[0], w[0])
    assert vector.shape == (4,)
    assert (sums.rows, sums.cols) == (4, 1)
    assert set(evaluate(sums.totals())) == {
        *("fro_norm", "base_fro_norm", "relative_change", "max_abs", "max_over_rms", "unchanged_fraction"),
        *("shrinkage", "shrinkage_z"),
    }


@pytest.mark.parametrize("block", [1, 7, 64, 10**6])
def test_blocks_do_not_matter(block):
    w0, w = normal(20, 16, dtype=torch.bfloat16), normal(20, 16, seed=1, dtype=torch.bfloat16)
    reference, whole = sweep(w0, w)
    delta, sums = sweep(w0, w, block=block)
    assert torch.equal(delta, reference)
    for name in ("delta_row_sq", "base_row_sq", "delta_base_row", "noise_row", "noise_col"):
        np.testing.assert_allclose(getattr(sums, name), getattr(whole, name), rtol=1e-14)
    assert (sums.equal, sums.max_abs) == (whole.equal, whole.max_abs)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)], ids=str)
def test_threads_do_not_matter(dtypes, monkeypatch):
    """Not to a bit; over several chunks of rows, and pieces of columns."""
    w0, w = normal(130, 2500, dtype=dtypes[0]), normal(130, 2500, seed=1, dtype=dtypes[1])
    w[7], w0[7] = 1.5, 1.5
    monkeypatch.setattr(compiled, "CHUNK", 1 << 15)
    found = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found[threads] = sweep(w0, w)
    finally:
        torch.set_num_threads(before)
    (one, alone), (three, together) = found.values()
    assert torch.equal(one, three)
    if sums_of_entries.COMPILED_FROM == 0:
        for name in ("delta_row_sq", "base_row_sq", "delta_base_row", "noise_row", "noise_col"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))
    d = w.double() - w0.double()
    np.testing.assert_allclose(together.delta_row_sq, d.square().sum(1).numpy(), rtol=1e-6)
    np.testing.assert_allclose(together.noise_col, rounded_variance(w0, w).sum(0), rtol=1e-12)
    assert together.noise_row[7] == 0
    assert together.equal == int((w.double() == w0.double()).sum())


def test_delta_is_left_out_on_request():
    delta, sums = sweep(normal(3, 4), normal(3, 4, seed=1), keep=False)
    assert delta is None
    assert sums.max_abs > 0


def test_subtraction_is_not_in_the_stored_dtype():
    w0, w = torch.tensor([[1.0]]).bfloat16(), torch.tensor([[2.0**-10]]).bfloat16()
    delta, _ = sweep(w0, w)
    assert float(delta) == 2.0**-10 - 1


def test_signed_zeros_differ():
    w0, w = torch.tensor([[0.0, 1.0]]), torch.tensor([[-0.0, 1.0]])
    assert sweep(w0, w)[1].equal == 1
    assert sweep(w0, w.bfloat16())[1].equal == 1
    assert not same_bits(w0, w)


def test_equal_after_a_common_upcast():
    w = normal(8, 8, dtype=torch.bfloat16)
    assert sweep(w, w.float())[1].equal == 64
    assert sweep(w.double(), w)[1].equal == 64
    assert sweep(w.half().bfloat16(), w.half())[1].equal == int((w.half().bfloat16().float() == w.half().float()).sum())
    assert same_bits(w, w.clone())
    assert not same_bits(w, w.float())
    assert not same_bits(w, w[:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_non_finite_entries_are_named(dtype):
    w0, w = normal(4, 5).to(dtype), normal(4, 5, seed=1)
    w[2, 3], w[3, 1], w[3, 2] = math.nan, math.inf, -math.inf
    w = w.to(dtype)
    with pytest.raises(TensorError, match=r"fine-tuned: 1 NaN and 2 infinite of 20 entries, first at \(2, 3\)"):
        sweep(w0, w)
    with pytest.raises(TensorError, match=r"base: 1 NaN"):
        sweep(w, w0)
    same = unchanged_sums(w)  # bits before values: it has not changed, and has no norm
    assert same.equal == w.numel()
    assert same.base_row_sq is None


def test_overflow_of_the_squares_is_an_error_of_its_own():
    with pytest.raises(TensorError, match="overflow"):
        sweep(torch.zeros(2, 2, dtype=torch.float64), torch.full((2, 2), 1e200, dtype=torch.float64))
    with pytest.raises(TensorError, match="overflow"):  # only the square of a unit in the first place does
        sweep(*(torch.full((2, 2), w, dtype=torch.float64) for w in (0.7e154, 1.35e154)))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_empty(shape):
    _, sums = sweep(torch.zeros(shape), torch.zeros(shape))
    assert sums.max_abs == sums.equal == 0
    assert sums.totals().delta_sq == 0


def test_dense_update_of_an_adapter():
    w0, d = normal(6, 5), normal(6, 5, seed=1, dtype=torch.float64)
    d[0, :2] = 0
    sums = sweep_update(w0, d, block=7)
    np.testing.assert_allclose(sums.delta_base_row, (d * w0).sum(1).numpy(), rtol=1e-12)
    assert sums.equal == 2
    assert not sums.noise_row.any()
    alone = sweep_update(None, d)
    assert alone.base_row_sq is None
    assert alone.quantities().base_sq is None
    assert alone.quantities().base_row_sq is None
    with pytest.raises(TensorError):
        sweep_update(w0 * math.nan, d)


def test_unchanged():
    w = normal(6, 5, dtype=torch.bfloat16)
    (row,) = deltaw.analyze({"a.weight": w}, {"a.weight": w.clone()}).rows
    assert row["fro_norm"] == row["relative_change"] == row["rank_90"] == row["signal_rank"] == row["max_abs"] == 0
    assert row["unchanged_fraction"] == 1
    assert row["base_fro_norm"] == pytest.approx(float(w.float().norm()))
    assert math.isnan(row["energy_at_1"])
    assert "resolution" not in row
    assert "rounding_noise" not in row


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("r", [0, 1, 3, 9])
def test_factors_against_the_product(r, transposed):
    B, A = normal(8, r, dtype=torch.float64), normal(r, 6, seed=1, dtype=torch.float64)
    B[2] = 0
    A[:, 4] = 0
    w0 = normal(8, 6, seed=2, dtype=torch.bfloat16)
    stored = w0.T if transposed else w0
    sums = sweep_factors(Factors(B, A), lambda rows: stored[rows], transposed=transposed, block=11)
    dense = sweep_update(w0, B @ A)
    np.testing.assert_allclose(sums.delta_row_sq, dense.delta_row_sq, rtol=1e-12, atol=1e-28)
    np.testing.assert_allclose(sums.base_row_sq, dense.base_row_sq, rtol=1e-12)
    np.testing.assert_allclose(sums.delta_base_row, dense.delta_base_row, rtol=1e-12, atol=1e-13)
    assert sums.max_abs == pytest.approx(dense.max_abs, rel=1e-12)
    assert sums.equal == dense.equal
    assert not sums.noise_row.any()
    assert sweep_factors(Factors(B, A)).base_row_sq is None


def test_factors_that_cancel_keep_their_digits():
    """The difference of two nearly equal adapters: a Gram matrix would leave nothing of it."""
    b, a = normal(40, 4, dtype=torch.float64), normal(4, 30, seed=1, dtype=torch.float64)
    B = torch.cat([b, -b], 1)
    A = torch.cat([a, a + 1e-9 * normal(4, 30, seed=2, dtype=torch.float64)])
    exact = (-b @ (1e-9 * normal(4, 30, seed=2, dtype=torch.float64))).square().sum(1).numpy()
    np.testing.assert_allclose(sweep_factors(Factors(B, A)).delta_row_sq, exact, rtol=1e-5)


def test_factors_that_are_not_finite():
    B, A = normal(4, 2), normal(2, 4)
    with pytest.raises(TensorError, match="factors"):
        sweep_factors(Factors(B * math.nan, A))
    with pytest.raises(TensorError, match="base"):
        sweep_factors(Factors(B, A), lambda rows: torch.full((4, 4), math.inf)[rows])
