"""From codes to numbers: bits out of words, powers of two, four-bit floats, and what shares a scale.

All groups run along the last dimension of what is given. The variances are those of the rounding inside a code's cell.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from deltaw.tensors.codes import E2M1

if TYPE_CHECKING:
    import torch

EXPONENT_BIAS = 127
WORD = 32
TOGETHER = 1 << 18  # codes that are looked up at a time: what belongs to them stays in the cache


def unpacked(words: torch.Tensor, bits: int, count: int | None = None) -> torch.Tensor:
    """The b-bit fields of rows of 32-bit words, from the lowest bits up; a field may go on in the next word.

    Args:
        words: (…, w) int32 or uint32.
        bits: b, 1 to 8.
        count: How many fields a row has; default all that fit.

    Returns:
        (…, count) uint8.
    """
    import torch

    # A dimension of one may keep any stride, which no view of bytes takes: the copy is flat.
    octets = words.reshape(-1).clone().view(torch.uint8).reshape(*words.shape[:-1], 4 * words.shape[-1])
    total = words.shape[-1] * WORD // bits
    if bits == 8:
        out = octets
    elif 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        out = ((octets[..., None] >> shifts) & (2**bits - 1)).flatten(-2)
    else:
        start = torch.arange(total) * bits
        padded = torch.nn.functional.pad(octets, (0, 1)).to(torch.int32)
        first, shift = start // 8, (start % 8).to(torch.int32)
        out = (((padded[..., first] | (padded[..., first + 1] << 8)) >> shift) & (2**bits - 1)).to(torch.uint8)
    return out[..., : total if count is None else count]


def word_counts(count: int, bits: int) -> tuple[int, int]:
    """How many words hold some b-bit fields: side by side, and with none that crosses a word."""
    return -(-count * bits // WORD), -(-count // (WORD // bits))


def fields(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """compressed-tensors' fields: side by side, or, as its older versions had 3, 5, 6 and 7 bits, 32 // b to a word.

    Args:
        words: (…, w) int32; their number tells which.
        bits: b.
        count: How many fields a row has.

    Returns:
        (…, count) uint8.
    """
    import torch

    if words.shape[-1] == word_counts(count, bits)[0]:
        return unpacked(words, bits, count)
    shifts = torch.arange(0, WORD // bits * bits, bits, dtype=torch.int32)
    found: torch.Tensor = ((words[..., None] >> shifts) & (2**bits - 1)).flatten(-2)[..., :count]
    return found.to(torch.uint8)


def nibbles(codes: torch.Tensor, *, high_first: bool = False) -> torch.Tensor:
    """The two four-bit codes of every byte: (…, n/2) → (…, n)."""
    import torch

    size = codes.shape[-1] * codes.element_size()
    octets = codes.reshape(-1).clone().view(torch.uint8).reshape(*codes.shape[:-1], size)
    low, high = octets & 15, octets >> 4
    return torch.stack((high, low) if high_first else (low, high), dim=-1).flatten(-2)


@functools.cache
def e2m1_table() -> torch.Tensor:
    """The 16 values of a four-bit float, float32, by code."""
    import torch

    half = torch.tensor(E2M1)
    return torch.cat((half, -half))


@functools.cache
def e2m1_cells() -> torch.Tensor:
    """The variance of rounding to each of them, float64, by code."""
    import torch

    order = torch.argsort(e2m1_table(), stable=True)
    return cells(e2m1_table()[order].double())[torch.argsort(order)]


def cells(codes: torch.Tensor) -> torch.Tensor:
    """The mean square of rounding to each of some ascending codes (…, c): (b³ − a³)/(3(b − a)) over its cell [a, b].

    A cell ends half way to its neighbours. Beyond an outermost code lies nothing where the largest number of a block
    became it; a cell that is as wide on both sides has the same mean square. Codes that are one number (0 and −0) share
    one cell.
    """
    import torch

    values = codes.double()
    gaps = values.diff(dim=-1)
    none = torch.full_like(values[..., :1], torch.nan)
    up, down = torch.cat((gaps, none), -1), torch.cat((none, gaps), -1)
    zero_up, zero_down = up == 0, down == 0
    up = torch.where(zero_up, up.roll(-1, -1), up)
    down = torch.where(zero_down, down.roll(1, -1), down)
    up = torch.where(up.isnan(), down, up)
    down = torch.where(down.isnan(), up, down)
    return ((up * up - up * down + down * down) / 12).nan_to_num(0.0)


def inside(variance: torch.Tensor, weight: torch.Tensor, group: int) -> torch.Tensor:
    """The mean square of the rounding where one large weight may have set the step for its whole group.

    Then the cell of zero holds most of the others, and they do not fill it. How many it holds tells how little, for
    weights that are normal but for the largest (`deltaw.metrics.quantiser`). All cells as wide as zero's are scaled.

    Args:
        variance: Where weights fill their cells evenly, (…, n).
        weight: W, (…, n).
        group: How many neighbours share a scale.
    """
    import torch

    from deltaw.metrics.quantiser import inside_cells

    by_group = variance.reshape(*variance.shape[:-1], -1, group)
    zero = (weight == 0).reshape(by_group.shape)
    share = zero.double().mean(-1, keepdim=True).clamp(max=1 - 0.5 / group)  # those that are all zero may hide one more
    factor = torch.from_numpy(inside_cells(share.numpy()))
    width = torch.where(zero, by_group, 0.0).amax(-1, keepdim=True)
    return torch.where(by_group <= width * (1 + 1e-9), by_group * factor, by_group).reshape(variance.shape)


def real(scale: torch.Tensor) -> torch.Tensor:
    """A tensor of scales as float32; bytes and E8M0 are exponents of two, 255 is NaN."""
    import torch

    if scale.dtype == torch.uint8 or str(scale.dtype).endswith("e8m0fnu"):
        exponent = scale.view(torch.uint8)
        two: torch.Tensor = torch.exp2(exponent.double() - EXPONENT_BIAS).float()
        return torch.where(exponent == 255, torch.nan, two)
    return scale.float()


def spread(values: torch.Tensor, block: tuple[int, int], rows: slice, shape: tuple[int, ...]) -> torch.Tensor:
    """One number per block as one per entry: (…, ⌈m/b0⌉, ⌈n/b1⌉) → (…, rows, n). The last blocks may be partial.

    Args:
        values: One number per block, from the block that holds the first of the rows on.
        block: Rows and columns that share a number.
        rows: Which rows of the matrix are wanted.
        shape: (rows, n) of what is returned.
    """
    count, n = shape
    height, width = block
    whole = rows.start % height == 0 and values.shape == (count / height, n / width)
    if whole:  # one copy of rows that repeat, not two of entries
        across = values.repeat_interleave(width, dim=1)
        return across[:, None].expand(-1, height, -1).reshape(count, n)
    if values.shape[-2] > 1 or block[0] > 1:
        first = rows.start % block[0]
        values = values.repeat_interleave(block[0], dim=-2)[..., first : first + count, :]
    if values.shape[-1] == 1:
        return values.expand(*values.shape[:-1], n)
    return values.repeat_interleave(block[1], dim=-1)[..., :n]


def looked_up(table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """What a table has for every code.

    Args:
        table: (c,), by code.
        codes: uint8 of any shape, each below c.

    Returns:
        Of the shape of `codes`, in the table's dtype.
    """
    import torch

    from deltaw.tensors.memory import empty

    flat = codes.reshape(-1)
    out = empty(flat.shape, table.dtype)
    for i in range(0, len(flat), TOGETHER):
        torch.index_select(table, 0, flat[i : i + TOGETHER].int(), out=out[i : i + TOGETHER])
    return out.view(codes.shape)


def times_scale(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A matrix times its scales, in its place.

    Args:
        x: (m, n), or a stack of matrices.
        scale: What broadcasts to it; or (a, 1, b, 1), one scale for each of a by b blocks of a matrix.
    """
    if scale.ndim == 4 and x.ndim == 2:
        height, width = len(scale), scale.shape[2]
        x.view(height, len(x) // height, width, x.shape[1] // width).mul_(scale)
        return x
    return x.mul_(scale)


def ends(codes: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """−1 where a code is the lowest of its grid, 1 where it is the highest, else 0; int8."""
    import torch

    return (codes == high).to(torch.int8) - (codes == low).to(torch.int8)


def e2m1_ends(codes: torch.Tensor) -> torch.Tensor:
    """The same for four-bit floats, by code: ±6."""
    import torch

    return (codes == 7).to(torch.int8) - (codes == 15).to(torch.int8)


def even_variance(codes: torch.Tensor, scale: torch.Tensor, top: int | None = None) -> torch.Tensor:
    """step²/12 for every code of an even grid, float64.

    Args:
        codes: The codes.
        scale: The step of each.
        top: The largest code where the grid reaches further down than up (−8 … 7): what was rounded to 8 was clipped
            to 7, so its cell counts as twice as wide.
    """
    step = scale.double()
    return ((step * (1 + (codes == top).double())) if top is not None else step.expand(codes.shape)) ** 2 / 12
