"""The sums over the entries of W0 and W on a CPU, in one compiled sweep over the stored bits.

A bfloat16 is the upper half of a float32: its bits are shifted, and no conversion of the whole tensor is held. A row is
worked through in pieces that stay in the first cache: decoded, compared, subtracted, squared. Compiling takes a second
or two, once: the result is kept on disk beside the package, or in the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pickle import UnpicklingError
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.tensors.bits import FORMATS, STORED, Precision
from deltaw.types import Vector

PIECE = 1024  # columns: three rows of float32 and one of ΔW take 16 kB
CHUNK = 1 << 19  # entries that one thread takes; its sums do not depend on how many threads there are
CHANGE, BASE, PRODUCT, NOISE = OF_A_ROW = range(4)  # the sums of a row: Δ², W0², Δ·W0, ufp(W)²

T = TypeVar("T")
Kernel = Callable[..., Any]
Bits = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class BlockSums:
    """What a block of rows adds up to.

    Attributes:
        rows: Σ_j of Δ², W0², Δ·W0 and ufp(W)², (m, 4); the last is zero in a row of which nothing moved.
        cols: Σ_i ufp(W)² over the rows in which something moved, (n,).
        largest: Largest |Δ|.
        equal: How many entries have equal bits, after an upcast to one format.
    """

    rows: NDArray[np.float64]
    cols: Vector
    largest: float
    equal: int


def block_sums(old: Tensor, new: Tensor, delta: Tensor, precision: Precision) -> BlockSums:
    """Subtract a block of rows and add up its entries, with as many threads as torch would take.

    Args:
        old, new: Rows of W0 and of W as stored, (m, n), contiguous, on the CPU.
        delta: Where ΔW goes, (m, n), float32 or float64.
        precision: What W was rounded to.
    """
    m, n = new.shape
    wide = torch.float64 if torch.float64 in (old.dtype, new.dtype) else torch.float32
    least = max(precision.smallest, STORED[new.dtype].smallest)
    rows = np.zeros((m, len(OF_A_ROW)))

    def chunk(start: int) -> tuple[Vector, float, int]:
        some = slice(start, start + step)
        cols = np.zeros(n)
        sides = [_bits(x[some], wide) for x in (old, new)]
        out = delta[some].numpy()
        scratch = np.empty((3, PIECE), dtype=f"u{wide.itemsize}")
        of_dtype = scratch.dtype.type
        largest, equal = compiled(
            _add_rows,
            *(x for x, _ in sides),
            *(of_dtype(shift) for _, shift in sides),
            *(out, out.view(f"u{out.itemsize}")),
            *(of_dtype(_exponent(wide)), np.array(least, dtype=f"f{wide.itemsize}").view(scratch.dtype)[()]),
            *(scratch, scratch.view(f"f{wide.itemsize}"), rows[some], cols),
        )
        return cols, float(np.array(largest, dtype=f"u{out.itemsize}").view(out.dtype)[()]), int(equal)

    step = max(1, CHUNK // max(1, n))
    cols, top, equal = np.zeros(n), 0.0, 0
    for some_cols, some_top, some_equal in mapped(chunk, range(0, m, step)):
        cols += some_cols
        top, equal = max(top, some_top), equal + some_equal
    return BlockSums(rows, cols, top, equal)


def row_squares(x: Tensor) -> Vector:
    """Σ_j x², (m,), in float64, of a stored tensor (m, n), contiguous, on the CPU."""
    out = np.zeros(len(x))
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = max(1, CHUNK // max(1, x.shape[1]))

    def chunk(start: int) -> None:
        bits, shift = _bits(x[start : start + step], wide)
        scratch = np.empty(PIECE, dtype=f"u{wide.itemsize}")
        floats = scratch.view(f"f{wide.itemsize}")
        compiled(_add_squares, bits, scratch.dtype.type(shift), scratch, floats, out[start : start + step])

    for _ in mapped(chunk, range(0, len(x), step)):
        pass
    return out


def mapped(function: Callable[[int], T], starts: range) -> Iterable[T]:
    """A function of some first rows, in order, by as many threads as torch would take."""
    threads = min(torch.get_num_threads(), len(starts))
    if threads < 2:
        return map(function, starts)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, starts))


def _bits(x: Tensor, wide: torch.dtype) -> tuple[Bits, int]:
    """The bits of a tensor, and how far to the left they are those of the same numbers in a wider format."""
    x = x.detach()
    if x.dtype == torch.bfloat16 and wide == torch.float32:
        return x.view(torch.int16).numpy().view(np.uint16), 16
    return x.to(wide).numpy().view(f"u{wide.itemsize}"), 0


def _exponent(dtype: torch.dtype) -> int:
    f = FORMATS[dtype]
    return ((1 << f.exponent) - 1) << f.fraction


def compiled(function: Kernel, *arguments: object) -> Any:
    """Call a function of arrays and numbers as machine code."""
    try:
        return _compile(function, kept=True)(*arguments)
    except (OSError, EOFError, UnpicklingError):  # it cannot be kept on this disk, or what was kept is damaged there
        return _compile(function, kept=False)(*arguments)


@cache
def _compile(function: Kernel, *, kept: bool) -> Kernel:
    from numba import njit  # takes .4 s, and is only needed where entries are read

    # Sums may be taken in another order, by as many lanes as the processor has; nothing else of IEEE 754 is given up.
    settings: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract"}}  # numba's own keywords
    try:
        compiled: Kernel = njit(cache=kept, **settings)(function)
    except RuntimeError:  # no folder to keep it in
        compiled = njit(**settings)(function)
    return compiled


# What follows is compiled: a subset of Python, where a loop over a piece becomes vector instructions.
# Its arguments are arrays and numbers, as there is nothing else that compiled code knows.


def _add_rows(
    old: Any,  # (m, n), the stored bits of W0 …
    new: Any,  # … and of W
    shift_old: Any,  # how far to the left these bits are those of the wider format
    shift_new: Any,
    delta: Any,  # (m, n), where ΔW goes
    delta_bits: Any,  # the same memory as unsigned numbers
    exponent: Any,  # the bits of an exponent
    least: Any,  # the bits of the smallest unit in the first place
    scratch: Any,  # (3, PIECE), unsigned: a piece of W0, of W, and of the units in the first place of W
    floats: Any,  # the same memory as floating numbers
    rows: Any,  # (m, 4), see `BlockSums`
    cols: Any,  # (n,), to be added to
) -> tuple[Any, int]:
    """Returns the bits of the largest |Δ|, and how many entries are equal."""
    m, n = old.shape
    piece = scratch.shape[1]
    a, b, unit = scratch[0], scratch[1], scratch[2]
    w0, w, ufp = floats[0], floats[1], floats[2]
    word = scratch.dtype.type
    top = delta_bits.dtype.type(0)
    positive = (~delta_bits.dtype.type(0)) >> delta_bits.dtype.type(1)  # all bits but the sign's
    equal = 0
    for i in range(m):
        moved = False
        for j in range(n):  # ends at once in nearly every row
            x, y = word(old[i, j]) << shift_old, word(new[i, j]) << shift_new
            if x != y and word((x | y) << word(1)):  # +0 and −0 are one number
                moved = True
                break
        change, base, product, noise = 0.0, 0.0, 0.0, 0.0
        for start in range(0, n, piece):
            k = min(piece, n - start)
            stop = start + k
            old_bits, new_bits, d, d_bits = (
                old[i, start:stop],
                new[i, start:stop],
                delta[i, start:stop],
                delta_bits[i, start:stop],
            )
            same = 0
            for j in range(k):
                a[j] = word(old_bits[j]) << shift_old
                b[j] = word(new_bits[j]) << shift_new
                same += a[j] == b[j]
            equal += same
            for j in range(k):
                d[j] = w[j]
                d[j] -= w0[j]
                moved_by, was = np.float64(d[j]), np.float64(w0[j])
                change += moved_by * moved_by
                base += was * was
                product += moved_by * was
            for j in range(k):  # as unsigned numbers, magnitudes keep their order
                size = d_bits[j] & positive
                top = max(size, top)
            if moved:  # a row with the same numbers on both sides was not rounded
                c = cols[start:stop]
                for j in range(k):
                    unit[j] = max(b[j] & exponent, least)
                for j in range(k):
                    square = np.float64(ufp[j]) * np.float64(ufp[j])
                    noise += square
                    c[j] += square
        rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3] = change, base, product, noise
    return top, equal


def _add_squares(bits: Any, shift: Any, scratch: Any, floats: Any, rows: Any) -> None:
    """Σ_j x² for every row of stored bits."""
    m, n = bits.shape
    piece = len(scratch)
    word = scratch.dtype.type
    for i in range(m):
        total = 0.0
        for start in range(0, n, piece):
            k = min(piece, n - start)
            x = bits[i, start : start + k]
            for j in range(k):
                scratch[j] = word(x[j]) << shift
            for j in range(k):
                total += np.float64(floats[j]) * np.float64(floats[j])
        rows[i] = total
