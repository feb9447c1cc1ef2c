"""The rounding in a ΔW, entry by entry: who was rounded, and by how much.

Storing a number costs up to half an ulp of the precision that the *numbers* have, v_ij = ulp²/12, or up to half a cell
of the quantisation grid that they lie on. Three things are known beyond that:

* A base with more bits than the fine-tuned weights was perhaps cast before training. Its error cast(W0) − W0 is known
  entry by entry: where ΔW holds it, its square is added.
* Rows and columns that hold the same numbers on both sides were not rounded again; nor were the other entries of an
  update that is sparse. An update that touched every entry leaves some where they were too, by its rounding: mostly the
  large ones, as their ulp is large. A sparse one leaves large and small alike.
* How many entries one rounding of such an update would leave where they were. Many more mean that it was not one.

Sources: Widrow & Kollár 2008 (quantisation noise); `deltaw.metrics.quantiser`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.metrics.quantiser import gaussian_rounding, moments
from deltaw.tensors.bits import STORED, Precision, rounded, ulp
from deltaw.tensors.numbers import Grid, StoredNumbers
from deltaw.types import Vector

SAMPLE, LARGE_SAMPLE = 1 << 14, 1 << 17  # entries of the sample that tells who was rounded; where most did not move
SAMPLE_ROWS = 32  # and at least so many rows
STRIP = 1 << 20  # entries that are looked at together where each has its own variance
PER_OCTAVE = 4  # bins of the steps
TRAINED = STORED[torch.bfloat16].fraction  # the coarsest format that weights are trained in
SPARSE, EVEN_SPARSE = 0.2, 0.4  # share of touched entries below which an update is sparse; where rows are alike
ALIKE = 0.25  # total variation between the moved entries' steps and those of a random choice of entries
UNEVEN = 2.0  # variance of the moved entries of a row or column, in units of that of a random choice
HELD = 0.5  # share of the base's own rounding that is found in ΔW: 0 or 1, or the update is smaller than it
FEWEST = 40  # moved entries of the sample that tell
DENSE = 0.5  # share of equal entries up to which nobody asks whether the update is sparse


@dataclass(frozen=True)
class Rounding:
    """What storing left in a ΔW.

    Attributes:
        row, col: Variances summed by row (m,) and by column (n,).
        steps, counts: The steps √(12·v) of the rounded entries, and how many there are of each.
        equal_null: The share of all entries that one rounding of such an update would leave as they were; NaN where
            the base was rounded too, or the numbers lie on a grid.
        base: Σ (cast(W0) − W0)², where the base's own rounding to the fine-tuned precision is in it; else 0.
    """

    row: Vector
    col: Vector
    steps: Vector
    counts: Vector
    equal_null: float = math.nan
    base: float = 0.0


class Sample(NamedTuple):
    """Whole rows of a pair.

    Attributes:
        delta: Their ΔW against what training started from, (r, n), float64.
        steps: √(12·v) of their entries.
        frozen: The columns in which none of them moved.
    """

    delta: NDArray[np.float64]
    steps: NDArray[np.float64]
    frozen: NDArray[np.bool_]


class Touched(NamedTuple):
    """How many entries an update touched, as a share, and the share of these that one rounding leaves alone."""

    share: float
    equal: float


def rounding(
    base: Tensor, ft: Tensor, was: StoredNumbers, now: StoredNumbers, *, row: Vector, col: Vector, moved_row: Vector
) -> Rounding:
    """The rounding in W − W0.

    Args:
        base, ft: W0 and W as stored, (m, n), on the CPU.
        was, now: The precision of their numbers.
        row, col: Σ ulp²/12 of W, by row and by column, without the rows that hold the same numbers on both sides.
        moved_row: Σ_j Δ², (m,).
    """
    rows = np.flatnonzero(moved_row)
    if not rows.size:
        return Rounding(row, col, np.zeros(0), np.zeros(0))
    finer = was.precision.fraction > now.precision.fraction >= TRAINED and now.grid is None
    cast = finer and _was_cast(base, ft, rows, now.precision)
    sample = _sample(base, ft, rows, now, cast, SAMPLE)
    if np.count_nonzero(sample.delta) < (1 - DENSE) * sample.delta.size:
        sample = _sample(base, ft, rows, now, cast, LARGE_SAMPLE)
    entries = sample.delta[:, ~sample.frozen]
    steps = sample.steps[:, ~sample.frozen]
    touched = _touched(entries, steps)
    sparse = touched.share < 1
    if cast or now.grid is not None or sparse:
        return _entry_by_entry(base, ft, now, cast, touched)
    if sample.frozen.any():
        row, col = _without_frozen(base, ft, now, np.flatnonzero(sample.frozen), row, col)
    kinds, counts = _octaves(steps)
    region = np.count_nonzero(row) * np.count_nonzero(col)
    equal = math.nan if finer else 1 - region / (len(row) * len(col)) * (1 - touched.equal)
    return Rounding(row, col, kinds, counts * (region / steps.size) if steps.size else counts, equal)


def _start(base: Tensor, precision: Precision, cast: bool) -> Tensor:
    """What training started from: the base, or the base in the precision of the fine-tuned weights."""
    return rounded(base, precision) if cast else base.double()


def _chosen(rows: NDArray[np.intp], cols: int, entries: int) -> Tensor:
    """Some of the rows, evenly spaced."""
    wanted = max(SAMPLE_ROWS, entries // cols)
    if wanted < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, wanted).astype(np.intp)]
    return torch.from_numpy(rows)


def _was_cast(base: Tensor, ft: Tensor, rows: NDArray[np.intp], precision: Precision) -> bool:
    """Whether ΔW holds the error of casting the base: its projection on it is then 1, and 0 if not."""
    chosen = _chosen(rows, ft.shape[1], LARGE_SAMPLE)
    old = base[chosen].double()
    error = rounded(old, precision) - old
    size = float(error.square().sum())
    return size > 0 and float((error * (ft[chosen].double() - old)).sum()) > HELD * size


def _sample(base: Tensor, ft: Tensor, rows: NDArray[np.intp], now: StoredNumbers, cast: bool, entries: int) -> Sample:
    chosen = _chosen(rows, ft.shape[1], entries)
    w = ft[chosen]
    delta = (w.double() - _start(base[chosen], now.precision, cast)).numpy()
    return Sample(delta, ulp(w, now.precision).numpy(), np.asarray(~delta.any(axis=0)))


def _touched(delta: NDArray[np.float64], steps: NDArray[np.float64]) -> Touched:
    """Which share of the entries an update touched: all, unless those that moved are few, and few everywhere alike."""
    if not delta.size:
        return Touched(1.0, 1.0)
    moved = delta != 0
    if moved.mean() < 1 - DENSE and np.count_nonzero(moved) >= FEWEST and (sparse := _sparse(delta, steps, moved)):
        return sparse
    rows = np.sqrt((delta**2).mean(axis=1, keepdims=True))  # rows and columns differ in how far they moved
    there = rows[:, 0] > 0
    if not there.any():
        return Touched(1.0, 1.0)
    relative = delta[there] / rows[there]
    cols = np.sqrt((relative**2).mean(axis=0))
    kinds, counts = histogram(steps[there] / (rows[there] * np.where(cols > 0, cols, 1.0)))
    return Touched(1.0, gaussian_rounding(kinds, counts, float(counts.sum())).unchanged)


def _sparse(delta: NDArray[np.float64], steps: NDArray[np.float64], moved: NDArray[np.bool_]) -> Touched | None:
    """The update that touched a random choice of entries and moved as many, with their energy; None if few steps do.

    Of a choice that does not look at the entries, as many move in every octave of their steps as the size of their
    update allows. Training whose every step is rounded, or an update far below the ulp, moves only the small ones.
    """
    octaves = np.frexp(steps)[1]
    first = int(octaves.min())
    bins = int(octaves.max()) - first + 1
    there = np.bincount((octaves - first).ravel(), minlength=bins).astype(np.float64)
    seen = np.bincount((octaves - first)[moved], minlength=bins).astype(np.float64)
    kinds: Vector = 2.0 ** (np.arange(bins, dtype=np.float64) + first - 1.0)
    here = there > 0
    wanted = float((delta**2).sum()) / float(seen.sum())
    low, high = math.log(float(kinds[0]) / 8), math.log(float(np.abs(delta).max()) + float(kinds[-1]))
    for _ in range(50):  # the energy of a moved entry rises with the size of the update
        middle = (low + high) / 2
        kept, _, unchanged = moments(kinds[here] / math.exp(middle))
        moving = float(there[here] @ (1 - unchanged))
        energy = float(there[here] @ (kinds[here] ** 2 * kept)) / moving if moving > 0 else 0.0
        low, high = (low, middle) if energy > wanted else (middle, high)
    _, _, unchanged = moments(kinds / math.exp((low + high) / 2))
    moving_in = there * (1 - unchanged)
    if not moving_in.sum() > 0:
        return None
    share = float(seen.sum() / moving_in.sum())
    unlike = np.abs(seen / seen.sum() - moving_in / moving_in.sum()).sum() / 2
    if unlike > ALIKE or share > (EVEN_SPARSE if _even(moved) else SPARSE):
        return None
    return Touched(share, 1 - float(moving_in.sum() / there.sum()))


def _even(moved: NDArray[np.bool_]) -> bool:
    """Whether rows and columns hold as many moved entries as a random choice gives them, and not some many more."""
    share = moved.mean()
    spread = [moved.sum(axis=i).var() / (moved.shape[i] * share * (1 - share)) for i in (0, 1)]
    return bool(max(spread) < UNEVEN)


def _without_frozen(
    base: Tensor, ft: Tensor, now: StoredNumbers, columns: NDArray[np.intp], row: Vector, col: Vector
) -> tuple[Vector, Vector]:
    """The sums without the columns, of some, that hold the same numbers on both sides."""
    where = torch.from_numpy(columns)
    old, new = base[:, where], ft[:, where]
    frozen = (old.double() == new.double()).all(dim=0)
    if not frozen.any():
        return row, col
    lost = ulp(new[:, frozen].contiguous(), now.precision).square_().sum(1).numpy() / 12
    row = np.maximum(0.0, row - lost) * (row > 0)  # rows that did not move hold none of it
    col = col.copy()
    col[columns[frozen.numpy()]] = 0.0
    return row, col


def _entry_by_entry(base: Tensor, ft: Tensor, now: StoredNumbers, cast: bool, touched: Touched) -> Rounding:
    """The rounding where entries have variances of their own. Grids lie in the order of the memory."""
    flip = ft.stride(-1) != 1
    old, new = (base.mT, ft.mT) if flip else (base, ft)
    m, n = new.shape
    strips = _strips(m, n, now.grid)
    rows, cols = _moved(old, new, strips, now.precision, cast)
    noise, known, seen = ((np.zeros(m), np.zeros(n)) for _ in range(3))
    bins: dict[float, float] = {}
    for strip in strips:
        start, w = _start(old[strip], now.precision, cast), new[strip].double()
        v = _stored(new[strip], now)
        if touched.share < 1:  # those that it touched and left alone are counted with those that moved
            v *= (w != start) / max(1 - touched.equal, 0.1)
        else:
            v *= torch.from_numpy(rows[strip, None] & cols)
        if cast:
            error = (start - old[strip].double()).square_()
            _add(known, strip, error)
            _add(seen, strip, (w - old[strip].double()).square_())
            v += error
        _add(noise, strip, v)
        for step, count in zip(*histogram(v[v > 0].mul_(12).sqrt_().numpy()), strict=True):
            bins[step] = bins.get(step, 0.0) + count
    row, col = noise
    if cast:  # where little was added to the cast base, the second rounding is less than an ulp's: all of it is seen
        row, col = (np.minimum(v, d) for v, d in zip(noise, seen, strict=True))
    kinds, counts = np.array(sorted(bins)), np.array([bins[step] for step in sorted(bins)])
    region = np.count_nonzero(rows) * np.count_nonzero(cols) * touched.share
    equal = math.nan if cast or now.grid is not None else 1 - region / (m * n) * (1 - touched.equal)
    return Rounding(*((col, row) if flip else (row, col)), kinds, counts, equal, float(known[0].sum()))


def _moved(
    old: Tensor, new: Tensor, strips: list[slice], precision: Precision, cast: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The rows and the columns in which an entry is not what training started from."""
    m, n = new.shape
    rows, cols = np.zeros(m, dtype=bool), np.zeros(n, dtype=bool)
    for strip in strips:
        moved = new[strip].double() != _start(old[strip], precision, cast)
        rows[strip] = moved.any(dim=1).numpy()
        cols |= moved.any(dim=0).numpy()
    return rows, cols


