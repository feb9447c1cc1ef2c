"""The rounding of quantised weights: the variance inside the cell of every code, known from the format.

A checkpoint that is stored as codes says how far each of its numbers may be from what was rounded. Where the fine-tuned
side is quantised, ΔW holds its rounding; where both are, it holds both. A quantised base alone is taken as it is.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Literal

import numpy as np
import torch

from deltaw.checkpoints import QuantisedHandle
from deltaw.delta import sums as sums_of_entries
from deltaw.delta.compiled_codes import BASE, CHANGE, CLIPPED, PRODUCT, VARIANCE, code_sums, takes
from deltaw.delta.entry_sums import EntrySums
from deltaw.delta.rounding import histogram
from deltaw.delta.sums import compute_dtype
from deltaw.tensors.bits import STORED
from deltaw.tensors.matrix import matrix
from deltaw.tensors.memory import empty
from deltaw.tensors.numbers import Grid, StoredNumbers
from deltaw.tensors.slices import Slice
from deltaw.types import Handle, Pair, Vector, View

SAMPLE = 1 << 18  # entries whose steps are counted
ALL_OF_IT = 0.98  # share of ‖ΔW‖² that the cells explain, below which one asks what was clipped


def cells(handle: Handle) -> Handle | None:
    """A tensor of the squared widths of another's cells, over 12; None where that one is not stored as codes."""
    return _beside(handle, "variance")


def _beside(handle: Handle, what: Literal["variance", "noise", "ends"]) -> Handle | None:
    if isinstance(handle, QuantisedHandle):
        return handle.beside(what)
    if isinstance(handle, Slice) and (inner := _beside(handle.handle, what)) is not None:
        return replace(handle, handle=inner)
    return None


def coded(handle: Handle) -> StoredNumbers | None:
    """What is known of a quantised tensor's numbers without looking at them; None where it is none."""
    if cells(handle) is None:
        return None
    return StoredNumbers(STORED[torch.float32], handle.dtype, Grid("codes", (0, 0)))


def with_cells(sums: EntrySums, delta: torch.Tensor, base: Handle, ft: Handle, view: View) -> EntrySums:
    """The sums with the rounding that the formats of both sides left in ΔW, in place of what was guessed from W.

    Args:
        sums: Those of W − W0.
        delta: W − W0, (m, n).
        base, ft: Both sides.
        view: The matrix that is looked at.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    own, other = _beside(ft, "noise"), _beside(base, "noise")
    if own is None:
        return sums
    variance = matrix(own, view)
    if other is not None:
        variance.add_(matrix(other, view))
    if variance.ndim < 2:
        return sums
    row = variance.sum(1)
    if bool(row.isnan().any()):
        return _unknown(sums)
    still = torch.from_numpy(sums.delta_row_sq == 0)  # equal rows hold none of it
    variance[still], row[still] = 0, 0
    clipped = 0
    if float(row.sum()) < ALL_OF_IT * float(sums.delta_row_sq.sum()):
        where, squares = _clipped(variance, delta, ft, view)
        clipped, variance = int(where.sum()), torch.where(where, squares, variance)
        row = variance.sum(1)
    sample = variance.flatten()[:: _every(variance.numel())].numpy()
    return _with(sums, row.numpy(), variance.sum(0).numpy(), sample, clipped)


def difference_of_codes(pair: Pair) -> tuple[torch.Tensor, EntrySums] | None:
    """ΔW and the sums over its entries on a CPU, from the bytes of both sides; None where the general way has to go.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    base, ft = pair.base, pair.ft
    if not (isinstance(base, QuantisedHandle) and isinstance(ft, QuantisedHandle)):
        return None
    if replace(pair.view, part="") != View() or prod(ft.shape) < sums_of_entries.COMPILED_FROM:
        return None
    old, new = base.stored(), ft.stored()
    if old is None or new is None or not takes(old, new):
        return None
    if torch.equal(old.codes, new.codes) and torch.equal(old.scale, new.scale):
        return None
    m, n = new.codes.shape
    delta = empty((m, n), compute_dtype())
    found = code_sums(old, new, delta, _every(m * n))
    if found.equal == m * n or not np.isfinite(found.rows.sum()):
        return None
    sums = EntrySums(
        *(m, n, found.largest, found.equal),
        *(found.rows[:, CHANGE], found.rows[:, BASE], found.rows[:, PRODUCT]),
        *(found.rows[:, VARIANCE], found.cols[0]),
        was=coded(base),
        now=coded(ft),
    )
    row, col = sums.noise_row, sums.noise_col
    if row.sum() >= ALL_OF_IT * sums.delta_row_sq.sum():
        return delta, _with(sums, row, col, found.sample[0], 0)
    return delta, _with(sums, row + found.rows[:, CLIPPED], col + found.cols[1], found.sample[1], found.clipped)


def _every(entries: int) -> int:
    return max(1, entries // SAMPLE)


def _with(sums: EntrySums, row: Vector, col: Vector, sample: Vector, clipped: int) -> EntrySums:
    """The sums with a rounding: its variances by row and by column, and of a sample of the entries."""
    steps, counts = histogram(np.sqrt(12 * sample[sample > 0]))
    return replace(
        sums,
        noise_row=row,
        noise_col=col,
        noise_steps=steps,
        noise_counts=counts * (sums.rows * sums.cols / len(sample)),
        equal_null=np.nan,
        base_noise=0.0,
        within_ulp=False,
        clipped=clipped,
    )


def _clipped(variance: torch.Tensor, delta: torch.Tensor, ft: Handle, view: View) -> tuple[torch.Tensor, torch.Tensor]:
    """Where an outermost code lies further inward of W0 than its cell reaches, and Δ².

    There the weight was clipped: all of the change counts as rounding, for nothing tells an update from it.
    """
    ends = _beside(ft, "ends")
    assert ends is not None
    moved = delta.to("cpu", torch.float64)
    squares = moved * moved
    return (matrix(ends, view) * moved < 0) & (squares > 3 * variance), squares


def _unknown(sums: EntrySums) -> EntrySums:
    """The sums where a format does not tell how far its codes may be off: all of ΔW, in any direction, may be noise."""
    most = float(sums.delta_row_sq.sum())
    return replace(
        sums,
        noise_row=np.full(sums.rows, most),
        noise_col=np.full(sums.cols, most),
        noise_steps=np.zeros(0),
        noise_counts=np.zeros(0),
        equal_null=np.nan,
        base_noise=0.0,
        within_ulp=False,
    )
