"""Matrices that are stored fused or transposed: which outputs are q, k and v; which tensors are inputs × outputs.

Layouts by the modules of transformers: GPT-2 `c_attn` (thirds), Phi-3 `qkv_proj` (q, then k, then v, as many heads
as config.json says), GPT-NeoX and BLOOM `query_key_value` (interleaved by head), Falcon (by group of heads).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deltaw.tensors.names import is_expert_stack, unwrap

Ranges = tuple[tuple[int, int], ...]
CONV1D_MODULES = ("c_attn", "c_proj", "c_fc", "q_attn")
CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
INPUTS_FIRST_EXPERTS = frozenset({"llama4", "llama4_text", "gpt_oss"})


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config, which multimodal models nest."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def inputs_first(name: str, shape: tuple[int, ...], config: Mapping[str, Any], conv1d: bool) -> bool:
    """Whether a tensor is stored inputs × outputs: transformers' `Conv1D`, and some models' experts."""
    leaf = unwrap(name).split(".")
    if len(shape) == 2:
        return conv1d and leaf[-1] == "weight" and len(leaf) > 1 and leaf[-2] in CONV1D_MODULES
    return is_expert_stack(name, shape) and text_config(config).get("model_type") in INPUTS_FIRST_EXPERTS


def uses_conv1d(config: Mapping[str, Any], shapes: Iterable[tuple[str, tuple[int, ...]]]) -> bool:
    """Whether a model's `c_*` modules are transformers' `Conv1D`.

    Where config.json is silent, a `c_attn` of h × 3h says it: as outputs × inputs that shape makes no sense.
    """
    model = config.get("model_type")
    if model is not None:
        return model in CONV1D_MODELS
    return any(n.endswith("c_attn.weight") and len(s) == 2 and s[1] == 3 * s[0] for n, s in shapes)


def parts(name: str, outputs: int, inputs: int, config: Mapping[str, Any]) -> dict[str, Ranges] | None:
    """The outputs that belong to each part of a fused weight or bias.

    Args:
        name: The tensor's name.
        outputs, inputs: Its size as outputs × inputs.
        config: The model's config.json.

    Returns:
        Ranges of outputs by part; None where the tensor is not fused, or its layout is not known.
    """
    modules = unwrap(name).split(".")
    config = text_config(config)
    if "gate_up_proj" in modules or "gate_up_proj_bias" in modules:
        return _halves(outputs, interleaved=config.get("model_type") == "gpt_oss")
    if "c_attn" in modules:
        return _split(("q", "k", "v"), (outputs // 3,) * 3, outputs) if outputs == 3 * inputs or not inputs else None
    if "qkv_proj" in modules or "Wqkv" in modules or "in_proj_weight" in modules:
        return _contiguous_heads(outputs, inputs, config)
    if "query_key_value" in modules:
        return _by_head(outputs, inputs, config)
    return None


def is_fused(name: str) -> bool:
    """Whether a tensor's name is that of a layer that `parts` knows as fused."""
    fused = {"gate_up_proj", "c_attn", "qkv_proj", "Wqkv", "in_proj_weight", "query_key_value"}
    return not fused.isdisjoint(unwrap(name).split("."))


def _split(names: tuple[str, ...], sizes: tuple[int, ...], outputs: int) -> dict[str, Ranges] | None:
    if sum(sizes) != outputs or not all(sizes):
        return None
    out: dict[str, Ranges] = {}
    start = 0
    for part, size in zip(names, sizes, strict=True):
        out[part] = ((start, start + size),)
        start += size
    return out


def _halves(outputs: int, *, interleaved: bool) -> dict[str, Ranges] | None:
    if outputs % 2:
        return None
    if interleaved:
        return {part: tuple((i, i + 1) for i in range(first, outputs, 2)) for first, part in enumerate(("gate", "up"))}
    return _split(("gate", "up"), (outputs // 2, outputs // 2), outputs)


def _heads(config: Mapping[str, Any], inputs: int) -> tuple[int, int, int] | None:
    """Query heads, key-value heads and the size of a head; None where config.json does not say."""
    heads = config.get("num_attention_heads", config.get("n_head"))
    if not isinstance(heads, int) or heads <= 0:
        return None
    kv = config.get("num_key_value_heads", config.get("num_kv_heads"))
    hidden = config.get("hidden_size", config.get("n_embd", inputs))
    size = config.get("head_dim") or hidden // heads
    return heads, kv if isinstance(kv, int) and kv > 0 else heads, size


def _contiguous_heads(outputs: int, inputs: int, config: Mapping[str, Any]) -> dict[str, Ranges] | None:
    found = _heads(config, inputs)
    if found is None:
        return _split(("q", "k", "v"), (outputs // 3,) * 3, outputs) if outputs == 3 * inputs else None
    heads, kv, size = found
    return _split(("q", "k", "v"), (heads * size, kv * size, kv * size), outputs)


def _by_head(outputs: int, inputs: int, config: Mapping[str, Any]) -> dict[str, Ranges] | None:
    found = _heads(config, inputs)
    if found is None:
        return None  # interleaved by an unknown number of heads: any guess would mix q, k and v
    heads, kv, size = found
    model = config.get("model_type")
    if model == "chatglm":
        groups = config.get("multi_query_group_num", kv) if config.get("multi_query_attention") else heads
        return _split(("q", "k", "v"), (heads * size, groups * size, groups * size), outputs)
    if model == "falcon" and not config.get("new_decoder_architecture"):
        if config.get("multi_query", True):
            return _split(("q", "k", "v"), (heads * size, size, size), outputs)
        kv = heads
    elif model != "falcon":
        kv = heads
    per = heads // kv
    if outputs != kv * (per + 2) * size:
        return None
    out: dict[str, list[tuple[int, int]]] = {"q": [], "k": [], "v": []}
    for group in range(kv):
        start = group * (per + 2) * size
        out["q"].append((start, start + per * size))
        out["k"].append((start + per * size, start + (per + 1) * size))
        out["v"].append((start + (per + 1) * size, start + (per + 2) * size))
    return {part: tuple(ranges) for part, ranges in out.items()}
