"""The sums over two sides of codes, from their bytes and the general way, against plain float64 loops over formats."""

import copy

import numpy as np
import pytest
import torch

from deltaw.checkpoints import Checkpoint, QuantisedHandle, without_codes
from deltaw.checkpoints.memory import tensor_handles
from deltaw.delta import cells
from deltaw.delta import sums as sums_of_entries
from deltaw.delta.difference import Delta, difference
from deltaw.delta.rounding import histogram
from deltaw.documents import Document
from deltaw.errors import NotFiniteError
from deltaw.types import Pair

NAME = "model.layers.0.mlp.up_proj.weight"
M, N = 80, 208  # no block is whole at the edges
LAYOUTS = {
    "block": ((-(-M // 32), -(-N // 32)), (32, 32), "_scale_inv"),
    "row": ((M, 1), (1, N), "_scale"),
    "tensor": ((1,), (M, N), "_scale"),
    "bare row": ((M,), (1, N), "_scale"),
}
CONFIG = Document({"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}})
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, params=["torch", "compiled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways have to pass every test here; the general one may not be what answers for the other."""
    if request.param == "compiled":
        monkeypatch.setattr(sums_of_entries, "COMPILED_FROM", 0)
        monkeypatch.setattr(cells, "with_cells", None)
    return str(request.param)


class Side:
    """Codes of a layout, and by plain loops what they stand for and how far they may be off."""

    def __init__(self, dtype: torch.dtype, layout: str, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        shape, self.block, self.suffix = LAYOUTS[layout]
        whole = dtype == torch.int8
        most = 127 if whole else torch.finfo(dtype).max
        self.x = torch.randn(M, N, generator=g).clamp(-3, 3) / 3
        self.q = (self.x * most).round().to(dtype) if whole else (self.x * most).to(dtype)
        self.scale = (torch.rand(shape, generator=g) + 0.5) * 0.01 / most

    def handle(self) -> QuantisedHandle:
        stored = tensor_handles({NAME: self.q, NAME + self.suffix: self.scale})
        found = without_codes(Checkpoint("x", "memory", stored, CONFIG)).tensors[NAME]
        assert isinstance(found, QuantisedHandle)
        return found

    def each(self) -> np.ndarray:
        height, width = self.block
        scale = self.scale.double().reshape(-(-M // height), -(-N // width)).numpy()
        return np.array([[scale[i // height, j // width] for j in range(N)] for i in range(M)])

    def weight(self) -> np.ndarray:
        return self.q.double().numpy() * self.each()

    def variance(self) -> np.ndarray:
        if self.q.dtype == torch.int8:
            return self.each() ** 2 / 12
        fraction = {torch.float8_e4m3fn: 3, torch.float8_e5m2: 2}[self.q.dtype]
        least = float(torch.finfo(self.q.dtype).smallest_normal)
        exponent = np.floor(np.log2(np.maximum(np.abs(self.q.double().numpy()), least)))
        return (2.0 ** (exponent - fraction) * self.each()) ** 2 / 12

    def moved(self, size: float, seed: int) -> "Side":
        """The same scales with other codes."""
        other = copy.copy(self)
        noise = size * torch.randn(M, N, generator=torch.Generator().manual_seed(seed))
        most = 127 if self.q.dtype == torch.int8 else torch.finfo(self.q.dtype).max
        x = (self.x + noise).clamp(-1, 1) * most
        other.q = (x.round() if self.q.dtype == torch.int8 else x).to(self.q.dtype)
        return other


def measured(old: Side, new: Side) -> Delta:
    return difference(Pair(NAME, old.handle(), new.handle()), CPU)


def right(old: Side, new: Side) -> int:
    """All sums against plain ones; returns how many entries were clipped."""
    found = measured(old, new)
    a, b = old.weight(), new.weight()
    d, v = b - a, old.variance() + new.variance()
    v[~(d != 0).any(1)] = 0
    top = 127 if new.q.dtype == torch.int8 else float(torch.finfo(new.q.dtype).max)
    q = new.q.double().numpy()
    out = (np.abs(q) >= top) & (q * d < 0) & (d * d > 3 * v)
    out &= v.sum() < cells.ALL_OF_IT * (d * d).sum()
    v = np.where(out, d * d, v)
    sums, value = found.sums, found.value
    assert isinstance(value, torch.Tensor)
    assert (found.route, value.dtype) == ("dense", torch.float32)
    np.testing.assert_allclose(value.double().numpy(), d, rtol=1e-6, atol=2e-7 * np.abs(a).max())
    np.testing.assert_allclose(sums.delta_row_sq, (d * d).sum(1), rtol=1e-5)
    assert sums.base_row_sq is not None
    assert sums.delta_base_row is not None
    np.testing.assert_allclose(sums.base_row_sq, (a * a).sum(1), rtol=1e-6)
    np.testing.assert_allclose(sums.delta_base_row, (d * a).sum(1), rtol=1e-5, atol=1e-6 * (a * a).sum(1).max())
    np.testing.assert_allclose(sums.noise_row, v.sum(1), rtol=1e-5)
    np.testing.assert_allclose(sums.noise_col, v.sum(0), rtol=1e-5)
    steps, counts = histogram(np.sqrt(12 * v[v > 0]))
    np.testing.assert_allclose(sums.noise_steps, steps)
    np.testing.assert_allclose(sums.noise_counts, counts, atol=2)  # one may lie between two bins
    assert sums.max_abs == pytest.approx(np.abs(d).max(), rel=1e-6)
    assert sums.equal == int((a.astype(np.float32).view(np.uint32) == b.astype(np.float32).view(np.uint32)).sum())
    assert sums.clipped == int(out.sum())
    assert (sums.base_precision, sums.ft_precision) == (old.handle().dtype, new.handle().dtype)
    assert found.base is not None
    np.testing.assert_allclose(found.base.double().numpy(), a, rtol=1e-7)
    return int(out.sum())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8], ids=str)
def test_every_layout(dtype: torch.dtype, layout: str):
    old = Side(dtype, layout, 1)
    new = old.moved(0.05, 2)
    new.scale = 1.1 * new.scale
    right(old, new)


@pytest.mark.parametrize(("was", "now"), [("block", "row"), ("row", "block"), ("tensor", "block")])
def test_sides_of_two_formats(was: str, now: str):
    right(Side(torch.float8_e4m3fn, was, 1), Side(torch.float8_e4m3fn, now, 1))
    right(Side(torch.int8, "row", 1), Side(torch.float8_e5m2, now, 1))


def test_rows_that_did_not_move_hold_no_rounding():
    old = Side(torch.float8_e4m3fn, "block", 1)
    new = old.moved(0.05, 2)
    new.q[3:40] = old.q[3:40]
    right(old, new)
    assert not measured(old, new).sums.noise_row[3:40].any()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
def test_what_was_clipped_counts_whole(dtype: torch.dtype):
    old = Side(dtype, "row", 1)
    old.x = 1.5 * old.x
    old = old.moved(0.0, 2)
    new = copy.copy(old)
    new.scale = 0.5 * old.scale
    assert right(old, new) > M


def test_zeros_of_both_signs_are_not_equal_and_do_not_move():
    old = Side(torch.float8_e4m3fn, "block", 1)
    new = old.moved(0.0, 2)
    old.q[:, :9], new.q[:, :9] = 0.0, -0.0
    new.q[5, 50] = -old.q[5, 50].float()
    found = measured(old, new).sums
    assert found.equal == M * N - 9 * M - 1
    assert np.flatnonzero(found.noise_row).tolist() == [5]


def test_equal_codes_are_unchanged_and_damaged_ones_are_refused():
    old = Side(torch.float8_e4m3fn, "block", 1)
    assert measured(old, old).route == "unchanged"
    new = old.moved(0.05, 2)
    new.q.view(torch.uint8)[4, 7] = 0x7F
    with pytest.raises(NotFiniteError, match=r"fine-tuned: 1 NaN and 0 infinite of 16640 entries, first at \(4, 7\)"):
        measured(old, new)
