"""One stored number per weight, times a scale: FP8 and int8 with a scale per tensor, row, group or block; MXFP8.

W = q·scale, the scale of entry (i, j) at (i // b0, j // b1) of its tensor. DeepSeek V3, Qwen3-FP8 (`weight_scale_inv`,
which is multiplied, too), compressed-tensors (`float-quantized`, `int-quantized`, `mxfp8-quantized`), fbgemm,
ModelOpt, ComfyUI (`scale_weight`), LLM.int8 (`SCB`, divided by 127), plain `.qweight` and `.scale`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from deltaw.checkpoints.quantised.module import (
    EXPONENTS,
    FLOAT8,
    ByteTable,
    Codes,
    ModuleTensors,
    ScaledBytes,
    Values,
    count,
    shown,
)
from deltaw.checkpoints.quantised.values import (
    e2m1_cells,
    e2m1_ends,
    e2m1_table,
    ends,
    looked_up,
    nibbles,
    real,
    spread,
    times_scale,
)
from deltaw.types import Handle

if TYPE_CHECKING:
    import torch

# Every spelling of the scale of `{0}`, the most particular first.
SCALES = ("{0}_scale_inv", "{0}_scale", "scale_{0}", "{0}_scales")
OFFSETS = ("{0}_offset", "{0}_zero", "{0}_zeros", "{0}_shift")  # of which nobody says how they are added
FP8_METHODS = frozenset({"fp8", "fbgemm-fp8", "modelopt", "compressed-tensors"})


def claims(module: ModuleTensors) -> Iterator[Codes]:
    """The weights of a module that are stored as numbers to be scaled."""
    for leaf, handle in module.coded():
        if handle.dtype not in FLOAT8 and handle.dtype != "int8":
            continue
        if handle.dtype == "int8" and f"{leaf}_scales" in module.leaves:
            continue  # EETQ, whose kernels want the codes in an order of their own
        stem = leaf.removesuffix("_qdata")  # torchao writes `_weight_qdata`, `_weight_scale`
        name = module.weight(leaf)
        scale = _scale(module, stem)
        if handle.dtype == "int8" and leaf == "weight" and "SCB" in module.leaves:
            parts = module.parts(codes="weight", scale="SCB", layout="weight_format")
            fits = module.leaves["SCB"].shape == handle.shape[:1]
            yield Codes(
                name,
                "bnb_int8",
                handle.shape,
                parts,
                "" if fits else _unfit(module.leaves["SCB"]),
                (1, handle.shape[-1]),
            )
        elif scale is not None:
            parts = {"codes": handle, "scale": scale, **module.parts(zero=f"{stem}_zero_point")}
            found = _scaled(module, name, handle, scale, parts)
            offset = module.get(*(o.format(stem) for o in OFFSETS))
            yield found if offset is None else _with_offset(found, offset)
        elif handle.dtype in FLOAT8 and module.config.method in FP8_METHODS and len(handle.shape) >= 2:
            yield Codes(name, "fp8", handle.shape, {"codes": handle}, "its scale is missing")


def _with_offset(codes: Codes, offset: Handle) -> Codes:
    parts = {**codes.parts, "offset": offset}
    return replace(codes, parts=parts, problem=codes.problem or f"how {offset.name} is added is not known")


def _scale(module: ModuleTensors, leaf: str) -> Handle | None:
    names = [s.format(leaf) for s in SCALES]
    return module.get(*names, *(("scale",) if leaf in {"weight", "qweight"} else ()))


def _scaled(module: ModuleTensors, name: str, q: Handle, scale: Handle, parts: dict[str, Handle]) -> Codes:
    kind = "fp8" if q.dtype in FLOAT8 else "int8"
    if len(q.shape) < 2:
        return Codes(name, f"{kind}_tensor", q.shape, parts, "" if count(scale) == 1 else _unfit(scale))
    n = q.shape[-1]
    if scale.dtype in EXPONENTS and kind == "int8" and scale.shape == (*q.shape[:-1], n // 16):
        return Codes(name, "mxfp4", (*q.shape[:-1], 2 * n), parts, block=(1, 32))  # DeepSeek-V4: two codes a byte
    if scale.dtype in EXPONENTS and n % 32 == 0 and scale.shape == (*q.shape[:-1], n // 32):
        return Codes(name, "mxfp8", q.shape, parts, block=(1, 32))
    label, block = _layout(q.shape, scale.shape, module.config.block)
    return Codes(name, f"{kind}_{label}", q.shape, parts, "" if block else _unfit(scale), block)


def _layout(
    shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[str, tuple[int, int] | None]:
    """What shares a scale: its name, and its rows and columns; None where the two shapes do not fit."""
    *stack, m, n = shape
    groups = scale[-1] if scale and scale[:-1] == shape[:-1] else 0
    group = n // groups if groups and n % groups == 0 else 0
    per_tensor = prod(scale) == 1 or (stack and scale in {(*stack,), (*stack, 1), (*stack, 1, 1)})
    # The config decides where it speaks: a block may be as large as the matrix, or as long as a row.
    layouts: tuple[tuple[str, tuple[int, int], bool], ...] = (
        ("block", block or (128, 128), block is not None and scale == _blocks(shape, block)),
        ("tensor", (m, n), bool(per_tensor)),
        ("row", (1, n), scale in {(*stack, m), (*stack, m, 1)}),
        ("row", (m, 1), scale == (*stack, 1, n)),  # experts that are stored inputs × outputs (Llama 4)
        ("block", (128, 128), block is None and scale == _blocks(shape, (128, 128))),
        (f"g{group}", (1, group), group > 0),
    )
    return next(((label, size) for label, size, fits in layouts if fits), ("block", None))


def _blocks(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    # The last block of a row or column may be partial.
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def _unfit(scale: Handle) -> str:
    return f"its scale {scale.name} is {shown(scale)}, which does not fit"


def dequantise(codes: Codes, rows: slice) -> Values:
    """Rows of q·scale, or (q − zero)·scale.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    q = codes.parts["codes"].read(rows)
    by_block = "zero" not in codes.parts and codes.format != "mxfp4"
    scale = _of_steps(codes, _scale_of(codes, codes.parts["scale"], rows, q.shape, blocks=by_block))
    if codes.format == "mxfp4":  # DeepSeek-V4: two codes a byte
        picked = nibbles(q)
        return Values(
            lambda: times_scale(looked_up(e2m1_table(), picked), scale),
            lambda: times_scale(looked_up(e2m1_cells(), picked), scale.double() ** 2),
            lambda: e2m1_ends(picked),
            32,
        )
    table, octets = byte_table(q.dtype), _octets(q)

    def weight() -> torch.Tensor:
        numbers = looked_up(table.numbers, octets)
        if "zero" in codes.parts:
            numbers.sub_(_scale_of(codes, codes.parts["zero"], rows, q.shape))
        return times_scale(numbers, scale)

    return Values(
        weight,
        lambda: times_scale(looked_up(table.variances, octets), scale.double() ** 2),
        lambda: looked_up(table.ends, octets),
    )


