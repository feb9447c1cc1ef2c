"""What a tensor's name says: where it sits (stack, layer, module), what it is (kind), what wraps it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

# Names whose place and kind are kept: each is asked for several times while two checkpoints are opened and paired.
NAMES = 1 << 14

# What DataParallel, torch.compile, FSDP, activation checkpointing, DeepSpeed and PEFT put into a name. `module` and
# `base_model.model` are names of real modules as well, and are taken out at the start only.
PEFT_PREFIX = "base_model.model."
WRAPPERS = ("module.", PEFT_PREFIX)
ANYWHERE = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")

TOKEN_HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output_projection|predictions\.decoder)\.|^output\.weight$")
CLASS_HEADS = re.compile(r"(^|\.)(classifier|score|qa_outputs)\.")
EMBEDDINGS = re.compile(r"(^|[._])(embed\w*|wte|wpe|tok_embeddings|shared|word_embeddings)(\.|$)")
NORMS = re.compile(r"(^|[._])(\w*norm\d*|ln|ln_\w+|\w+_ln|bn\d*)(\.|$)", re.IGNORECASE)
ATTENTION = re.compile(
    r"(^|[._])(\w*attn\w*|\w*attention\w*|[qkvo]_proj|qkv\w*|query_key_value|to_[qkv]|to_out)(\.|$)", re.IGNORECASE
)
MLP = re.compile(
    r"(^|[._])(\w*mlp\w*|ffn?|feed_forward|intermediate|experts?|\w*moe|fc\d?|c_fc|gate_proj|up_proj|down_proj|"
    r"dense_h_to_4h|dense_4h_to_h|DenseReluDense|wi(_\d)?|wo|w[123])(\.|$)"
)
BERT_OUTPUT = re.compile(r"\.layer\.\d+\.output\.dense(\.|$)")
CONV = re.compile(r"conv", re.IGNORECASE)
NUMBERS = re.compile(r"([0-9]+)")


class Place(NamedTuple):
    """Where a tensor sits in a model."""

    stack: str
    layer: int | None
    module: str


def unwrap(name: str) -> str:
    """The name without what wrappers put into it."""
    if "_module." in name or "_orig_mod." in name:
        name = ANYWHERE.sub("", name)
    while name.startswith(WRAPPERS):
        for prefix in WRAPPERS:
            name = name.removeprefix(prefix)
    return name


def natural(name: str) -> tuple[tuple[int, str | int], ...]:
    """A sort key by which `layers.2` comes before `layers.10`."""
    parts = NUMBERS.split(unwrap(name))  # text and numbers in turn
    return tuple([(0, int(p)) if i % 2 else (1, p) for i, p in enumerate(parts) if p])


@lru_cache(maxsize=NAMES)
def place(name: str) -> Place:
    """Stack, layer and module: `model.layers`, 3, `self_attn.q_proj` of `model.layers.3.self_attn.q_proj.weight`."""
    parts = unwrap(name).split(".")
    if len(parts) > 1 and parts[-1] == "weight":
        parts = parts[:-1]
    for i, part in enumerate(parts):
        if part.isdecimal() and part.isascii():
            return Place(".".join(parts[:i]), int(part), ".".join(parts[i + 1 :]) or "weight")
    return Place("", None, ".".join(parts))


@lru_cache(maxsize=NAMES)
def kind(name: str, ndim: int) -> str:
    """`attention`, `mlp`, `embedding`, `head`, `norm`, `conv` or `other`, by the names that are in use."""
    name = unwrap(name)
    leaf = name.rsplit(".", 2)[-2] if "." in name else name
    if NORMS.search(leaf):
        return "norm"
    if CONV.search(name) or ndim >= 4:
        return "conv"
    if TOKEN_HEADS.search(name) or CLASS_HEADS.search(name):
        return "head"
    if BERT_OUTPUT.search(name):
        return "mlp"
    for label, pattern in (("embedding", EMBEDDINGS), ("attention", ATTENTION), ("mlp", MLP)):
        if pattern.search(name):
            return label
    return "other"


def has_vocabulary(name: str, ndim: int) -> bool:
    """Whether the rows are tokens, which a resized vocabulary adds at the end; the rows of a classifier are not."""
    found = kind(name, ndim)
    return found == "embedding" or (found == "head" and not CLASS_HEADS.search(unwrap(name)))
