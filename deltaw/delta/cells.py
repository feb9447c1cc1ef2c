"""The rounding of quantised weights: the variance inside the cell of every code, known from the format.

A checkpoint that is stored as codes says how far each of its numbers may be from what was rounded. Where the fine-tuned
side is quantised, ΔW holds its rounding; where both are, it holds both. A quantised base alone is taken as it is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from deltaw.checkpoints import QuantisedHandle
from deltaw.delta.rounding import histogram
from deltaw.delta.sums import EntrySums
from deltaw.tensors.bits import STORED
from deltaw.tensors.matrix import matrix
from deltaw.tensors.numbers import Grid, Numbers
from deltaw.tensors.slices import Slice
from deltaw.types import Handle, View

SAMPLE = 1 << 18  # entries whose steps are counted


def cells(handle: Handle) -> Handle | None:
    """A tensor of the variances of another's rounding; None where that one is not stored as codes."""
    if isinstance(handle, QuantisedHandle):
        return handle.cells
    if isinstance(handle, Slice) and (inner := cells(handle.handle)) is not None:
        return replace(handle, handle=inner)
    return None


def coded(handle: Handle) -> Numbers | None:
    """What is known of a quantised tensor's numbers without looking at them; None where it is none."""
    if cells(handle) is None:
        return None
    return Numbers(STORED[torch.float32], handle.dtype, Grid("codes", (0, 0)))


def with_cells(sums: EntrySums, base: Handle, ft: Handle, view: View) -> EntrySums:
    """The sums with the rounding that the formats of both sides left in ΔW, in place of what was guessed from W.

    Args:
        sums: Those of W − W0.
        base, ft: Both sides.
        view: The matrix that is looked at.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    own, other = cells(ft), cells(base)
    if own is None:
        return sums
    variance = matrix(own, view)
    if other is not None:
        variance = variance + matrix(other, view)
    if variance.ndim < 2:
        return sums
    if bool(variance.isnan().any()):
        return _unknown(sums)
    variance = variance * torch.from_numpy(sums.delta_row_sq > 0)[:, None]  # equal rows hold none of it
    every = max(1, variance.numel() // SAMPLE)
    sample = variance.flatten()[::every]
    steps, counts = histogram((sample[sample > 0] * 12).sqrt_().numpy())
    return replace(
        sums,
        noise_row=variance.sum(1).numpy(),
        noise_col=variance.sum(0).numpy(),
        noise_steps=steps,
        noise_counts=counts * (variance.numel() / len(sample)),
        equal_null=np.nan,
        base_noise=0.0,
        within_ulp=False,
    )


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
