"""Formats that are not read: known ones by the names of their tensors, and everything else that looks like codes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deltaw.checkpoints.quantised.module import FLOAT8, INTEGERS, Codes, ModuleTensors

# A format by the tensors that only it has, all of which a module must hold.
MARKS = (
    ("aqlm", ("codes", "codebooks")),
    ("vptq", ("indices", "centroids.weight")),
    ("vptq", ("indices", "centroids")),
    ("hqq", ("W_q",)),
    ("exl2", ("q_weight", "q_scale")),
    ("exl3", ("trellis", "suh")),
    ("quip", ("Qidxs",)),
    ("quanto", ("weight._data",)),
    ("torchao", ("_weight_qdata",)),
    ("eetq", ("weight", "weight_scales")),
    ("gguf", ("weight", "weight.quant_type")),
    ("marlin", ("B", "s")),
    ("marlin_24", ("B_24", "s")),
    ("qqq", ("B", "s_channel")),
    ("svdquant", ("qweight", "proj_down")),
)
# What is called so beside codes belongs to them.
COMPANION = re.compile(
    r"scale|absmax|zero|codebook|quant|centroid|lut|table|SCB|biases|g_idx|perm|qmap|^s[uv]", re.IGNORECASE
)
# Whole numbers of two and more dimensions that are no codes: masks, indices and counts. GPT-2 keeps its causal mask as
# the bytes of `bias`.
BUFFER = re.compile(
    r"(^|_)(bias|mask\w*|tril|ids?|idx|index|indices|positions?|coords?|grid|steps?|counts?|counter|tracked|lengths?|"
    r"sizes?|shape|offsets?|bins?|vocab|tokens?|labels?|seed|state|version|enabled)(_|$)"
)

WEIGHT = re.compile(r"weight|kernel|_proj$|^[wW](\d|_|$)")


def claims(module: ModuleTensors) -> Iterator[Codes]:
    """The weight of a module in a format that is not read."""
    for label, marks in MARKS:
        if all(m in module.leaves for m in marks) and any(True for _ in module.coded()):
            yield _whole(module, label, marks[0])
            return
    for leaf, handle in module.coded():
        own = [other for other in module.leaves if other.startswith((f"{leaf}_", f"{leaf}."))]
        beside = [other for other in module.leaves if other != leaf and COMPANION.search(other)]
        siblings = own if own and (module.config.method or set(own) & set(beside)) else beside
        # Nobody trains whole numbers: a weight of them is codes, whatever the scale beside it is called.
        alone = handle.dtype in INTEGERS and WEIGHT.search(leaf) and not COMPANION.search(leaf)
        told = siblings or module.config.method or alone
        if len(handle.shape) >= 2 and not BUFFER.search(leaf) and told:
            parts = {"codes": handle, **{s: module.leaves[s] for s in siblings}}
            kind = "fp8" if handle.dtype in FLOAT8 else "integer codes" if handle.dtype in INTEGERS else handle.dtype
            bare = not siblings and len(module.leaves) == 1
            problem = "codes without the scales that belong to them" if bare else "its layout is not known"
            yield Codes(module.weight(leaf), module.config.method or kind, None, parts, problem)


def _whole(module: ModuleTensors, label: str, first: str) -> Codes:
    rest = {leaf: h for leaf, h in module.leaves.items() if leaf not in {first, "bias"}}
    return Codes(module.named("weight"), label, None, {"codes": module.leaves[first], **rest}, "its layout is not read")
