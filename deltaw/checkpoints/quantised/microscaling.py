"""Four-bit floats, two a byte: MXFP4 (one power of two per 32 weights) and NVFP4 (one E4M3 scale per 16).

gpt-oss (`gate_up_proj_blocks`, `gate_up_proj_scales`), compressed-tensors (`weight_packed`), ModelOpt (`weight` as
bytes, `weight_scale_2`), and MLX's `mxfp4` mode lies in `mlx`.
"""

from __future__ import annotations

from collections.abc import Iterator

from deltaw.checkpoints.quantised.module import EXPONENTS, FLOAT8, Codes, ModuleTensors, Values, shown
from deltaw.checkpoints.quantised.values import e2m1_cells, e2m1_ends, e2m1_table, looked_up, nibbles, real, times_scale
from deltaw.types import Handle


def claims(module: ModuleTensors) -> Iterator[Codes]:
    """The weights of a module that are stored as four-bit floats."""
    for leaf, handle in module.coded():
        if handle.dtype != "uint8":
            continue
        if leaf.endswith("_blocks"):
            yield _stacked(module, leaf.removesuffix("_blocks"), handle)
        elif leaf == "weight_packed":
            yield _packed(module, handle)
        elif leaf == "weight" and len(handle.shape) >= 2 and (scale := module.get("weight_scale")) is not None:
            m = handle.shape[:-1]
            n = 2 * handle.shape[-1]
            if "weight_scale_2" in module.leaves and scale.shape == (*m, n // 16):
                parts = module.parts(codes="weight", scale="weight_scale", global_scale="weight_scale_2")
                yield Codes(module.named("weight"), "nvfp4", (*m, n), parts, block=(1, 16))
            elif scale.dtype in EXPONENTS and scale.shape == (*m, n // 32) and module.config.method != "quark":
                parts = module.parts(codes="weight", scale="weight_scale")
                yield Codes(module.named("weight"), "mxfp4", (*m, n), parts, block=(1, 32))


def _stacked(module: ModuleTensors, leaf: str, blocks: Handle) -> Codes:
    # gpt-oss: blocks (E, rows, groups, 16 bytes); transformers' parameter is (E, 32·groups, rows).
    scales = module.get(f"{leaf}_scales")
    name = module.named(leaf)
    shape = None
    problem = "its _scales are missing" if scales is None else ""
    if len(blocks.shape) >= 3 and blocks.shape[-1] == 16:
        *stack, rows, groups, _ = blocks.shape
        shape = (*stack, 32 * groups, rows)
        if scales is not None and scales.shape != blocks.shape[:-1]:
            problem = f"its scale {scales.name} is {shown(scales)}, which does not fit"
    else:
        problem = f"its blocks are {shown(blocks)}; expected 16 bytes in the last dimension"
    return Codes(name, "mxfp4", shape, module.parts(codes=f"{leaf}_blocks", scale=f"{leaf}_scales"), problem, (1, 32))


def _packed(module: ModuleTensors, packed: Handle) -> Codes:
    scale = module.get("weight_scale")
    shape = (*packed.shape[:-1], 2 * packed.shape[-1]) if packed.shape else None
    parts = module.parts(codes="weight_packed", scale="weight_scale", global_scale="weight_global_scale")
    name = module.named("weight")
    if scale is None or shape is None:
        return Codes(name, "fp4", shape, parts, "its weight_scale is missing")
    nv = "weight_global_scale" in parts or scale.dtype in FLOAT8
    group = 16 if nv else 32
    problem = ""
    if scale.shape != (*shape[:-1], shape[-1] // group):
        problem = f"its scale {scale.name} is {shown(scale)}, which does not fit"
    elif nv and "global_scale" not in parts:
        problem = "its weight_global_scale is missing"
    return Codes(name, "nvfp4" if nv else "mxfp4", shape, parts, problem, (1, group))


def dequantise(codes: Codes, rows: slice) -> Values:
    """Rows (of a stack: experts) of e2m1·scale, with NVFP4's global scale.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    stored, scale = codes.parts["codes"], real(codes.parts["scale"].read(rows))
    stacked = len(stored.shape) >= 3 and stored.name.endswith("_blocks")
    if "global_scale" in codes.parts:
        overall = codes.parts["global_scale"]
        factor = overall.read(rows if len(stored.shape) > 2 and len(overall.shape) else None).float()
        factor = factor.reshape(-1, *[1] * (scale.ndim - 1)) if factor.numel() > 1 else factor.reshape(())
        # compressed-tensors divides by it, ModelOpt multiplies.
        scale = scale / factor if overall.name.endswith("weight_global_scale") else scale * factor
    picked = nibbles(stored.read(rows))
    if stacked:
        part = scale[..., None]
        # transformers' parameter is the transpose of the rows that are stored.
        return Values(
            lambda: times_scale(looked_up(e2m1_table(), picked), part).flatten(-2).mT.contiguous(),
            lambda: times_scale(looked_up(e2m1_cells(), picked), part.double() ** 2).flatten(-2).mT.contiguous(),
            lambda: e2m1_ends(picked).flatten(-2).mT.contiguous(),
        )
    assert codes.block is not None
    each = scale.repeat_interleave(codes.block[1], dim=-1)
    return Values(
        lambda: times_scale(looked_up(e2m1_table(), picked), each),
        lambda: times_scale(looked_up(e2m1_cells(), picked), each.double() ** 2),
        lambda: e2m1_ends(picked),
        codes.block[1],
    )
