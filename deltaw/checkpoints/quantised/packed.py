"""compressed-tensors' integers, several in a 32-bit word: `weight_packed`, `weight_scale`, `weight_shape`.

W = (u − 2^(b−1) − zero)·scale, u the b-bit fields of a row from the lowest bits up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaw.checkpoints.quantised.module import Codes, ModuleTensors, Values, shown
from deltaw.checkpoints.quantised.values import WORD, ends, even_variance, fields, real, word_counts
from deltaw.types import Handle

if TYPE_CHECKING:
    import torch


def claims(module: ModuleTensors) -> Iterator[Codes]:
    """The weight of a module that is stored as packed integers."""
    packed = module.get("weight_packed")
    if packed is None or packed.dtype != "int32":
        return
    parts = module.parts(
        codes="weight_packed",
        scale="weight_scale",
        zero="weight_zero_point",
        size="weight_shape",
        group_index="weight_g_idx",
    )
    name = module.named("weight")
    scale = parts.get("scale")
    if scale is None or len(packed.shape) < 2:
        yield Codes(name, "int4", None, parts, "its weight_scale is missing")
        return
    bits, columns = _bits(module, packed, parts.get("size"))
    if not bits:
        yield Codes(name, "int4", None, parts, "config.json does not say how many bits a code has (num_bits)")
        return
    shape = (*packed.shape[:-1], columns)
    groups = scale.shape[-1] if len(scale.shape) == len(packed.shape) else 1
    group = -(-columns // groups) if groups else 0
    problem = ""
    if not group or scale.shape[: len(packed.shape) - 1] not in {packed.shape[:-1], (1,)}:
        problem = f"its scale {scale.name} is {shown(scale)}, which does not fit"
    suffix = f"g{group}" if groups > 1 else "row"
    yield Codes(name, f"int{bits}_{suffix}", shape, parts, problem, (1, group), bits)


def _bits(module: ModuleTensors, packed: Handle, size: Handle | None) -> tuple[int, int]:
    """Bits per code and columns of the weight; (0, 0) where they are not known."""
    said = {w.get("num_bits") for w in module.config.groups}
    known = [b for b in said if isinstance(b, int) and 0 < b <= 8]
    words = packed.shape[-1]
    if size is not None and size.shape == (2,):
        # Two numbers, read at opening: a row's last word may be partly empty, and only they say how far it goes.
        columns = int(size.read()[1])
        fits = [b for b in (*known, 4, 8, 2, 3, 5, 6, 7, 1) if columns > 0 and words in word_counts(columns, b)]
        return (fits[0], columns) if fits else (0, 0)
    return (known[0], words * WORD // known[0]) if len(known) == 1 and WORD % known[0] == 0 else (0, 0)


def dequantise(codes: Codes, rows: slice) -> Values:
    """Rows of (u − 2^(b−1) − zero)·scale.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    assert codes.shape is not None
    assert codes.bits is not None
    assert codes.block is not None
    columns, half = codes.shape[-1], 2 ** (codes.bits - 1)
    u = fields(codes.parts["codes"].read(rows), codes.bits, columns).int() - half
    group = _groups(codes, columns)
    scale = real(codes.parts["scale"].read(None if codes.parts["scale"].shape[0] == 1 else rows))
    scale = scale[..., None] if scale.ndim < u.ndim else scale
    each = scale[..., group] if scale.shape[-1] > 1 else scale
    q = u.float()
    if "zero" in codes.parts:
        zero = _zeros(codes, codes.parts["zero"], codes.bits, rows, half).float()
        q = q - (zero[..., group] if zero.shape[-1] > 1 else zero)
    return Values(
        lambda: q * each,
        lambda: even_variance(u, each, None if "zero" in codes.parts else half - 1),
        lambda: ends(u, -half, half - 1),
        0 if "group_index" in codes.parts or columns % codes.block[1] else codes.block[1],
    )


def _groups(codes: Codes, columns: int) -> torch.Tensor:
    """The group of every column: in their order, or as activations ordered them."""
    import torch

    assert codes.block is not None
    if "group_index" in codes.parts:
        index = codes.parts["group_index"].read().long()
        if index.shape == (columns,) and bool((index >= 0).all()):
            return index
    return torch.arange(columns) // codes.block[1]


def _zeros(codes: Codes, handle: Handle, bits: int, rows: slice, half: int) -> torch.Tensor:
    """The zero points of some rows, (rows, groups); int32 are packed along the rows."""
    if handle.dtype != "int32":
        return handle.read(rows)
    words = handle.read()
    count = codes.parts["codes"].shape[0]
    return (fields(words.T.contiguous(), bits, count).T.int() - half)[rows]
