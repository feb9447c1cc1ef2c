"""Stored number formats: their bits, and the rounding that storing a number in them leaves.

A stored entry w of a format with p fraction bits is off by up to half an ulp, ulp(w) = 2^(floor(log2|w|) − p); as a
uniform error this has the variance ulp(w)²/12. Which format that is, the numbers say and not the file: bfloat16
numbers in a float32 file were rounded to bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

HALF_GRAIN = 2.0**-24  # the smallest float16


class Format(NamedTuple):
    """How a stored dtype lays out its bits."""

    integer: torch.dtype
    fraction: int  # p: stored bits of the fraction
    exponent: int  # bits of the exponent


class Precision(NamedTuple):
    """What numbers can be told apart: those with `fraction` bits behind the first one.

    Attributes:
        name: The format's name.
        fraction: p.
        smallest: The smallest normal number: below it the distance of two neighbours no longer shrinks.
    """

    name: str
    fraction: int
    smallest: float

    @property
    def variance_scale(self) -> float:
        """What turns ufp² into ulp²/12, the variance of the rounding error."""
        return 4.0**-self.fraction / 12


FORMATS = {
    torch.float64: Format(torch.int64, 52, 11),
    torch.float32: Format(torch.int32, 23, 8),
    torch.float16: Format(torch.int16, 10, 5),
    torch.bfloat16: Format(torch.int16, 7, 8),
    torch.float8_e4m3fn: Format(torch.uint8, 3, 4),
    torch.float8_e5m2: Format(torch.uint8, 2, 5),
    torch.float8_e4m3fnuz: Format(torch.uint8, 3, 4),
    torch.float8_e5m2fnuz: Format(torch.uint8, 2, 5),
}
STORED = {
    dtype: Precision(str(dtype).removeprefix("torch."), f.fraction, float(torch.finfo(dtype).smallest_normal))
    for dtype, f in FORMATS.items()
}


def ulp(w: Tensor, precision: Precision | None = None) -> Tensor:
    """The ulp of every stored entry, in float64; below the smallest normal number it is that number's.

    Args:
        w: Stored numbers.
        precision: What they were rounded to; default the format that they are stored in.
    """
    precision = precision or STORED[w.dtype]
    return ufp(w, precision.smallest).double().mul_(2.0**-precision.fraction)


def ufp(w: Tensor, smallest: float | None = None) -> Tensor:
    """The unit in the first place, 2^floor(log2|w|), of every stored entry, in w's own dtype.

    It is w without its sign and fraction bits, and at least the smallest normal number: exact, and no logarithm is
    taken. ulp(w) = 2^(−p)·ufp(w).

    Args:
        w: Stored numbers.
        smallest: A power of two that it is at least; default the smallest normal number of w's own format.

    Source: Rump, Ogita & Oishi 2008.
    """
    f = FORMATS[w.dtype]
    own = 1 << f.fraction  # the bits of the smallest normal number
    if smallest is not None and smallest > STORED[w.dtype].smallest:
        own = int(torch.tensor(smallest, dtype=w.dtype).view(f.integer))
    exponents = w.view(f.integer) & (((1 << f.exponent) - 1) << f.fraction)
    return exponents.clamp_(min=own).view(w.dtype)


def rounded(w: Tensor, precision: Precision) -> Tensor:
    """Every entry rounded to the nearest number of a precision, ties to even, in float64.

    Args:
        w: Stored numbers of any dtype.
        precision: What to round to. Its largest number is not looked at: what overflows there is no weight.
    """
    x = w.double()
    grain = ulp(x, precision)
    return x.div(grain).round_().mul_(grain)  # x may be w itself


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two stored tensors are bit-identical: +0 and −0 differ, equal NaNs do not."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def count_equal(a: Tensor, b: Tensor) -> int:
    """How many entries have equal bits, after an upcast to one format where the two differ."""
    if a.dtype != b.dtype:
        common = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32  # holds every narrower format
        a, b = a.to(common), b.to(common)
    return a.numel() - int(torch.count_nonzero(_bits(a) ^ _bits(b)))


def within_ulp(
    delta: Tensor, old: Tensor, new: Tensor, was: Precision | None = None, now: Precision | None = None
) -> bool:
    """Whether |Δ| ≤ ulp(w) + ulp(w0) for every entry.

    What is bfloat16 now may have been float16 before, where tiny entries are rounded to a multiple of 2⁻²⁴.

    Args:
        delta: Δ.
        old, new: W0 and W as stored.
        was, now: What they were rounded to; default the formats that they are stored in.
    """
    was, now = was or STORED[old.dtype], now or STORED[new.dtype]
    reach = ulp(old, was).add_(ulp(new, now))
    if "bfloat16" in (was.name, now.name):
        reach += HALF_GRAIN
    return bool((delta.double().abs() <= reach).all())


def _bits(x: Tensor) -> Tensor:
    return x.view(FORMATS[x.dtype].integer) if x.dtype in FORMATS else x
