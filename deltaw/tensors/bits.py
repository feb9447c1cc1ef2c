"""Stored number formats: their bits, and the rounding that storing a number in them leaves.

A stored entry w of a format with p fraction bits is off by up to half an ulp, ulp(w) = 2^(floor(log2|w|) − p); as a
uniform error this has the variance ulp(w)²/12.
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


def ulp(w: Tensor) -> Tensor:
    """The ulp of every stored entry, in float64; subnormal entries and zero have that of the smallest normal number."""
    return ufp(w).double().mul_(2.0 ** -FORMATS[w.dtype].fraction)


def ufp(w: Tensor) -> Tensor:
    """The unit in the first place, 2^floor(log2|w|), of every stored entry, in w's own dtype.

    It is w without its sign and fraction bits, and at least the smallest normal number: exact, and no logarithm is
    taken. ulp(w) = 2^(−p)·ufp(w).

    Source: Rump, Ogita & Oishi 2008.
    """
    f = FORMATS[w.dtype]
    exponents = w.view(f.integer) & (((1 << f.exponent) - 1) << f.fraction)
    return exponents.clamp_(min=1 << f.fraction).view(w.dtype)


def variance_scale(dtype: torch.dtype) -> float:
    """What turns ufp² into ulp²/12, the variance of the rounding error."""
    return 4.0 ** -FORMATS[dtype].fraction / 12


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two stored tensors are bit-identical: +0 and −0 differ, equal NaNs do not."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def count_equal(a: Tensor, b: Tensor) -> int:
    """How many entries have equal bits, after an upcast to one format where the two differ."""
    if a.dtype != b.dtype:
        common = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32  # holds every narrower format
        a, b = a.to(common), b.to(common)
    return a.numel() - int(torch.count_nonzero(_bits(a) ^ _bits(b)))


def within_ulp(delta: Tensor, old: Tensor, new: Tensor) -> bool:
    """Whether |Δ| ≤ ulp(w) + ulp(w0) for every entry.

    What is bfloat16 now may have been float16 before, where tiny entries are rounded to a multiple of 2⁻²⁴.
    """
    reach = ulp(old).add_(ulp(new))
    if torch.bfloat16 in (old.dtype, new.dtype):
        reach += HALF_GRAIN
    return bool((delta.double().abs() <= reach).all())


def _bits(x: Tensor) -> Tensor:
    return x.view(FORMATS[x.dtype].integer) if x.dtype in FORMATS else x
