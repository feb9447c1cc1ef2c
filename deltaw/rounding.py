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
    bias: int


FORMATS = {
    torch.float64: Format(torch.int64, 52, 11, 1023),
    torch.float32: Format(torch.int32, 23, 8, 127),
    torch.float16: Format(torch.int16, 10, 5, 15),
    torch.bfloat16: Format(torch.int16, 7, 8, 127),
    torch.float8_e4m3fn: Format(torch.uint8, 3, 4, 7),
    torch.float8_e5m2: Format(torch.uint8, 2, 5, 15),
    torch.float8_e4m3fnuz: Format(torch.uint8, 3, 4, 8),
    torch.float8_e5m2fnuz: Format(torch.uint8, 2, 5, 16),
}


def rounding_variance(w: Tensor) -> Tensor:
    """ulp(w)²/12 of every stored entry, in float64: the variance of its rounding error.

    ulp(w) = 2^(floor(log2|w|) − p) is read from the exponent's bits, and ulp² is put together as bits again:
    exact for every entry, subnormal and zero included (they share the ulp of the smallest normal number), and no
    logarithm is taken.

    Args:
        w: Entries as stored, of a dtype of `FORMATS`.

    Returns:
        A float64 tensor of the same shape.
    """
    f = FORMATS[w.dtype]
    exponent = (w.view(f.integer).to(torch.int64) >> f.fraction) & ((1 << f.exponent) - 1)
    # ulp² = 2^(2(e − bias − p)); as a float64 its own exponent field is that power + 1023. Only float64 entries
    # beyond 1e±146 could leave its range.
    field = exponent.clamp_(min=1).mul_(2).add_(1023 - 2 * (f.bias + f.fraction))
    if w.dtype == torch.float64:
        field = field.clamp_(0, 2046)
    return field.bitwise_left_shift_(52).view(torch.float64).div_(12)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two stored tensors are bit-identical: +0 and −0 differ, equal NaNs do not."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def count_equal(a: Tensor, b: Tensor) -> int:
    """How many entries have equal bits, after an upcast to one format where the two differ."""
    if a.dtype != b.dtype:
        common = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32  # holds every narrower format
        a, b = a.to(common), b.to(common)
    return int(torch.count_nonzero(_bits(a) == _bits(b)))


def within_ulp(delta: Tensor, old: Tensor, new: Tensor, variance: Tensor) -> bool:
    """Whether |Δ| ≤ ulp(w) + ulp(w0) for every entry; `variance` is ulp(w)²/12.

    What is bfloat16 now may have been float16 before, where tiny entries are rounded to a multiple of 2⁻²⁴.
    """
    reach = variance.sqrt().add_(rounding_variance(old).sqrt_()).mul_(12**0.5)
    if torch.bfloat16 in (old.dtype, new.dtype):
        reach += HALF_GRAIN
    return bool((delta.double().abs() <= reach).all())


def _bits(x: Tensor) -> Tensor:
    return x.view(FORMATS[x.dtype].integer) if x.dtype in FORMATS else x
