"""Quantising: what a matrix becomes in a format, as its reference library has it; for asking before it is done.

Every quantiser takes W as outputs × inputs, groups along the inputs (bitsandbytes: along the flat index), and returns
what the codes stand for, float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.tensors.codes import E2M1, NF4

FP8_LARGEST = 448.0


@dataclass(frozen=True)
class Quantiser:
    """One format.

    Attributes:
        what: In words.
        function: From (…, n) to what its codes stand for.
        block: Weights that share a scale: along a row, or (`flat`) along the flat index. 0: the row.
        flat: Whether blocks go on in the next row.
        whole: Whether a row must be whole blocks: a file has no other.
    """

    what: str
    function: Callable[[Tensor], Tensor]
    block: int
    flat: bool = False
    whole: bool = False

    def fits(self, columns: int) -> bool:
        """Whether rows of so many weights can be stored in it."""
        return not self.whole or columns % self.block == 0

    def __call__(self, W: Tensor) -> Tensor:
        """What W becomes: (m, n) → (m, n), float32."""
        x = W.float()
        rows, columns = x.shape
        if not self.block:
            return self.function(x)
        length = rows * columns if self.flat else columns
        grouped = x.reshape(-1, length)
        rest = -length % self.block
        if rest:  # the last block is partial: zeros do not change its largest number
            grouped = torch.nn.functional.pad(grouped, (0, rest))
        found = self.function(grouped.reshape(-1, self.block)).reshape(grouped.shape)
        return found[:, :length].reshape(rows, columns)


def int4(groups: Tensor) -> Tensor:
    """compressed-tensors' symmetric int4: −8 … 7, the scale 2·max|w|/15."""
    scale = groups.abs().amax(-1, keepdim=True) / 7.5
    scale = torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)
    return (groups / scale).clamp(-8, 7).round() * scale


def fp8(rows: Tensor) -> Tensor:
    """E4M3 with one scale per row, max|w|/448."""
    scale = rows.abs().amax(-1, keepdim=True) / FP8_LARGEST
    scale = torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)
    return (rows / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).float() * scale


def nf4(blocks: Tensor) -> Tensor:
    """Bitsandbytes' NF4: the nearest of 16 quantiles, times the block's max|w|."""
    scale = blocks.abs().amax(-1, keepdim=True)
    return _nearest(blocks / torch.where(scale == 0, 1.0, scale), NF4) * scale


def mxfp4(blocks: Tensor) -> Tensor:
    """OCP MXFP4: E2M1 times 2^(⌊log2 max|w|⌋ − 2)."""
    largest = blocks.abs().amax(-1, keepdim=True)
    exponent = torch.frexp(largest).exponent - 1 - 2
    scale = torch.where(largest == 0, 1.0, torch.ldexp(torch.ones_like(largest), exponent.clamp(-127, 127)))
    x = blocks / scale
    return _nearest(x.abs(), E2M1) * x.sign() * scale  # half way between two codes: the smaller


def q4_0(blocks: Tensor) -> Tensor:
    """Ggml's Q4_0: −8 … 7, the scale (in float16) the number of largest size over −8."""
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    codes = (blocks * inverse + 8.5).trunc().clamp(0, 15) - 8
    return codes * scale.half().float()


def q8_0(blocks: Tensor) -> Tensor:
    """Ggml's Q8_0: −127 … 127, the scale (in float16) max|w|/127; halves are rounded away from zero."""
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    codes = blocks * torch.where(scale == 0, 0.0, 1 / scale)
    codes = codes.sign() * (codes.abs() + 0.5).floor()
    return codes * scale.half().float()


def _nearest(x: Tensor, codes: tuple[float, ...]) -> Tensor:
    values, borders = _table(codes)
    return values[torch.bucketize(x, borders)]


@functools.cache
def _table(codes: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Codes, and the borders half way between them."""
    values = torch.tensor(codes)
    return values, (values[1:] + values[:-1]) / 2


QUANTISERS = {
    "int4-g32": Quantiser("int4 in groups of 32", int4, 32),
    "int4-g128": Quantiser("int4 in groups of 128", int4, 128),
    "nf4": Quantiser("NF4 in blocks of 64", nf4, 64, flat=True),
    "fp8": Quantiser("FP8 with one scale a row", fp8, 0),
    "mxfp4": Quantiser("MXFP4", mxfp4, 32),
    "q4_0": Quantiser("GGUF's Q4_0", q4_0, 32, whole=True),
    "q8_0": Quantiser("GGUF's Q8_0", q8_0, 32, whole=True),
}
