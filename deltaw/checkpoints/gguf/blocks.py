"""ggml's types: blocks of codes as numbers, by the `gguf` package, and the rounding inside every code's cell.

A block is a scale (or several, and minima) and codes. How wide a cell is follows from the block itself, read with its
codes set to 0 and to 1: the difference is the step. Of types with a codebook the code 1 tells the scale. The types
that code several weights together (IQ1 to IQ3) have no step of one entry: NaN.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltaw.checkpoints.gguf.names import library
from deltaw.checkpoints.quantised.module import Codes, Values
from deltaw.checkpoints.quantised.values import cells

if TYPE_CHECKING:
    import torch

# Stored as numbers: torch's name, and bytes.
NUMBERS = {
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F64": ("float64", 8),
    "I8": ("int8", 1),
    "I16": ("int16", 2),
    "I32": ("int32", 4),
    "I64": ("int64", 8),
}


class BlockCells(NamedTuple):
    """The cells of one type.

    Attributes:
        start, stop: Where the codes lie in a block; what lies between and is not named below is zero in a code of 1.
        one: The byte whose codes are all 1 (of a codebook: all the code whose value is 1).
        codebook: The values of the codes, where they are not evenly spaced.
        top: The largest code of an even grid that reaches further down than up: what would have been rounded to the
            next one was clipped, so its cell counts as twice as wide.
        group: How many weights share a scale, where zero is a code that may hold most of them.
    """

    start: int
    stop: int
    one: int
    codebook: tuple[int, ...] = ()
    top: int | None = None
    group: int = 0


IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12)  # twice the values: the scale is halved
GRIDS = {
    "Q4_0": BlockCells(2, 18, 0x11, top=7, group=32),
    "Q4_1": BlockCells(4, 20, 0x11),
    "Q5_0": BlockCells(6, 22, 0x11, top=15, group=32),
    "Q5_1": BlockCells(8, 24, 0x11),
    "Q8_0": BlockCells(2, 34, 0x01),
    "Q2_K": BlockCells(16, 80, 0x55),
    "Q3_K": BlockCells(32, 96, 0x55, top=3, group=16),
    "Q4_K": BlockCells(16, 144, 0x11),
    "Q5_K": BlockCells(48, 176, 0x11),
    "Q6_K": BlockCells(0, 128, 0x11, top=31, group=16),
    "TQ1_0": BlockCells(0, 52, 0x80),  # five digits of base 3, as a fraction: 1/2 is 111…
    "TQ2_0": BlockCells(0, 64, 0x55),
    "IQ4_NL": BlockCells(2, 18, 0x88, IQ4),
    "IQ4_XS": BlockCells(8, 136, 0x88, IQ4),
    "MXFP4": BlockCells(1, 17, 0x11, E2M1, group=32),
    "NVFP4": BlockCells(4, 36, 0x11, E2M1, group=16),
}
# The high bits of codes that lie apart from the low ones, which are the same in the codes 0 and 1.
HIGH_BITS = {"Q5_0": (2, 6), "Q5_1": (4, 8), "Q3_K": (0, 32), "Q5_K": (16, 48), "Q6_K": (128, 192)}


def readable(kind: str) -> bool:
    """Whether a type of codes can be read: the package has a dequantiser for it.

    Raises:
        MissingExtraError: The `gguf` package is not installed.
    """
    types = library().GGMLQuantizationType
    return kind in types.__members__ and types[kind] in library().quants._type_traits


def sizes(kind: str) -> tuple[int, int]:
    """Weights and bytes of one block.

    Raises:
        MissingExtraError: The `gguf` package is not installed.
    """
    gguf = library()
    weights, octets = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(weights), int(octets)


def dequantise(codes: Codes, rows: slice) -> Values:
    """Rows (of a stack: experts) of blocks as numbers.

    Raises:
        CheckpointError: The bytes cannot be read.
        MissingExtraError: The `gguf` package is not installed.
    """
    assert codes.shape is not None
    kind = codes.variant
    vector = len(codes.shape) == 1  # one row of blocks: it is read whole
    octets = codes.parts["codes"].read(None if vector else rows).numpy()
    picked = rows if vector else slice(None)
    return Values(
        lambda: _read(octets, kind)[picked],
        lambda: _variance(octets, kind)[picked],
        (lambda: _ends(octets, kind)[picked]) if kind in GRIDS and kind != "Q8_0" else None,
        GRIDS[kind].group if kind in GRIDS else 0,
    )


def _numbers(octets: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    gguf = library()
    with np.errstate(all="ignore"):  # a scale that is not finite is one of the numbers
        found: NDArray[np.float32] = gguf.quants.dequantize(octets, gguf.GGMLQuantizationType[kind])
    return found


def _read(octets: NDArray[np.uint8], kind: str) -> torch.Tensor:
    import torch

    return torch.from_numpy(_numbers(octets, kind))


def _variance(octets: NDArray[np.uint8], kind: str) -> torch.Tensor:
    """The mean square of the rounding inside every entry's cell, float64; NaN where it is not known."""
    import torch

    weight = _numbers(octets, kind).astype(np.float64)
    grid = GRIDS.get(kind)
    if grid is None:
        return torch.full(weight.shape, torch.nan, dtype=torch.float64)
    if grid.codebook:
        scale = _coded(octets, kind, grid.one)
        code = np.divide(weight, scale, out=np.zeros_like(weight), where=scale != 0)
        return torch.from_numpy(_cells(grid.codebook)[np.rint(code).astype(np.int64) + 128] * scale**2)
    step = _coded(octets, kind, grid.one) - _coded(octets, kind, 0)
    if grid.top is not None:
        code = np.divide(weight, step, out=np.zeros_like(weight), where=step != 0)
        step = step * (1 + (np.rint(code) == grid.top))
    return torch.from_numpy(step**2 / 12)


