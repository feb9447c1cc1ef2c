"""The sums over the entries of two sides that are stored as bytes times scales, in one compiled sweep over the bytes.

Neither side is ever held as numbers. What a byte stands for, how far it may be off and which ones are outermost come
from the tables of its format (`deltaw.checkpoints.quantised.scaled`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.checkpoints import ScaledBytes
from deltaw.delta.compiled import CHUNK, PIECE, compiled, mapped
from deltaw.types import Vector

NARROWEST = 16  # columns that share a scale: with fewer the loops are too short to be worth it
CHANGE, BASE, PRODUCT, VARIANCE, CLIPPED = OF_A_ROW = range(5)


@dataclass(frozen=True)
class CodeSums:
    """What two matrices of codes add up to.

    Attributes:
        rows: Σ_j of Δ², W0², Δ·W0, v, and Δ² − v of the clipped entries, (m, 5). v is the variance of the rounding of
            both sides; it is zero in a row of which nothing moved.
        cols: Σ_i of v, and of Δ² − v of the clipped entries, (2, n).
        sample: v of every so-many-th entry, row by row; and the same with Δ² in its place where the entry was clipped.
        largest: Largest |Δ|.
        equal: How many entries have equal bits as float32.
        clipped: How many lie on an outermost code of W, further inward of W0 than its cell reaches.
    """

    rows: NDArray[np.float64]
    cols: NDArray[np.float64]
    sample: tuple[Vector, Vector]
    largest: float
    equal: int
    clipped: int


def takes(old: ScaledBytes, new: ScaledBytes) -> bool:
    """Whether enough columns share both scales."""
    return _shared(old, new) >= min(NARROWEST, old.codes.shape[1])


def code_sums(old: ScaledBytes, new: ScaledBytes, delta: Tensor, every: int) -> CodeSums:
    """Subtract two matrices of codes and add up their entries, with as many threads as torch would take.

    Args:
        old, new: W0 and W, (m, n), on the CPU.
        delta: Where ΔW goes, (m, n) float32, contiguous.
        every: Of how many entries the sample holds one.
    """
    m, n = delta.shape
    rows = np.zeros((m, len(OF_A_ROW)))
    sample = np.zeros((2, -(-m * n // every)))
    sides = [argument for side in (old, new) for argument in _arguments(side)]
    ends = new.table.ends.numpy()
    out, width = delta.numpy(), min(PIECE, _shared(old, new))

    def chunk(start: int) -> tuple[NDArray[np.float64], float, int, int]:
        stop = min(m, start + step)
        cols = np.zeros((2, n))
        scratch = np.empty((2, PIECE), dtype=np.float32)
        largest, equal, clipped = compiled(
            _add_codes,
            *(start, stop, *sides, ends, np.flatnonzero(ends).astype(np.uint8), width),
            *(out, out.view(np.uint32), scratch, scratch.view(np.uint32), np.empty(PIECE)),
            *(rows, cols, every, sample),
        )
        return cols, float(np.uint32(largest).view(np.float32)), int(equal), int(clipped)

    step = max(1, CHUNK // max(1, n))
    found = list(mapped(chunk, range(0, m, step)))
    cols, tops, equal, clipped = zip(*found, strict=True)
    return CodeSums(rows, sum(cols, np.zeros((2, n))), (sample[0], sample[1]), max(tops), sum(equal), sum(clipped))


def _shared(old: ScaledBytes, new: ScaledBytes) -> int:
    """Columns that share a scale on both sides."""
    return math.gcd(old.block[1], new.block[1])


def _arguments(side: ScaledBytes) -> tuple[object, ...]:
    table = side.table
    return (
        *(side.codes.contiguous().numpy(), table.numbers.numpy(), table.variances.numpy()),
        *(side.scale.to(torch.float32).contiguous().numpy(), *side.block),
    )


# What follows is compiled, see `deltaw.delta.compiled`.


def _add_codes(
    first: Any,  # the rows that are swept …
    last: Any,  # … and where they end
    old: Any,  # (m, n), the bytes of W0 …
    number_old: Any,  # … what each stands for, (256,) float32
    variance_old: Any,  # … and its variance, (256,) float64
    scale_old: Any,  # one for every block
    height_old: Any,
    width_old: Any,
    new: Any,  # the same of W
    number_new: Any,
    variance_new: Any,
    scale_new: Any,
    height_new: Any,
    width_new: Any,
    ends: Any,  # −1 for the lowest bytes of W, 1 for the highest, else 0, (256,)
    outermost: Any,  # the bytes for which it is not 0
    piece: Any,  # columns that are worked through at once: they share both scales
    delta: Any,  # (m, n), where ΔW goes
    delta_bits: Any,  # the same memory as unsigned numbers
    scratch: Any,  # (2, PIECE) float32: a piece of W0 and of W
    scratch_bits: Any,  # the same memory as unsigned numbers
    v: Any,  # (PIECE,): their variances
    rows: Any,  # (m, 5), see `CodeSums`
    cols: Any,  # (2, n), to be added to
    every: Any,  # of how many entries the sample holds one
    sample: Any,  # (2, ⌈m·n/every⌉)
) -> tuple[Any, int, int]:
    """Returns the bits of the largest |Δ|, how many entries are equal, and how many were clipped."""
    n = old.shape[1]
    w0, w, w0_bits, w_bits = scratch[0], scratch[1], scratch_bits[0], scratch_bits[1]
    positive = np.uint32(0x7FFFFFFF)  # all bits but the sign's
    top = np.uint32(0)
    equal, clipped = 0, 0
    for i in range(first, last):
        change, base, product = 0.0, 0.0, 0.0
        moved = np.uint32(0)
        for start in range(0, n, piece):
            stop = min(n, start + piece)
            k = stop - start
            was, now = scale_old[i // height_old, start // width_old], scale_new[i // height_new, start // width_new]
            a, b, d, d_bits = old[i, start:stop], new[i, start:stop], delta[i, start:stop], delta_bits[i, start:stop]
            for j in range(k):
                w0[j] = number_old[a[j]] * was
                w[j] = number_new[b[j]] * now
            same = 0
            for j in range(k):
                same += w0_bits[j] == w_bits[j]
            equal += same
            for j in range(k):
                d[j] = w[j] - w0[j]
                x, y = np.float64(w0[j]), np.float64(d[j])
                change += y * y
                base += x * x
                product += y * x
            for j in range(k):  # as unsigned numbers, magnitudes keep their order
                moved = max(moved, d_bits[j] & positive)
        rows[i, 0], rows[i, 1], rows[i, 2] = change, base, product
        top = max(top, moved)
        if not moved:  # a row with the same numbers on both sides was not rounded
            continue
        noise, more = 0.0, 0.0
        for start in range(0, n, piece):
            stop = min(n, start + piece)
            k = stop - start
            was = np.float64(scale_old[i // height_old, start // width_old]) ** 2
            now = np.float64(scale_new[i // height_new, start // width_new]) ** 2
            a, b, d, c = old[i, start:stop], new[i, start:stop], delta[i, start:stop], cols[0, start:stop]
            for j in range(k):
                v[j] = variance_old[a[j]] * was + variance_new[b[j]] * now
            for j in range(k):
                noise += v[j]
                c[j] += v[j]
            here = i * n + start
            for j in range(-here % every, k, every):
                sample[0, (here + j) // every] = sample[1, (here + j) // every] = v[j]
            there = False
            for code in outermost:
                for j in range(k):
                    there |= b[j] == code
            if there:
                for j in range(k):
                    square = np.float64(d[j]) * np.float64(d[j])
                    if ends[b[j]] * d[j] < 0 and square > 3 * v[j]:
                        clipped += 1
                        more += square - v[j]
                        cols[1, start + j] += square - v[j]
                        if (here + j) % every == 0:
                            sample[1, (here + j) // every] = square
        rows[i, 3], rows[i, 4] = noise, more
    return top, equal, clipped