def _add(sums: tuple[Vector, Vector], strip: slice, values: Tensor) -> None:
    """Add a strip of entries to their sums by row and by column."""
    sums[0][strip] = values.sum(1).numpy()
    sums[1][:] += values.sum(0).numpy()


def _strips(m: int, n: int, grid: Grid | None) -> list[slice]:
    """Rows that are looked at together: whole groups of a grid."""
    if grid is not None and grid.shape == (0, 0):
        return [slice(0, m)]
    height = max(1, grid.shape[0]) if grid is not None else 1
    step = max(1, STRIP // max(1, n) // height) * height
    return [slice(i, min(m, i + step)) for i in range(0, m, step)]


def _stored(w: Tensor, now: StoredNumbers) -> Tensor:
    """The variance that storing left in every entry: that of a grid's cell, and of what a file made of the code."""
    own = ulp(w, now.precision).square_().div_(12)
    if now.grid is None:
        return own
    x = w.double()
    m, n = x.shape
    height, width = now.grid.shape[0] or m, now.grid.shape[1] or n
    if m % height or n % width:  # the last rows of a tensor that no whole block fills
        height, width = 1, n
    groups = x.view(m // height, height, n // width, width).transpose(1, 2).reshape(-1, height * width)
    found = _even_cells(groups, now.grid.near) if now.grid.kind == "even" else _code_cells(groups)
    return own.add_(found.view(m // height, n // width, height, width).transpose(1, 2).reshape(m, n))


def _even_cells(groups: Tensor, near: float) -> Tensor:
    """step²/12 for every entry of groups (g, entries); twice the step for the outermost ones, maybe clipped."""
    size = groups.abs()
    largest = size.amax(dim=1, keepdim=True)
    ordered = torch.nn.functional.pad(size, (1, 0)).sort(dim=1).values if near < 1 else groups.sort(dim=1).values
    gaps = ordered.diff(dim=1)
    # what bfloat16 made of one code is one number: every gap between two numbers is one between codes
    gaps = torch.where((gaps > 0) & (ordered[:, 1:].abs() <= near * largest), gaps, math.inf)
    step = gaps.amin(dim=1, keepdim=True)
    step = torch.where(step.isfinite(), step, near * largest)
    return (step * (1 + (size == largest).double())).square_().div_(12)


def _code_cells(groups: Tensor) -> Tensor:
    """(b³ − a³)/(3(b − a)) over the cell [a, b] of every entry's code, half way to the neighbours among its group."""
    ordered, order = groups.sort(dim=1)
    code = torch.nn.functional.pad((ordered.diff(dim=1) > 0).long().cumsum(dim=1), (1, 0))
    last = code[:, -1:]
    codes = torch.full((len(groups), int(last.max()) + 1), math.nan, dtype=torch.float64)
    codes.scatter_(1, code, ordered)
    gaps = codes.diff(dim=1)  # NaN behind a group's last code
    none = torch.full_like(codes[:, :1], math.nan)
    up, down = torch.cat([gaps, none], 1), torch.cat([none, gaps], 1)
    up, down = torch.where(up.isnan(), 2 * down, up), torch.where(down.isnan(), 2 * up, down)  # may have been clipped
    cells = ((up * up - up * down + down * down) / 12).nan_to_num_(0.0)
    return torch.empty_like(groups).scatter_(1, order, cells.gather(1, code))


def _octaves(steps: NDArray[np.float64]) -> tuple[Vector, Vector]:
    """`histogram` of steps that are powers of two, as those of floats are: it needs no logarithms."""
    bins, counts = _filled(np.frexp(steps)[1])
    return np.ldexp(1.0, bins - 1).astype(np.float64), counts


def histogram(steps: NDArray[np.float64]) -> tuple[Vector, Vector]:
    """The steps of many entries, in bins, and how many are in each."""
    bins, counts = _filled(np.rint(np.log2(steps) * PER_OCTAVE).astype(np.int64))
    return 2.0 ** (bins / PER_OCTAVE), counts


def _filled(bins: NDArray[np.signedinteger]) -> tuple[NDArray[np.int64], Vector]:
    """The bins that something lies in, ascending, and how much lies in each."""
    if not bins.size:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    first = int(bins.min())
    counts = np.bincount((bins - first).ravel())
    there = np.flatnonzero(counts)
    return there + first, counts[there].astype(np.float64)