def _ends(octets: NDArray[np.uint8], kind: str) -> torch.Tensor:
    """−1 where an entry is the lowest that its block can say, 1 where it is the highest, else 0; int8."""
    import torch

    weight, grid = _numbers(octets, kind).astype(np.float64), GRIDS[kind]
    if grid.codebook:
        scale = _coded(octets, kind, grid.one)
        first, last = scale * grid.codebook[0], scale * grid.codebook[-1]
    else:
        zero = _coded(octets, kind, 0)
        bits = {"Q5_0": 5, "Q5_1": 5, "Q2_K": 2, "Q3_K": 3, "Q5_K": 5, "Q6_K": 6}.get(kind, 4)
        codes = 3 if kind.startswith("TQ") else 2**bits
        first, last = zero, zero + (codes - 1) * (_coded(octets, kind, grid.one) - zero)
    slack = 1e-3 * np.abs(last - first)
    low, high = (np.abs(weight - end) <= slack / 16 for end in (np.minimum(first, last), np.maximum(first, last)))
    return torch.from_numpy(high.astype(np.int8) - low.astype(np.int8))


def _coded(octets: NDArray[np.uint8], kind: str, byte: int) -> NDArray[np.float64]:
    """The numbers that the same blocks would stand for if all their codes were one."""
    grid, (_, size) = GRIDS[kind], sizes(kind)
    blocks = octets.reshape(-1, size).copy()
    blocks[:, grid.start : grid.stop] = byte
    if kind in HIGH_BITS:
        start, stop = HIGH_BITS[kind]
        blocks[:, start:stop] = 0
    return _numbers(blocks.reshape(octets.shape), kind).astype(np.float64)


@cache
def _cells(codebook: tuple[int, ...]) -> NDArray[np.float64]:
    """The mean square of rounding to a code's value, by that value plus 128."""
    import torch

    out = np.zeros(257)
    out[np.array(codebook) + 128] = cells(torch.tensor(codebook, dtype=torch.float64)).numpy()
    return out
