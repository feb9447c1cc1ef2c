"""MLX: `weight` as 32-bit words of b-bit codes along the inputs, `scales` and `biases` per group; W = q·scale + bias.

The mode `mxfp4` has power-of-two scales as bytes and no biases.
"""

from __future__ import annotations

from collections.abc import Iterator

from deltaw.checkpoints.quantised.module import Codes, ModuleTensors, Values, shown
from deltaw.checkpoints.quantised.values import (
    e2m1_cells,
    e2m1_ends,
    e2m1_table,
    ends,
    even_variance,
    looked_up,
    real,
    times_scale,
    unpacked,
)


def claims(module: ModuleTensors) -> Iterator[Codes]:
    """The weight of a module that MLX stored."""
    weight, scales = module.get("weight"), module.get("scales")
    if weight is None or weight.dtype != "uint32" or scales is None or len(weight.shape) < 2:
        return
    parts = module.parts(codes="weight", scale="scales", bias="biases")
    name = module.named("weight")
    config = module.config.of_module(module.path)
    group, bits = config.integer("group_size"), config.integer("bits")
    affine = "bias" in parts
    if not affine:
        group, bits = group or 32, bits or 4
    if group is None or bits is None or not 1 <= bits <= 8:
        problem = "config.json does not say its group_size and bits (quantization)"
        yield Codes(name, "mlx", None, parts, problem)
        return
    columns = weight.shape[-1] * 32 // bits
    label = f"mlx_int{bits}_g{group}" if affine else config.text("mode") or "mxfp4"
    problem = "" if affine or label == "mxfp4" else f"its mode {label} is not read"
    if scales.shape != (*weight.shape[:-1], columns // group) or (affine and parts["bias"].shape != scales.shape):
        problem = f"its scales are {shown(scales)}, which does not fit {shown(weight)} words of {bits} bits by {group}"
    yield Codes(name, label, (*weight.shape[:-1], columns), parts, problem, (1, group), bits)


def dequantise(codes: Codes, rows: slice) -> Values:
    """Rows (of a stack: experts) of q·scale + bias, or of e2m1·2^exponent.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    import torch

    assert codes.shape is not None
    assert codes.bits is not None
    assert codes.block is not None
    q = unpacked(codes.parts["codes"].read(rows), codes.bits, codes.shape[-1])
    group = codes.block[1]
    each = real(codes.parts["scale"].read(rows)).repeat_interleave(group, dim=-1)
    if "bias" not in codes.parts:
        return Values(
            lambda: times_scale(looked_up(e2m1_table(), q), each),
            lambda: times_scale(looked_up(e2m1_cells(), q), each.double() ** 2),
            lambda: e2m1_ends(q),
            group,
        )
    bias = codes.parts["bias"].read(rows).float().repeat_interleave(group, dim=-1)
    top = 2**codes.bits - 1
    up = each.sign().to(torch.int8)  # MLX has steps of either sign: the highest code may be the lowest number
    return Values(lambda: q.float() * each + bias, lambda: even_variance(q, each), lambda: ends(q, 0, top) * up)
