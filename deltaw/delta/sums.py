"""One pass over the entries of W0 and W, in blocks of rows, to the sums that size, precision and regularisation need.

The pass also leaves ΔW, subtracted after the upcast, so that the two large arrays are read once. All sums run in
float64, block by block, and are vectors of one number per row or column. On a CPU one compiled sweep adds up what was
stored (`compiled`). On a GPU, for smaller tensors, and for what an adapter computes, torch does: the sums by row are
the inner products of Δ, W0 and the units in the first place of W with each other, found in one batched product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod
from typing import NoReturn

import torch
from torch import Tensor

from deltaw.delta.compiled import BASE, CHANGE, NOISE, PRODUCT, BlockSums, block_sums, row_squares
from deltaw.delta.entry_sums import EntrySums
from deltaw.delta.largest_entry import largest_product
from deltaw.delta.rounding import Rounding, rounding
from deltaw.errors import NotFiniteError, TensorError
from deltaw.tensors.bits import STORED, Precision, count_equal, ufp, within_ulp
from deltaw.tensors.memory import empty
from deltaw.tensors.numbers import StoredNumbers, finest, numbers
from deltaw.types import Factors, Vector

# Entries of a block. Of operations of torch on a CPU: few enough to stay in the last cache. Of the compiled sweep:
# enough for all threads. On a GPU: enough to fill it, and no more memory than that takes (11008×4096 from the CPU's
# memory, H100: 13.6, 11.8, 10.2, 8.9, 10.3 ms at 2²¹ … 2²⁵, with 70, 170, 340, 670, 1200 MB beside ΔW).
CPU_BLOCK = 1 << 18
COMPILED_BLOCK = 1 << 23
# Entries of a tensor, a 4096²: loading what was compiled takes .8 seconds of a run, the sweep of 150 million entries.
COMPILED_FROM = 1 << 24
GPU_BLOCK = 1 << 22

LARGEST_FACTOR = 1e140  # of the entries of B and A: their squares, and sums of those, stay within float64


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of the subtraction: float64 where a side is float32 or wider, float32 otherwise.

    Args:
        dtypes: Of the sides that are stored as numbers. Codes are coarser than float32, whatever their scales are.
    """
    return torch.float64 if any(d in (torch.float32, torch.float64) for d in dtypes) else torch.float32


def sweep(
    base: Tensor,
    ft: Tensor,
    *,
    device: torch.device | str = "cpu",
    keep: bool = True,
    block: int | None = None,
    known: tuple[StoredNumbers | None, StoredNumbers | None] = (None, None),
) -> tuple[Tensor | None, EntrySums]:
    """ΔW = W − W0 and the sums over its entries, in one pass.

    Args:
        base: W0 as stored, (m, n), possibly a transposed view; or 1-D.
        ft: W as stored, of the same shape.
        device: Where to compute; blocks are moved there one at a time.
        keep: Whether to return ΔW.
        block: Entries per block; default by device.
        known: The numbers of W0 and of W where a format says what they are; where W's are, its rounding is not guessed.

    Returns:
        ΔW on `device`, (m, n), contiguous, of `compute_dtype`, or None; and the sums.

    Raises:
        NotFiniteError: An entry of a side is not finite.
    """
    assert base.shape == ft.shape, (base.shape, ft.shape)
    w0, w = _matrix(base), _matrix(ft)
    where = _sums_device(device)
    dtype = compute_dtype(*(x.dtype for x, codes in zip((base, ft), known, strict=True) if codes is None))
    delta = empty(w.shape, dtype, where) if keep else None
    was, now = known[0] or numbers(base), known[1] or numbers(ft)
    sums = _Accumulator(w.shape, where, precision=now.precision)
    sums.within_ulp = True
    compiled = where.type == "cpu" and w.numel() >= COMPILED_FROM
    for rows in _blocks(w.shape, where, block or (COMPILED_BLOCK if compiled else None)):
        old, new = _moved(w0[rows], where), _moved(w[rows], where)
        d = torch.empty(new.shape, dtype=dtype, device=where) if delta is None else delta[rows]
        if compiled:
            sums.put(rows, block_sums(old, new, d, now.precision))
        else:
            d.copy_(new).sub_(old if old.itemsize > 1 else old.to(dtype))  # float8 is not promoted
            sums.add(rows, d, old, new)
            sums.equal += count_equal(old, new)
        # one large move settles it, and is found in the first row of nearly every update
        sums.within_ulp = (
            sums.within_ulp
            and within_ulp(d[:1], old[:1], new[:1], was.precision, now.precision)
            and within_ulp(d, old, new, was.precision, now.precision)
        )
    if not sums.finite():
        _refuse(base, ft)
    if delta is not None:
        delta = delta.reshape(ft.shape).to(device)
    found = replace(sums.result(), was=was, now=now)
    if ft.ndim < 2 or known[1] is not None:  # it has no spectrum that its rounding could hide in
        return delta, found
    noise = rounding(base, ft, was, now, row=found.noise_row, col=found.noise_col, moved_row=found.delta_row_sq)
    return delta, _with(found, noise, was.precision.fraction > now.precision.fraction)


