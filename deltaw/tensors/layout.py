"""Matrices that are stored fused or transposed: which outputs are q, k and v; which tensors are inputs × outputs.

Layouts by the modules of transformers: GPT-2 `c_attn` (thirds), Phi-3 `qkv_proj` (q, then k, then v, as many heads
as config.json says), GPT-NeoX and BLOOM `query_key_value` (interleaved by head), Falcon (by group of heads), CodeGen
`qkv_proj` (four blocks of q, v and k), GPT-BigCode `c_attn` (interleaved by head, or one head of k and v).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deltaw.documents import Document
from deltaw.tensors.names import CONV, kind, unwrap

Shapes = Iterable[tuple[str, tuple[int, ...]]]
Ranges = tuple[tuple[int, int], ...]
CONV1D_MODULES = ("c_attn", "c_proj", "c_fc", "q_attn")
CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
# The module that holds a stack; below `experts.0` lies one expert, and `action_expert` is the name of a whole model.
EXPERTS = re.compile(r"(^|[._])(experts|moe)(?=\.(?!\d))", re.IGNORECASE)
WEIGHT = re.compile(r"(^|\.)\w*weight(\.|_|$)")
ROUTER = re.compile(r"(^|\.)(gate|router)\.weight$")
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
INPUTS_FIRST_EXPERTS = frozenset({"llama4", "llama4_text", "gpt_oss"})
CODEGEN_BLOCKS = 4  # CodeGen was trained on four devices, and each block of rows is what one of them held
UNEVEN_QKV = frozenset({"codegen", "minimax"})  # their `qkv_proj` is not q, then k, then v


def text_config(config: Document) -> Document:
    """The language model's part of a config, which multimodal models nest."""
    return config.inner("text_config") or config


def ties_head(config: Document) -> bool:
    """Whether a model's config says that its head is its input embedding: one tensor for both."""
    return config.flag("tie_word_embeddings") or text_config(config).flag("tie_word_embeddings")


