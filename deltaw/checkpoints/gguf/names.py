"""GGUF's tensor names as transformers' own, by the tables of the `gguf` package read backwards.

The tables give the many names that a tensor has in the libraries of the world; of these, each architecture has one
spelling. Only architectures are known whose converter's changes are undone here (`arrangement`): of all others the
tensors keep GGUF's names, and are compared with another GGUF file's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from deltaw.errors import MissingExtraError

# Beginnings of names, the first that a tensor has in the tables being its own.
DECODER = (
    "model.layers.{bid}.self_attn.q_norm",
    "model.layers.{bid}.self_attn.k_norm",
    "model.layers.{bid}.self_attn.",
    "model.layers.{bid}.mlp.",
    "model.layers.{bid}.",
    "model.embed_tokens",
    "model.norm",
    "lm_head",
)
GPT2 = ("transformer.h.{bid}.", "transformer.w", "transformer.ln_f", "lm_head")
FALCON = (
    "transformer.h.{bid}.self_attention.",
    "transformer.h.{bid}.mlp.dense",
    "transformer.h.{bid}.input_layernorm",
    "transformer.h.{bid}.ln_attn",
    "transformer.word_embeddings",
    "transformer.ln_f",
    "lm_head",
)
BLOOM = (
    "h.{bid}.self_attention.",
    "h.{bid}.mlp.dense",
    "h.{bid}.input_layernorm",
    "h.{bid}.post_attention_layernorm",
    "ln_f",
    "lm_head",
    "word_embeddings",
)
NEOX = ("gpt_neox.", "embed_out")
BERT = ("encoder.layer.{bid}.", "embeddings.")


@dataclass(frozen=True)
class ConverterRules:
    """What the converter of llama.cpp makes of a model, beside renaming its tensors.

    Attributes:
        model_type: transformers' word for it.
        spelling: How its tensors' names begin.
        permuted: Whether the rows of the queries and keys are in the order of ggml's rotary embedding.
        interleaved: Whether queries, keys and values, which are fused, were put apart.
        norm_offset: What was added to the weights of norms.
        transposed: Endings of the names of the weights that were turned round (`Conv1D`).
    """

    model_type: str
    spelling: tuple[str, ...] = DECODER
    permuted: bool = False
    interleaved: bool = False
    norm_offset: float = 0.0
    transposed: tuple[str, ...] = ()


ARCHITECTURES = {
    "llama": ConverterRules("llama", permuted=True),  # Mistral and Mixtral, too
    "mistral3": ConverterRules("ministral3", permuted=True),
    "qwen2": ConverterRules("qwen2"),
    "qwen2moe": ConverterRules("qwen2_moe"),
    "qwen3": ConverterRules("qwen3"),
    "qwen3moe": ConverterRules("qwen3_moe"),
    "gemma": ConverterRules("gemma", norm_offset=1.0),
    "gemma2": ConverterRules("gemma2", norm_offset=1.0),
    "gemma3": ConverterRules("gemma3_text", norm_offset=1.0),
    "phi3": ConverterRules(
        "phi3", ("model.layers.{bid}.self_attn.qkv_proj", "model.layers.{bid}.mlp.gate_up_proj", *DECODER)
    ),
    "starcoder2": ConverterRules("starcoder2", ("model.layers.{bid}.mlp.c_", *DECODER)),
    "gpt2": ConverterRules(
        "gpt2", GPT2, transposed=("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    ),
    "falcon": ConverterRules("falcon", FALCON, interleaved=True),
    "bloom": ConverterRules("bloom", BLOOM, interleaved=True),
    "gptneox": ConverterRules("gpt_neox", NEOX, interleaved=True),
    "bert": ConverterRules("bert", BERT),
}
# What is no weight of the model in transformers: factors of the rotary embedding.
NOT_WEIGHTS = ("rope_freqs", "rope_factors_long", "rope_factors_short")


def library() -> Any:
    """The `gguf` package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import gguf
    except ImportError as e:
        raise MissingExtraError(
            "GGUF files need the gguf package, which knows their types and names: pip install 'deltaw[gguf]'"
        ) from e
    return gguf


@cache
def _spelled(architecture: str) -> dict[str, str]:
    """Transformers' name of each of GGUF's, both without the block's number."""
    gguf = library()
    kind = next((k for k, word in gguf.MODEL_ARCH_NAMES.items() if word == architecture), None)
    if kind is None:
        return {}
    tables = gguf.TensorNameMap
    out: dict[str, str] = {}
    for tensor in gguf.MODEL_TENSORS[kind]:
        names = tables.block_mappings_cfg.get(tensor) or tables.mappings_cfg.get(tensor) or ()
        own = _own(names, ARCHITECTURES[architecture].spelling)
        if own:
            out[gguf.TENSOR_NAMES[tensor]] = own
    return out


def _own(names: Sequence[str], spelling: Sequence[str]) -> str:
    for beginning in spelling:
        for name in names:
            if name.startswith(beginning):
                return name
    return ""


def renamed(name: str, architecture: str) -> str:
    """Transformers' name of a tensor; an empty one where the tables have none.

    Raises:
        MissingExtraError: The `gguf` package is not installed.
    """
    stem, _, leaf = name.rpartition(".")
    head, block, rest = "", "", stem
    if stem.startswith("blk."):
        head, block, rest = stem.split(".", 2) if stem.count(".") >= 2 else ("", "", stem)
    key = f"{head}.{{bid}}.{rest}" if head else rest
    found = _spelled(architecture).get(key)
    return f"{found.replace('{bid}', block)}.{leaf}" if found and leaf in {"weight", "bias"} else ""