def _with(sums: EntrySums, noise: Rounding, finer: bool) -> EntrySums:
    # From a base of more bits no entry moved by more than an ulp: that is a rounding, to nearest or not, and no more.
    known, size = float(noise.row.sum()), float(sums.delta_row_sq.sum())
    all_of_it = size / known if finer and sums.within_ulp and 0 < known < size else 1.0
    return replace(
        sums,
        noise_row=noise.row * all_of_it,
        noise_col=noise.col * all_of_it,
        noise_steps=noise.steps,
        noise_counts=noise.counts,
        equal_null=noise.equal_null * sums.rows * sums.cols,
        base_noise=noise.base,
    )


def sweep_update(base: Tensor | None, delta: Tensor, *, block: int | None = None) -> EntrySums:
    """The sums for a dense ΔW that an adapter computed: W was never stored, so there is no rounding.

    Args:
        base: W0 as stored, (m, n) or 1-D; None where there is none.
        delta: ΔW, of the same shape.
        block: Entries per block; default by device.

    Raises:
        TensorError: An entry of W0 or of ΔW is not finite.
    """
    assert base is None or base.shape == delta.shape, (base, delta.shape)
    d_all, where = _matrix(delta), _sums_device(delta.device)
    sums = _Accumulator(d_all.shape, where, has_base=base is not None)
    for rows in _blocks(d_all.shape, where, block):
        d = _moved(d_all[rows], where)
        sums.add(rows, d, None if base is None else _moved(_matrix(base)[rows], where))
        sums.equal += int(d.numel() - torch.count_nonzero(d))
    if not sums.finite():
        _refuse(base, delta)
    return replace(sums.result(), was=None if base is None else numbers(base))


def unchanged_sums(base: Tensor, *, device: torch.device | str = "cpu", block: int | None = None) -> EntrySums:
    """The sums for a tensor that is bit-identical on both sides: only the base's norms are left to find.

    A mask of −inf, or a head of NaN, that is the same on both sides has not changed; it has no norm, and no sums with
    the base.

    Args:
        base: W0 as stored, (m, n) or 1-D.
        device: Where to compute.
        block: Entries per block; default by device.
    """
    w0, where = _matrix(base), _sums_device(device)
    sums = _Accumulator(w0.shape, where)
    for rows in _blocks(w0.shape, where, block):
        sums.base_row_sq[rows] = _row_squares(_moved(w0[rows], where))
    sums.equal = w0.numel()
    if not sums.finite():
        return replace(sums.result(), base_row_sq=None, delta_base_row=None)
    same = numbers(base)
    return replace(sums.result(), was=same, now=same)


