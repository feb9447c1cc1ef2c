"""Adapters of MLX and of llama.cpp, told in PEFT's words: the same factors under its names, the scale in a config.

MLX (`adapters.safetensors`): W·x + scale·(x·a)·b, so ΔW = scale·(a·b)ᵀ with `lora_a` (inputs, r) and `lora_b`
(r, outputs); `m` is DoRA's magnitude. GGUF: `….weight.lora_a` (r, inputs) and `….weight.lora_b` (outputs, r), scaled
by α/r; the rows of the queries' and keys' B lie in the order of ggml's rotary embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.checkpoints import Checkpoint
from deltaw.documents import Document
from deltaw.errors import AdapterError
from deltaw.tensors.layout import text_config
from deltaw.tensors.names import EMBEDDINGS
from deltaw.tensors.slices import Slice
from deltaw.types import Handle, JsonValue

if TYPE_CHECKING:
    from deltaw.checkpoints.gguf import GgufContents

MLX_FILE = "adapters.safetensors"
MLX = re.compile(r"^(?P<module>.+)\.(?P<leaf>lora_a|lora_b|m)$")
GGUF = re.compile(r"^(?P<weight>.+\.(weight|bias))\.(?P<leaf>lora_a|lora_b)$")
SWITCH = re.compile(r"\.(?:switch_mlp|experts)\.(?=[^.]+$)")  # MLX stacks experts under this name


@dataclass(frozen=True)
class Translated:
    """An adapter in PEFT's words.

    Attributes:
        tensors: Handles by PEFT's names.
        config: An adapter_config.json of PEFT's.
        format: What it was: `mlx lora`, `gguf lora`.
        permuted: The names of the factors whose rows are in ggml's order, and whether they are the keys'.
    """

    tensors: Mapping[str, Handle]
    config: Document
    format: str
    permuted: Mapping[str, bool]


def mlx(path: Path, opened: Checkpoint, config: Document) -> Translated:
    """An adapter as mlx-lm saves it.

    Raises:
        AdapterError: Its config does not say its scale, or a factor is missing or of another shape.
    """
    factors: dict[str, dict[str, Handle]] = {}
    tensors: dict[str, Handle] = {}
    for name, handle in opened.tensors.items():
        found = MLX.match(name)
        if found is None:
            tensors[name] = handle  # a weight that is stored whole (fine_tune_type full)
        else:
            factors.setdefault(found["module"], {})[found["leaf"]] = handle
    ranks: dict[str, int] = {}
    for module, own in factors.items():
        if not {"lora_a", "lora_b"} <= own.keys():
            raise AdapterError(
                f"{path}: {module} has {' and '.join(own)} only; expected lora_a and lora_b; copy it again"
            )
        ranks |= _mlx_module(module, own, tensors, path)
    scale = _mlx_scale(config) if factors else 1.0
    return Translated(tensors, _config(ranks, dict.fromkeys(ranks, scale), path), "mlx lora", {})


def _mlx_module(module: str, own: Mapping[str, Handle], tensors: dict[str, Handle], path: Path) -> dict[str, int]:
    """Put the factors of one module among the tensors; returns its rank, of a stack of experts that of each.

    Raises:
        AdapterError: They do not multiply.
    """
    a, b = own["lora_a"], own["lora_b"]
    if len(a.shape) == 3 and len(b.shape) == 3:  # experts: (E, r, inputs), (E, outputs, r)
        return _experts(SWITCH.sub(".experts.", module), a, b, tensors, path)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        raise AdapterError(f"{path}: {module} has lora_a {a.shape} and lora_b {b.shape}, which do not multiply")
    kind = "lora_embedding_" if EMBEDDINGS.search(module) else "lora_"
    suffix = "" if kind == "lora_embedding_" else ".weight"
    tensors[f"{module}.{kind}A{suffix}"] = Slice(a.name, a, transposed=True)
    tensors[f"{module}.{kind}B{suffix}"] = Slice(b.name, b, transposed=True)
    if "m" in own:
        tensors[f"{module}.lora_magnitude_vector"] = own["m"]
    return {module: a.shape[1]}


def _mlx_scale(config: Document) -> float:
    """The factor on a·b.

    Raises:
        AdapterError: The config does not say it.
    """
    own = config.inner("lora_parameters") or config
    if "scale" in own:
        return own.number("scale")
    if "alpha" in own and "rank" in own and own.whole("rank") > 0:
        return own.number("alpha") / own.whole("rank")
    raise AdapterError(
        f"{config.where}: no lora_parameters.scale, which says how MLX scales its factors; copy it from the training"
    )


def is_gguf_lora(names: Iterable[str]) -> bool:
    """Whether a file's tensors are llama.cpp's LoRA factors, by their names."""
    names = list(names)
    return bool(names) and all(map(GGUF.match, names))


def gguf_lora(path: Path, opened: GgufContents) -> Translated:
    """A LoRA as llama.cpp's convert_lora_to_gguf.py writes it.

    Raises:
        AdapterError: It is of an architecture whose names are not known, or a factor is missing.
    """
    from deltaw.checkpoints.gguf import ARCHITECTURES, renamed

    header = opened.header
    architecture = header.text("general.architecture")
    if header.text("adapter.type") not in {"", "lora"}:
        raise AdapterError(f"{path}: a GGUF adapter of type {header.text('adapter.type')[:40]!r}; only lora is read")
    if architecture not in ARCHITECTURES or ARCHITECTURES[architecture].interleaved:
        raise AdapterError(
            f"{path}: a GGUF adapter of the architecture {architecture[:60]!r}, whose names are not known here; give "
            "the PEFT adapter that it was made from"
        )
    factors: dict[str, dict[str, Handle]] = {}
    for name, handle in opened.tensors.items():
        found = GGUF.match(name)
        if found is None:
            raise AdapterError(f"{path}: {name[:80]!r} is not a factor of a LoRA; expected ….weight.lora_a and lora_b")
        factors.setdefault(found["weight"], {})[found["leaf"]] = handle
    tensors: dict[str, Handle] = {}
    ranks: dict[str, int] = {}
    permuted: dict[str, bool] = {}
    for weight, own in factors.items():
        if len(own) < 2:
            raise AdapterError(
                f"{path}: {weight} has {' and '.join(own)} only; expected lora_a and lora_b; copy it again"
            )
        module = renamed(weight, architecture).removesuffix(".weight")
        if not module:
            raise AdapterError(f"{path}: {weight[:80]!r} has no name in transformers; give the PEFT adapter instead")
        found_ranks = _gguf_module(module, own, tensors, path)
        ranks |= found_ranks
        if ARCHITECTURES[architecture].permuted and weight.endswith(("attn_q.weight", "attn_k.weight")):
            permuted[f"{module}.lora_B.weight"] = weight.endswith("attn_k.weight")
    alpha = header.number("adapter.lora.alpha") or 0.0
    scales = {module: alpha / r if alpha else 1.0 for module, r in ranks.items()}
    return Translated(tensors, _config(ranks, scales, path), "gguf lora", permuted)


def _gguf_module(module: str, own: Mapping[str, Handle], tensors: dict[str, Handle], path: Path) -> dict[str, int]:
    a, b = own["lora_a"], own["lora_b"]
    if len(a.shape) == 3 and len(b.shape) == 3:
        return _experts(module, a, b, tensors, path)
    embedding = bool(EMBEDDINGS.search(module))
    rank = a.shape[1 if embedding else 0] if len(a.shape) == 2 else 0
    if not rank or len(b.shape) != 2 or b.shape[1] != rank:
        raise AdapterError(f"{path}: {module} has lora_a {a.shape} and lora_b {b.shape}, which do not multiply")
    if embedding:  # (tokens, r) and (width, r)
        tensors[f"{module}.lora_embedding_A"] = Slice(a.name, a, transposed=True)
        tensors[f"{module}.lora_embedding_B"] = b
    else:
        tensors[f"{module}.lora_A.weight"] = a
        tensors[f"{module}.lora_B.weight"] = b
    return {module: rank}


def _experts(module: str, a: Handle, b: Handle, tensors: dict[str, Handle], path: Path) -> dict[str, int]:
    """The factors of stacked experts, (E, r, inputs) and (E, outputs, r), one by one.

    Raises:
        AdapterError: They do not multiply.
    """
    if a.shape[0] != b.shape[0] or a.shape[1] != b.shape[2]:
        raise AdapterError(f"{path}: {module} has lora_a {a.shape} and lora_b {b.shape}, which do not multiply")
    at, _, leaf = module.rpartition(".")
    ranks: dict[str, int] = {}
    for e in range(a.shape[0]):
        own = f"{at}.{e}.{leaf}"
        tensors[f"{own}.lora_A.weight"] = Slice(a.name, a, index=e)
        tensors[f"{own}.lora_B.weight"] = Slice(b.name, b, index=e)
        ranks[own] = a.shape[1]
    return ranks


def _config(ranks: Mapping[str, int], scales: Mapping[str, float], path: Path) -> Document:
    """PEFT's config of factors with these ranks and scales by module."""
    common = next(iter(ranks.values()), 1)
    same = all(r == common for r in ranks.values())
    scale = next(iter(scales.values()), 1.0)
    values: dict[str, JsonValue] = {"peft_type": "LORA", "r": common, "lora_alpha": scale * common}
    if not same:
        values["rank_pattern"] = {re.escape(module): r for module, r in ranks.items()}
        values["alpha_pattern"] = {re.escape(module): scales[module] * r for module, r in ranks.items()}
    return Document(values, str(path), AdapterError)


def arranged(
    tensors: Mapping[str, Handle], permuted: Mapping[str, bool], base: Checkpoint | None
) -> Mapping[str, Handle]:
    """The tensors with the rows of queries and keys in the base's order; without a base as they lie.

    Singular values do not depend on that order.

    Raises:
        AdapterError: The base's config does not say how many heads there are.
    """
    if base is None or not permuted:
        return tensors
    from deltaw.checkpoints.gguf import unpermuted

    config = text_config(base.config)
    heads = config.whole("num_attention_heads", 0)
    keys = config.whole("num_key_value_heads", 0) or heads
    if not heads:
        raise AdapterError(
            f"{base.source}: its config.json does not say num_attention_heads, which the rows of a GGUF adapter's "
            "queries and keys are ordered by; copy config.json to it"
        )
    new = {n: unpermuted(tensors[n], keys if own else heads, base.source) for n, own in permuted.items()}
    return {**tensors, **new}
