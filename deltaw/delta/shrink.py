"""What tells a uniform shrink of W0 from all else that makes ⟨ΔW, W0⟩ negative, read from a sample of the rows.

It is only asked of tensors whose c is large enough, and 262 144 entries answer it: no pass over the matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.delta.difference import Delta
from deltaw.metrics.regularisation import decayed_rows
from deltaw.metrics.shrink_marks import ShrinkMarks
from deltaw.metrics.uniformity import UNCHANGED, are_witnesses, is_shrink
from deltaw.tensors.bits import rounded, ulp
from deltaw.tensors.numbers import StoredNumbers

SAMPLE = 1 << 18  # entries
FEWEST = 16  # rows
BLOCK = 256  # rows and columns of which the learnt directions are taken out
LEARNT = 4  # a quarter of them
OUTWEIGHS = 1.5  # times the shrink: beyond, the rest is no few directions, and taking out the largest helps no more
COUNTED = 1 << 15  # entries that are sorted: for the quartiles, and to count different values
LINES = 11  # rows and columns of the sample in which different values are counted
QUARTERS = 4


@dataclass(frozen=True)
class ShrinkageMarks:
    """The marks of a matrix whose c is large enough, and of its rows that moved straight towards zero; else None."""

    whole: ShrinkMarks | None = None
    rows: ShrinkMarks | None = None


def shrinks(delta: Delta) -> ShrinkageMarks:
    """Look at a matrix that seems to have shrunk, or at such rows of it.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    sums = delta.sums
    if delta.base is None or not isinstance(delta.value, Tensor) or sums.base_row_sq is None:
        return ShrinkageMarks()  # factors are thin: their product is no multiple of a whole W0
    assert sums.delta_base_row is not None
    entries, base_sq = sums.rows * sums.cols, float(sums.base_row_sq.sum())
    if not base_sq:
        return ShrinkageMarks()
    change = math.sqrt(float(sums.delta_row_sq.sum()) / base_sq)
    moved = sums.equal < UNCHANGED * entries
    whole = moved and is_shrink(-float(sums.delta_base_row.sum()) / base_sq, change, entries)
    straight = np.flatnonzero(decayed_rows(sums.delta_row_sq, sums.base_row_sq, sums.delta_base_row))
    witnesses = are_witnesses(len(straight) / sums.rows, sums.rows, sums.cols)
    if not (whole or witnesses):
        return ShrinkageMarks()
    stored = None if sums.was is None or sums.now is None else (sums.was, sums.now)
    return ShrinkageMarks(
        shrink_marks(delta.base, delta.value, stored) if whole else None,
        shrink_marks(delta.base, delta.value, stored, straight) if witnesses else None,
    )


def shrink_marks(
    base: Tensor,
    delta: Tensor,
    stored: tuple[StoredNumbers, StoredNumbers] | None = None,
    rows: NDArray[np.intp] | None = None,
) -> ShrinkMarks:
    """Compare c between small and large entries, rows and columns, and look for a coarser grid.

    Args:
        base: W0 as stored, (m, n).
        delta: ΔW, (m, n).
        stored: The precision of the numbers of W0 and of W; None where W was never stored.
        rows: Which rows to look at, (≤ m,) indices; default all.
    """
    chosen = _sample(base.shape, rows)
    w0 = base[chosen].to("cpu", torch.float64)
    d = delta[chosen.to(delta.device)].to("cpu", torch.float64)
    product, square = d * w0, w0 * w0
    total = float(square.sum())
    c = -float(product.sum()) / total
    rest = d + c * w0
    bulk = _bulk(w0, d, rest) if float(rest.norm()) < OUTWEIGHS * abs(c) * math.sqrt(total) else math.nan
    error = (rest * w0).square_()  # of c, were the rest random: Σ(R·W0)² over (ΣW0²)²
    size = w0.abs()
    quarter = sum(((size > limit).long() for limit in _quartiles(size)), torch.zeros(1, dtype=torch.long))
    sums = [_by_quarter(x, quarter) for x in (product, square, error, rest.square_())]
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes, sd, remains = -sums[0] / sums[1], np.sqrt(sums[2]) / sums[1], sums[3] / (c * c * sums[1])
    known = sums[1] > 0  # a quarter of zeros has no c
    values = _Values() if stored is None else _values(w0, d, *stored)
    return ShrinkMarks(
        c=c,
        bulk=bulk,
        sizes=np.where(known, sizes, c),
        sizes_sd=np.where(known, sd, 0.0),
        between_rows=_between(product.sum(1), square.sum(1), error.sum(1)),
        between_cols=_between(product.sum(0), square.sum(0), error.sum(0)),
        norms=_norms(square, (w0 + d).square_()),
        rest=np.where(known, remains, 0.0),
        base=sums[1] / np.maximum(1, np.bincount(quarter.flatten().numpy(), minlength=QUARTERS)),
        steps=values.steps,
        same_precision=values.same,
        values=values.left,
    )