def sweep_factors(
    factors: Factors,
    read: Callable[[slice], Tensor] | None = None,
    *,
    transposed: bool = False,
    block: int | None = None,
) -> EntrySums:
    """The sums for ΔW = B·A, without forming it: O((m + n)·r) memory beside one block of W0.

    Args:
        factors: B (m, r) with the scaling folded in, and A (r, n).
        read: Reads rows of W0 as stored (2-D); None where there is no base.
        transposed: Whether W0 is stored inputs × outputs, so that `read` yields columns of the m×n matrix.
        block: Entries of W0 per block.

    Returns:
        The sums; `equal` counts the entries that are structurally zero (a zero row of B or a zero column of A), and
        the noise is zero, since W was never stored.

    Raises:
        NotFiniteError: An entry of W0 or of a factor is not finite.
        TensorError: A factor is so large or so small that its squares leave float64.
    """
    B, A = factors.B.double(), factors.A.double()
    (m, _), (_, n) = B.shape, A.shape
    if not (torch.isfinite(B).all() and torch.isfinite(A).all()):
        raise NotFiniteError("not finite: the adapter's factors; look for a diverged or damaged adapter")
    for name, factor in (("B", B), ("A", A)):
        peak = float(factor.abs().max()) if factor.numel() else 0.0
        if peak and not 1 / LARGEST_FACTOR <= peak <= LARGEST_FACTOR:
            raise TensorError(
                f"the largest entry of the adapter's factor {name} is {peak:.3g} with its scaling; expected at most "
                f"{LARGEST_FACTOR:.0e} and at least {1 / LARGEST_FACTOR:.0e}: look for a diverged or damaged adapter"
            )
    sums = _Accumulator((m, n), B.device, has_base=read is not None)
    # ‖b_i A‖² = ‖b_i Rᵀ‖² with Aᵀ = QR: a Gram matrix would square the condition of A
    spread = B @ torch.linalg.qr(A.T, mode="r").R.T
    sums.delta_row_sq = torch.linalg.vecdot(spread, spread)
    del spread  # as large as a factor
    sums.largest = torch.tensor(largest_product(B, A), dtype=torch.float64)
    touched_rows, touched_cols = int(B.any(dim=1).sum()), int(A.any(dim=0).sum())
    sums.equal = m * n - touched_rows * touched_cols
    if read is not None:
        _add_base(sums, B, A, read, transposed, block)
    if not sums.finite():
        raise NotFiniteError("not finite: entries of the base, or of the product of the adapter's factors")
    return replace(sums.result(), was=sums.base_numbers)


class _Accumulator:
    """The growing sums, on the device of the computation."""

    def __init__(
        self,
        shape: Sequence[int],
        device: torch.device,
        has_base: bool = True,
        precision: Precision = STORED[torch.float64],
    ) -> None:
        def zeros(n: int) -> Tensor:
            return torch.zeros(n, dtype=torch.float64, device=device)

        rows, cols = self.shape = shape[0], shape[1]
        self.has_base, self.precision = has_base, precision
        self.equal = 0
        self.within_ulp = False
        self.base_numbers: StoredNumbers | None = None
        self.largest = zeros(1)
        self.delta_row_sq, self.base_row_sq, self.delta_base_row = zeros(rows), zeros(rows), zeros(rows)
        self.noise_row, self.noise_col = zeros(rows), zeros(cols)
        self._buffer = zeros(0)

    def add(self, rows: slice, delta: Tensor, base: Tensor | None, stored: Tensor | None = None) -> None:
        """Add a block of rows of ΔW, of W0, and of W where it was stored and so was rounded."""
        if not delta.numel():
            return
        low, high = torch.aminmax(delta)
        self.largest = torch.maximum(self.largest, torch.maximum(-low, high))
        parts = self._parts(delta, base, None if stored is None else ufp(stored, self.precision.smallest))
        products = torch.bmm(parts, parts.mT) if parts.shape[-1] > 1 else parts * parts.mT
        self.delta_row_sq[rows] = products[:, 0, 0]
        if base is not None:
            self.base_row_sq[rows], self.delta_base_row[rows] = products[:, 1, 1], products[:, 0, 1]
        if stored is not None:
            scale, moved = self.precision.variance_scale, products[:, 0, 0] > 0
            self.noise_row[rows] = products[:, -1, -1] * moved * scale
            squares = parts[:, -1].square_()
            if not moved.all():  # a row with the same numbers on both sides was not rounded
                squares = squares[moved]
            self.noise_col.add_(squares.sum(0), alpha=scale)

    def put(self, rows: slice, found: BlockSums) -> None:
        """Put in what the compiled sweep found in a block of rows."""
        by_row, cols = torch.from_numpy(found.rows), torch.from_numpy(found.cols)
        scale = self.precision.variance_scale
        self.largest = torch.maximum(self.largest, torch.tensor(found.largest, dtype=torch.float64))
        self.delta_row_sq[rows], self.base_row_sq[rows] = by_row[:, CHANGE], by_row[:, BASE]
        self.delta_base_row[rows], self.noise_row[rows] = by_row[:, PRODUCT], by_row[:, NOISE] * scale
        self.noise_col.add_(cols, alpha=scale)
        self.equal += found.equal

    def _parts(self, *parts: Tensor | None) -> Tensor:
        """The parts that there are, row by row side by side in float64: (rows, parts, cols), in memory kept for it."""
        there = [part for part in parts if part is not None]
        shape = (len(there[0]), len(there), self.shape[1])
        if self._buffer.numel() < prod(shape):
            self._buffer = empty((prod(shape),), torch.float64, self._buffer.device)
        out = self._buffer[: prod(shape)].view(shape)
        for i, part in enumerate(there):
            out[:, i].copy_(part)
        return out

    def finite(self) -> bool:
        """Whether all sums are finite, which they are only if every entry is."""
        return bool(torch.isfinite(self.delta_row_sq.sum() + self.base_row_sq.sum() + self.noise_row.sum()))

    def result(self) -> EntrySums:
        def vector(x: Tensor) -> Vector:
            out: Vector = x.cpu().numpy()
            return out

        return EntrySums(
            *self.shape,
            float(self.largest),
            self.equal,
            vector(self.delta_row_sq),
            vector(self.base_row_sq) if self.has_base else None,
            vector(self.delta_base_row) if self.has_base else None,
            vector(self.noise_row),
            vector(self.noise_col),
            self.within_ulp,
        )


