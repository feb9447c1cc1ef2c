"""Which numbers a stored tensor holds: the precision of the numbers, not of the file.

The fewest fraction bits that hold every value exactly are one OR over the bits; native numbers show all of theirs
within a few entries, so the search ends there. What is left to see are the grids of quantisation that were
multiplied out: few distinct values in a group (4 bits and fewer), few among the small ones (integers), or few in
thousands (scaled float8).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.tensors.bits import FORMATS, STORED, Precision
from deltaw.tensors.codes import NF4

Floats = NDArray[np.float64]

FIRST_LOOK = 64  # entries of the first look at the bits; each further one takes eight times as many
ENOUGH = 1024  # entries that fewer than bfloat16's bits take to be evidence: round numbers have few bits, too
ROWS = 8  # of the sample in which a grid is looked for
GROUPS = (32, 64, 128)  # entries of one scale, along a row
FEW = 16  # codes of 4 bits; and the steps of an 8-bit grid up to an eighth of its largest
NEAR = 1 / 8
MAGNITUDES = 126  # of float8 e4m3 without zero, the finer of the two
BLOCK = (16, 128)  # a piece of a scaled block
SAME_CODE = 0.008  # of the largest: what bfloat16 may have moved a code


@dataclass(frozen=True)
class Grid:
    """A quantisation grid: every group of numbers holds a few codes times a scale.

    Attributes:
        kind: `even`: steps of one size (`near`: read from the small values); `codes`: any others.
        shape: Rows and columns of a group, in the order of the memory; 0 stands for all of them.
        near: Share of a group's largest magnitude up to which its steps are read.
    """

    kind: Literal["even", "codes"]
    shape: tuple[int, int]
    near: float = 1.0


@dataclass(frozen=True)
class StoredNumbers:
    """The precision of a tensor's numbers, and the quantisation grid that they lie on, if they do."""

    precision: Precision
    name: str
    grid: Grid | None = None


def numbers(w: Tensor) -> StoredNumbers:
    """The coarsest known format that holds every entry exactly.

    Args:
        w: A stored tensor, of any shape; a transposed view is looked at in the order of its memory.
    """
    if w.dtype not in FORMATS or not w.numel():
        name = str(w.dtype).removeprefix("torch.")
        return StoredNumbers(STORED.get(w.dtype, STORED[torch.float64]), name)
    x = w.detach()
    if x.ndim == 2 and x.stride(-1) != 1:
        x = x.mT
    precision = _precision(x)
    name, grid = _grid(x) if x.ndim == 2 and precision.fraction >= STORED[torch.bfloat16].fraction else ("", None)
    return StoredNumbers(precision, name or precision.name, grid)


def finest(so_far: StoredNumbers | None, w: Tensor) -> StoredNumbers:
    """The numbers of a tensor that is read in blocks of rows.

    Args:
        so_far: Those of the blocks before; None for the first.
        w: The next block.
    """
    if so_far is not None and so_far.grid is None and so_far.precision == STORED.get(w.dtype):
        return so_far  # nothing is finer
    found = numbers(w)
    if so_far is None or (found.grid is None, found.precision.fraction) > (
        so_far.grid is None,
        so_far.precision.fraction,
    ):
        return found
    return so_far


def _precision(x: Tensor) -> Precision:
    stored = STORED[x.dtype]
    fraction = _fraction(x)
    if fraction >= stored.fraction:
        return stored
    if fraction <= 3 and (scaled := _float8(x, fraction)):
        return scaled
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        found = STORED[dtype]
        if found.fraction < stored.fraction and fraction <= found.fraction and _holds(x, dtype):
            return found
    return stored


def _fraction(x: Tensor) -> int:
    """The fewest fraction bits that hold every entry; all that the dtype has as soon as one entry takes them."""
    # float16's subnormal numbers have their first bit somewhere in the fraction: float32 holds them as normal ones
    wide = FORMATS[torch.float32 if x.dtype == torch.float16 else x.dtype]
    seen, full = 0, 1 << (wide.fraction - STORED[x.dtype].fraction)
    mask = (1 << wide.fraction) - 1
    for piece in _pieces(x):
        bits = (piece.float() if x.dtype == torch.float16 else piece).view(wide.integer).cpu().numpy()
        seen |= int(np.bitwise_or.reduce(bits, axis=None)) & mask
        if seen & full:
            break
    return wide.fraction - ((seen & -seen).bit_length() - 1) if seen else 0


def _pieces(x: Tensor) -> Iterator[Tensor]:
    """The tensor in pieces that grow: where the first tells all, it costs nothing."""
    flat = x.reshape(-1) if x.is_contiguous() else x
    start, size = 0, FIRST_LOOK
    while start < len(flat):
        yield flat[start : start + size]
        start, size = start + size, 8 * size