def stored(codes: Codes) -> ScaledBytes | None:
    """A whole matrix as it is stored; None where that is not q·scale with a byte for every entry.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    handle, each = codes.parts["codes"], codes.parts["scale"]
    if "zero" in codes.parts or len(handle.shape) != 2 or handle.shape != codes.shape or codes.block is None:
        return None
    m, n = handle.shape
    q, scale = handle.read(), _of_steps(codes, real(each.read()))
    if count(each) == 1:
        return ScaledBytes(_octets(q), byte_table(q.dtype), scale.reshape(1, 1), (m, n))
    if each.shape == (m,):
        scale = scale[:, None]
    return ScaledBytes(_octets(q), byte_table(q.dtype), scale, codes.block)


def _octets(q: torch.Tensor) -> torch.Tensor:
    import torch

    return q.reshape(-1).view(torch.uint8).view(q.shape)


def _of_steps(codes: Codes, scale: torch.Tensor) -> torch.Tensor:
    """The scales; what LLM.int8 stores instead, the largest number of every row, is 127 of them."""
    return (scale.double() / 127).float() if codes.format == "bnb_int8" else scale


def _scale_of(codes: Codes, handle: Handle, rows: slice, shape: torch.Size, *, blocks: bool = False) -> torch.Tensor:
    """The scale of every entry of some rows, or as few as broadcast to them; with `blocks` for `times_scale`."""
    whole = codes.parts["codes"].shape
    if len(whole) < 2 or count(handle) == 1:
        return real(handle.read()).reshape([1] * len(shape))
    assert codes.block is not None
    stack = len(whole) > 2  # the first dimension is that of experts, and each has scales of its own
    if handle.shape == whole[:-1]:  # one per row, without a dimension for the columns
        return real(handle.read(rows))[..., None]
    if stack and len(handle.shape) < len(whole):
        return real(handle.read(rows)).reshape(-1, *[1] * (len(whole) - 1))
    n = codes.shape[-1] if codes.shape is not None else shape[-1]
    if stack:
        values = real(handle.read(rows))
        if values.shape[-2:] == (1, n) or values.shape[-2:] == (1, 1):
            return values
        return spread(values, codes.block, slice(0, None), (shape[-2], n))
    height = codes.block[0]
    values = real(handle.read(slice(rows.start // height, -(-rows.stop // height))))
    if (
        blocks
        and rows.start % height == 0
        and (height * len(values), codes.block[1] * values.shape[1]) == (shape[0], n)
    ):
        return values[:, None, :, None]
    return spread(values, codes.block, rows, (shape[0], n))


@functools.cache
def byte_table(dtype: torch.dtype) -> ByteTable:
    """What the 256 codes of int8 or of a float8 format stand for."""
    import torch

    from deltaw.tensors.bits import ulp

    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    numbers = every.float()
    if dtype == torch.int8:
        return ByteTable(numbers, torch.full((256,), 1 / 12, dtype=torch.float64), ends(every.clamp(-127), -127, 127))
    most = torch.finfo(dtype).max
    return ByteTable(numbers, ulp(every) ** 2 / 12, ends(numbers, -most, most))