@dataclass(frozen=True)
class Layout:
    """How one checkpoint stores its matrices.

    Attributes:
        config: Its config.json, or the other side's where it has none.
        conv1d: Whether its `c_*` modules are transformers' `Conv1D`, inputs × outputs.
        stacks: The names of its 3-D tensors that are stacks of experts.
    """

    config: Document
    conv1d: bool = False
    stacks: frozenset[str] = frozenset()

    @staticmethod
    def of(shapes: Shapes, config: Document) -> Layout:
        """What the names and shapes of a checkpoint's tensors and its config say."""
        known = list(shapes)
        return Layout(config, uses_conv1d(config, known), expert_stacks(known, config))

    def inputs_first(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is stored inputs × outputs: transformers' `Conv1D`, and some models' experts."""
        leaf = unwrap(name).split(".")
        if len(shape) == 2:
            return self.conv1d and leaf[-1] == "weight" and len(leaf) > 1 and leaf[-2] in CONV1D_MODULES
        return name in self.stacks and text_config(self.config).text("model_type") in INPUTS_FIRST_EXPERTS


def uses_conv1d(config: Document, shapes: Shapes) -> bool:
    """Whether a model's `c_*` modules are transformers' `Conv1D`.

    A `c_attn` of h × 3h says it, and one of 3h × h denies it, whatever config.json says: nanoGPT trains the hub's GPT-2
    with `Linear`. Where there is none, the model's type decides.
    """
    for name, shape in shapes:
        if name.endswith("c_attn.weight") and len(shape) == 2 and 3 in (shape[0] / shape[1], shape[1] / shape[0]):
            return shape[1] == 3 * shape[0]
    return config.text("model_type") in CONV1D_MODELS


def expert_stacks(shapes: Shapes, config: Document) -> frozenset[str]:
    """The 3-D tensors that are stacks of experts: by their name, by config.json, or by the router beside them.

    Everything else of three dimensions is a convolution's weight, however long its kernel: an STFT basis of 258×1×256
    has no experts, and an expert may have convolutions. A parameter that is no module's weight and begins with 1
    (`query_tokens`, a table of positions) is one matrix behind the dimension of a batch.
    """
    known = [(name, shape) for name, shape in shapes if len(shape) in {2, 3}]
    counts = _numbers_of_experts(config)
    routers = {
        (unwrap(name).rsplit(".", 2)[0], shape[0])
        for name, shape in known
        if len(shape) == 2 and ROUTER.search(unwrap(name)) and unwrap(name).count(".") > 1
    }
    return frozenset(
        name
        for name, shape in known
        if len(shape) == 3
        and not CONV.search(name)
        and (
            EXPERTS.search(name)
            or (shape[0] == 1 and (kind(name, 3) == "embedding" or not WEIGHT.search(name)))
            or shape[0] in counts
            or routers & _beside(unwrap(name), shape[0])
        )
    )


def _numbers_of_experts(config: Document) -> frozenset[int]:
    counts = (text_config(config).whole(key, 0) for key in EXPERT_COUNTS)
    return frozenset(n for n in counts if n > 1)


def _beside(name: str, experts: int) -> set[tuple[str, int]]:
    """The modules around a tensor in which a router for so many experts would stand."""
    parts = name.split(".")
    return {(".".join(parts[:-drop]), experts) for drop in (1, 2) if len(parts) > drop}


def parts(name: str, outputs: int, inputs: int, config: Document) -> dict[str, Ranges] | None:
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
        return _halves(outputs, interleaved=config.text("model_type") == "gpt_oss")
    model = config.text("model_type")
    if "c_attn" in modules and model == "gpt_bigcode":
        return _by_head(outputs, inputs, config)
    if "qkv_proj" in modules and model in UNEVEN_QKV:
        return _codegen_blocks(outputs) if model == "codegen" else _by_head(outputs, inputs, config)
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


def _heads(config: Document, inputs: int) -> tuple[int, int, int] | None:
    """Query heads, key-value heads and the size of a head; None where config.json does not say."""
    heads = config.whole("num_attention_heads", config.whole("n_head", 0))
    if heads <= 0:
        return None
    kv = config.whole("num_key_value_heads", config.whole("num_kv_heads", 0))
    hidden = config.whole("hidden_size", config.whole("n_embd", inputs))
    size = config.whole("head_dim", 0) or hidden // heads
    return (heads, kv if kv > 0 else heads, size) if size > 0 else None


def _contiguous_heads(outputs: int, inputs: int, config: Document) -> dict[str, Ranges] | None:
    found = _heads(config, inputs)
    if found is None:
        return _split(("q", "k", "v"), (outputs // 3,) * 3, outputs) if outputs == 3 * inputs else None
    heads, kv, size = found
    return _split(("q", "k", "v"), (heads * size, kv * size, kv * size), outputs)


def _codegen_blocks(outputs: int) -> dict[str, Ranges] | None:
    part, rest = divmod(outputs, 3 * CODEGEN_BLOCKS)
    if rest:
        return None
    starts = {"q": 0, "k": 2 * part, "v": part}
    blocks = range(0, outputs, 3 * part)
    return {name: tuple((b + at, b + at + part) for b in blocks) for name, at in starts.items()}


def _by_head(outputs: int, inputs: int, config: Document) -> dict[str, Ranges] | None:
    found = _heads(config, inputs)
    if found is None:
        return None  # interleaved by an unknown number of heads: any guess would mix q, k and v
    heads, kv, size = found
    model = config.text("model_type")
    if model == "chatglm":
        groups = config.whole("multi_query_group_num", kv) if config.flag("multi_query_attention") else heads
        return _split(("q", "k", "v"), (heads * size, groups * size, groups * size), outputs)
    if model == "gpt_bigcode" or (model == "falcon" and not config.flag("new_decoder_architecture")):
        if config.flag("multi_query", True):
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