def _add_base(
    sums: _Accumulator, B: Tensor, A: Tensor, read: Callable[[slice], Tensor], transposed: bool, block: int | None
) -> None:
    """Add Σ_j W0² and Σ_j Δ·W0 = b_i·(W0 Aᵀ)_i, reading W0 once in blocks of its stored rows."""
    m, n = sums.shape
    stored = torch.Size((n, m) if transposed else (m, n))
    for part in _blocks(stored, B.device, block):
        block_read = read(part)
        sums.base_numbers = finest(sums.base_numbers, block_read)
        stored_rows = _moved(block_read, B.device)
        w0 = stored_rows.double()
        if transposed:  # w0 holds columns `part` of the matrix, as rows
            sums.base_row_sq += (w0 * w0).sum(0)
            sums.delta_base_row += torch.linalg.vecdot(B, w0.T @ A[:, part].T)
        else:
            sums.base_row_sq[part] = _row_squares(stored_rows)
            sums.delta_base_row[part] = torch.linalg.vecdot(B[part], w0 @ A.T)


def _row_squares(x: Tensor) -> Tensor:
    if x.device.type == "cpu" and x.numel() >= COMPILED_FROM:
        return torch.from_numpy(row_squares(x))
    wide = x.double()
    squares: Tensor = torch.linalg.vecdot(wide, wide)
    return squares


def _matrix(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else x.reshape(-1, 1)


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """On the device, row by row: a transposed view is gathered once, and not by every sum.

    To a GPU it goes by way of pinned memory, from which it is copied while the GPU computes on another stream.
    """
    x = x.contiguous()
    if device.type == "cuda" and not x.is_cuda:
        with suppress(RuntimeError):  # the system may lock no more memory: then the copy waits, and is the same
            x = x.pin_memory()
        return x.to(device, non_blocking=x.is_pinned())
    return x.to(device)


def _sums_device(device: torch.device | str) -> torch.device:
    """Where the sums run: MPS has no float64, and a pass over the entries is cheap enough for the CPU."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def _blocks(shape: torch.Size, device: torch.device, block: int | None) -> Iterator[slice]:
    rows, cols = shape
    # a row has nine products, however short it is
    step = max(1, (block or (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK)) // max(9, cols))
    return (slice(i, min(rows, i + step)) for i in range(0, rows, step))


def _refuse(base: Tensor | None, ft: Tensor) -> NoReturn:
    """Say what is wrong with a tensor whose sums are not finite.

    Raises:
        NotFiniteError: An entry is not.
        TensorError: All are, and their squares overflow.
    """
    found = []
    for side, x in (("base", base), ("fine-tuned", ft)):
        if x is None:
            continue
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        bad = ~torch.isfinite(wide)
        if bad.any():
            where = tuple(torch.nonzero(bad)[0].tolist())
            nan = int(torch.isnan(wide).sum())
            found.append(
                f"{side}: {nan} NaN and {int(bad.sum()) - nan} infinite of {x.numel()} entries, first at {where}"
            )
    if not found:
        raise TensorError(
            "entries are so large that their squares overflow float64; rescale the checkpoint to measure this tensor"
        )
    what = "; ".join(found)
    raise NotFiniteError(f"not finite: {what}; expected finite weights, look for a diverged or damaged checkpoint")