def _sample(shape: torch.Size, rows: NDArray[np.intp] | None) -> Tensor:
    """Which rows are looked at: drawn, as every so-many-th one may be the same place in every head."""
    given = torch.arange(shape[0]) if rows is None else torch.from_numpy(rows)
    most = max(FEWEST, SAMPLE // shape[1])
    if len(given) <= most:
        return given
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(0))
    return given[order[:most].sort().values]


def _bulk(w0: Tensor, d: Tensor, rest: Tensor) -> float:
    """The shrink of what training left alone: c without the directions that hold most of the rest, on both sides.

    A gradient gives back to the directions that matter what decay takes from them, and so hides a part of c. Random
    rows and columns do: a block of a matrix of low rank has it, too.
    """
    chosen = torch.Generator().manual_seed(0)
    rows, cols = (torch.randperm(n, generator=chosen)[:BLOCK] for n in w0.shape)
    k = min(len(rows), len(cols)) // LEARNT
    if not k:
        return math.nan
    some = rest[rows][:, cols].float()
    u = torch.linalg.eigh(some @ some.T).eigenvectors[:, -k:]  # half the time of the SVD; both give the largest well
    v = torch.nn.functional.normalize(u.T @ some).double()
    u = u.double()
    old, moved = (x[rows][:, cols] for x in (w0, d))
    old, moved = (x - u @ (u.T @ x) for x in (old, moved))
    old, moved = (x - (x @ v.T) @ v for x in (old, moved))
    return -float((moved * old).sum() / old.square().sum())


def _quartiles(magnitudes: Tensor) -> list[float]:
    some = _some(magnitudes).numpy()
    places = [i * some.size // QUARTERS for i in range(1, QUARTERS)]
    return [float(x) for x in np.partition(some, places)[places]]


def _by_quarter(x: Tensor, quarter: Tensor) -> NDArray[np.float64]:
    counted = np.bincount(quarter.flatten().numpy(), weights=x.flatten().numpy(), minlength=QUARTERS)
    return np.asarray(counted, dtype=np.float64)


def _between(product: Tensor, square: Tensor, error: Tensor) -> float:
    """The spread of c between rows (or columns), beyond what the rest of the update would show at random."""
    there = square > 0
    if int(there.sum()) < 2:
        return 0.0
    c, noise = product[there] / square[there], error[there] / square[there] ** 2
    return math.sqrt(max(0.0, float(c.var() - noise.mean())))


def _norms(before: Tensor, after: Tensor) -> float:
    """How much more alike the norms of rows, or of columns, have become: relative spread over that of W0."""
    found = [1.0]
    for axis in (1, 0):
        old, new = before.sum(axis).sqrt(), after.sum(axis).sqrt()
        if len(old) > 1 and old.std() > 0 and new.mean() > 0:
            found.append(float((new.std() / new.mean()) / (old.std() / old.mean())))
    return min(found)


@dataclass(frozen=True)
class _Values:
    """Share of moves within an ulp; whether both sides have one precision; the share of different values left."""

    steps: float = math.nan
    same: bool = False
    left: float = math.nan


def _values(w0: Tensor, d: Tensor, was: StoredNumbers, now: StoredNumbers) -> _Values:
    w = w0 + d  # as stored, but for the rounding of the sum: it matters to those that are counted
    steps = float((d.abs() <= 1.01 * ulp(w, now.precision)).double().mean())
    if now.grid is not None and was.grid is None:
        return _Values(steps, left=0.0)
    ratios = [_different(_some(w)[None], now)[0] / _different(_some(w0)[None], now)[0]]
    for axis in (0, 1):
        lines = torch.linspace(0, w.shape[axis] - 1, min(LINES, w.shape[axis])).long()
        new, old = (_different(_some_of_each(x.index_select(axis, lines).movedim(axis, 0)), now) for x in (w, w0))
        ratios.append(np.median(new) / np.median(old))
    return _Values(steps, was.precision == now.precision, float(min(ratios)))


def _different(lines: Tensor, now: StoredNumbers) -> NDArray[np.int64]:
    """How many different values every line has once it is stored, for lines of (k, n)."""
    ordered = np.sort(rounded(lines, now.precision).numpy(), axis=1)
    different: NDArray[np.int64] = 1 + np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1)
    return different


def _some(x: Tensor) -> Tensor:
    return _some_of_each(x.flatten()[None])[0]


def _some_of_each(lines: Tensor) -> Tensor:
    return lines[:, :: 1 + lines.shape[1] // COUNTED]
