"""Layers that one side stores fused and the other apart: q, k and v in one matrix, gate and up in one.

Phi-3 has `qkv_proj` and `gate_up_proj`, timm `qkv`, where others have a matrix each; they lie below each other in this
order.
Cut, both sides have the same names. How many outputs each part has, the side that keeps them apart says; layouts that
interleave heads (`query_key_value`, CodeGen's `qkv_proj`) are not cut.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod

from deltaw.documents import Document
from deltaw.pairs.piece import Piece
from deltaw.tensors.layout import UNEVEN_QKV, text_config
from deltaw.tensors.slices import Slice
from deltaw.types import Handle

APART = (
    ("q_proj", "k_proj", "v_proj"),
    ("to_q", "to_k", "to_v"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
)
QKV, GATE_UP = frozenset({"qkv_proj", "qkv", "Wqkv", "to_qkv", "in_proj"}), frozenset({"gate_up_proj"})
FUSED = QKV | GATE_UP
PARTS = {3: ("q", "k", "v"), 2: ("gate", "up")}

Sizes = Mapping[str, tuple[int, ...] | None]
Split = tuple[tuple[str, ...], tuple[int, ...]]  # the modules that a fused one becomes, and their outputs


def cut_fused(tensors: Mapping[str, Handle], config: Document, other: Sizes) -> dict[str, dict[str, Piece]]:
    """The pieces of each fused tensor, by the names that they have where they are apart.

    Args:
        tensors: One side.
        config: Its config.json: some models interleave heads under a name that others do not.
        other: The sizes of the other side's tensors; of convolutions and factors outputs × inputs.
    """
    uneven = text_config(config).text("model_type") in UNEVEN_QKV
    leaves = GATE_UP if uneven else FUSED
    fused = {n: h for n, h in tensors.items() if _leaf(n)[1] in leaves and h.shape and n not in other}
    if not fused:
        return {}
    splits = _splits(other)
    out = {}
    for name, handle in fused.items():
        at, leaf, kind = _leaf(name)
        inputs = prod(handle.shape[1:]) if len(handle.shape) > 1 else None
        found = {
            s for s in splits[inputs] if sum(s[1]) == handle.shape[0] and len(s[0]) == (2 if leaf in GATE_UP else 3)
        }
        if len(found) == 1:
            out[name] = _pieces(name, handle, at, kind, *found.pop())
    return out


def _pieces(
    name: str, handle: Handle, at: str, kind: str, modules: tuple[str, ...], outputs: tuple[int, ...]
) -> dict[str, Piece]:
    out, start = {}, 0
    for module, part, size in zip(modules, PARTS[len(modules)], outputs, strict=True):
        own = Slice(name, handle, rows=range(start, start + size))
        out[f"{at}{module}{kind}"] = Piece(name, own, part)
        start += size
    return out


def _splits(sizes: Sizes) -> dict[int | None, set[Split]]:
    """How layers are kept apart, by their number of inputs; biases have none."""
    groups: dict[tuple[str, str], dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in sizes.items():
        at, leaf, kind = _leaf(name)
        if shape:
            groups[at, kind][leaf] = shape
    out: dict[int | None, set[Split]] = defaultdict(set)
    for group in groups.values():
        for modules in _complete(group):
            shapes = [group[m] for m in modules]
            inputs = {prod(s[1:]) if len(s) > 1 else None for s in shapes}
            if len(inputs) == 1:
                out[inputs.pop()].add((modules, tuple(s[0] for s in shapes)))
    return out


# Only the names are looked at: what they stand for may be anything.
def _complete(group: Mapping[str, object]) -> Iterable[tuple[str, ...]]:
    return (modules for modules in APART if all(m in group for m in modules))


def _leaf(name: str) -> tuple[str, str, str]:
    """What stands before the module's own name, that name, and `.weight` or `.bias`."""
    if name.endswith(("in_proj_weight", "in_proj_bias")):
        name = name.replace("in_proj_", "in_proj.")  # of `nn.MultiheadAttention`, which has no module for it
    module, dot, kind = name.rpartition(".")
    if kind not in {"weight", "bias"}:
        return name, "", ""
    at, other, leaf = module.rpartition(".")
    return at + other, leaf, dot + kind