def _holds(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a narrower dtype holds every entry, small and large ones too."""
    return torch.equal(x.to(dtype).to(x.dtype), x)


def _float8(x: Tensor, fraction: int) -> Precision | None:
    """float8 with a scale that is a power of two: 2 or 3 fraction bits and a short range, in many different numbers."""
    if x.numel() < ENOUGH:
        return None
    magnitudes = np.unique(x.double().abs().numpy())
    magnitudes = magnitudes[magnitudes > 0]
    if not 2 * FEW <= len(magnitudes) <= MAGNITUDES:
        return None
    found = STORED[torch.float8_e4m3fn if fraction == 3 else torch.float8_e5m2]
    largest = {3: 448.0, 2: 57344.0}.get(fraction)
    grain = float(np.min(_lowest_bit(magnitudes)))
    if largest is None or float(magnitudes[-1]) / grain > largest / (found.smallest * 2.0**-fraction):
        return None
    return Precision(found.name, fraction, grain * 2.0**fraction)


def _lowest_bit(x: Floats) -> Floats:
    """The value of the last bit that is set."""
    mantissa, exponent = np.frexp(x)
    whole = (mantissa * 2.0**53).astype(np.int64)
    last: Floats = np.ldexp((whole & -whole).astype(np.float64), exponent - 53)
    return last


def _grid(x: Tensor) -> tuple[str, Grid | None]:
    """The grid of quantisation that the numbers of a matrix lie on, and its name."""
    rows, cols = x.shape
    if rows * cols < ENOUGH or cols < GROUPS[0]:
        return "", None
    every = max(1, rows // ROWS)
    sample = x[::every][:ROWS].double().numpy()
    first = sample[0, : 2 * FEW]  # of every group that begins there: native numbers need no further look at groups
    sizes = () if _more_than(FEW, first[first != 0]) else (*reversed(GROUPS), *([cols] if cols > GROUPS[-1] else []))
    for size in sizes:
        if cols % size == 0 and (found := _few_codes(sample, size)):
            return found
    for size in (cols, GROUPS[-1]):
        if cols % size == 0 and _even_near_zero(sample.reshape(-1, size)):
            return "int8", Grid("even", (1, size), NEAR)
    shape = (1, 0) if _few_magnitudes(x[:1]) else BLOCK if _few_magnitudes(x[: BLOCK[0], : BLOCK[1]]) else None
    if shape == BLOCK and _few_magnitudes(x):
        shape = (0, 0)
    return ("float8_e4m3fn", Grid("codes", shape)) if shape else ("", None)


def _few_codes(sample: Floats, size: int) -> tuple[str, Grid] | None:
    """Whether every group of a row holds at most 16 codes, more than once each, and what codes they are."""
    known: list[Floats] = []
    for group in sample.reshape(-1, size):
        there = group[group != 0]
        if _more_than(FEW, there):
            return None
        codes = np.unique(there)
        if not 1 < len(codes) <= FEW or len(there) < 1.5 * len(codes):
            return None
        known.append(codes)
    if all(_among(codes / np.abs(codes).max()) for codes in known):
        return "nf4", Grid("codes", (1, size))
    levels = [_levels(codes) for codes in known]
    if not all(levels):
        return "codes", Grid("codes", (1, size))
    return f"int{max(2, math.ceil(math.log2(max(levels))))}", Grid("even", (1, size))


def _among(scaled: Floats) -> bool:
    return bool(max(np.min(np.abs(np.array(NF4) - code)) for code in scaled) < SAME_CODE)


def _levels(codes: Floats) -> int:
    """How many levels of one step lie between the smallest and the largest code; 0 where no step fits all."""
    from_first = codes - codes[0]
    count = np.round(from_first / np.diff(codes).min())
    step = float(count @ from_first) / float(count @ count)  # the rounding of the codes averages out
    fits = np.abs(from_first / step - count).max() < 0.2 and count[-1] < 1 << 4
    return int(count[-1]) + 1 if fits else 0


def _even_near_zero(groups: Floats) -> bool:
    """Whether the small numbers of every group are few, as the multiples of one step are; floats are dense there."""
    entries = kinds = 0
    for group in groups:
        low = np.abs(group[(group != 0) & (np.abs(group) <= NEAR * np.abs(group).max())])
        if _more_than(FEW, low) or (different := len(np.unique(low))) > FEW:
            return False
        entries, kinds = entries + len(low), kinds + different
    return kinds > 0 and entries >= max(64, 1.5 * kinds)


def _few_magnitudes(piece: Tensor) -> bool:
    """Whether thousands of numbers share no more magnitudes than float8 has."""
    magnitudes = piece.double().abs().numpy()
    there = magnitudes[magnitudes > 0]
    if there.size < ENOUGH or _more_than(MAGNITUDES, there):
        return False
    different = len(np.unique(there))
    return 2 * FEW <= different <= MAGNITUDES and there.size >= 4 * different


def _more_than(most: int, values: Floats) -> bool:
    """Whether the first values alone are too many different ones, as those of native numbers are; False: not known."""
    return len(set(values[: 2 * most].tolist())) > most
