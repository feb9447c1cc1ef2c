"""Names in an adapter file: which module a tensor belongs to, and what it is there.

PEFT saves `base_model.model.<module>.lora_A.weight`; older versions and forks keep the adapter's own name
(`lora_A.default.weight`). A module that is wrapped twice (several `target_parameters`, `out_proj` of a
`MultiheadAttention`) has `.base_layer` in its path, once per wrapping.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from deltaw.errors import AdapterError
from deltaw.tensors.names import unwrap
from deltaw.types import Handle

LEAVES = "lora_embedding_A|lora_embedding_B|lora_A|lora_B|lora_E|lora_magnitude_vector|lora_diag"
LORA = re.compile(
    rf"^(?P<module>.*?)\.?(?<![^.])(?P<leaf>{LEAVES})(?:\.(?!weight$|bias$)(?P<adapter>[^.]+(?:\.(?!weight$|bias$)[^.]+)?))?"
    r"(?:\.(?P<kind>weight|bias))?$"
)
TOKENS = re.compile(r"^(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.[^.]+)?$")
SAVED = re.compile(r"^(?P<module>.+?)\.modules_to_save\.(?P<rest>.+)$")
# For training alone: MonteCLoRA's sampler, VeLoRA's backward projection, PEFT's copies of what it replaced.
TRAINING_ONLY = re.compile(
    r"\.(lora_monteclora_sampler|lora_velora_embed|original_module|ranknum|trainable_tokens_original)(\.|$)"
)
# What peft 0.17 and older made of the keys of an adapter that is called "lora".
CALLED_LORA = re.compile(r"^(?P<module>.+)_(?P<leaf>[AB])\.weight$")
# Leaves that some LoRA-like method stores beside its factors: without them B·A is not the update.
FOREIGN = re.compile(r"(^|\.)(lora|hada|lokr|dora|ia3|oft|boft|vera|glora|glokr)_[A-Za-z0-9_]+(\.|$)")


@dataclass
class LoraModule:
    """The LoRA tensors of one wrapping of one module.

    Attributes:
        path: The module, by the name that PEFT saw (`model.layers.0.self_attn.q_proj`).
        depth: How many other wrappings lie around this one.
        parts: Handles by leaf: `lora_A`, `lora_B`, `lora_B.bias`, ….
    """

    path: str
    depth: int = 0
    parts: dict[str, Handle] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """An adapter file, sorted.

    Attributes:
        modules: LoRA tensors by module.
        saved: Tensors that replace one of the base, by the base's name: `modules_to_save`, biases, embeddings.
        tokens: Trained rows of an embedding, by the module.
        training: Names of tensors that only training needs.
    """

    modules: tuple[LoraModule, ...]
    saved: Mapping[str, Handle]
    tokens: Mapping[str, Handle]
    training: tuple[str, ...]


def sort_tensors(tensors: Mapping[str, Handle], source: str) -> Contents:
    """Every tensor of a LoRA-like adapter in its place.

    Raises:
        AdapterError: A tensor is neither LoRA nor a saved weight, or two adapters share the file.
    """
    modules: dict[tuple[str, int], LoraModule] = {}
    saved: dict[str, Handle] = {}
    tokens: dict[str, Handle] = {}
    training: list[str] = []
    adapters: set[str] = set()
    called = adapter_names(tensors)
    bare = {unwrap(stored) for stored in tensors}
    for stored, handle in tensors.items():
        name = unwrap(stored)
        if TRAINING_ONLY.search(name):
            training.append(stored)
        elif lora := LORA.match(name):
            adapters |= {a for a in [lora["adapter"]] if a}
            path, depth = _place(lora["module"])
            leaf = lora["leaf"] + (".bias" if lora["kind"] == "bias" else "")
            parts = modules.setdefault((path, depth), LoraModule(path, depth)).parts
            if leaf in parts:
                raise AdapterError(
                    f"{source}: {stored!r} is there a second time; expected one adapter, save them one by one"
                )
            parts[leaf] = handle
        elif (short := CALLED_LORA.match(name)) and _both(short["module"], bare):
            path, depth = _place(short["module"])
            modules.setdefault((path, depth), LoraModule(path, depth)).parts[f"lora_{short['leaf']}"] = handle
        elif found := TOKENS.match(name):
            tokens[_place(found["module"])[0]] = handle
        elif FOREIGN.search(name):
            raise AdapterError(
                f"{source}: {stored!r} is not a tensor of LoRA as PEFT saves it, and B·A without it would be wrong; "
                "expected lora_A, lora_B, lora_embedding_A/B, lora_E or lora_magnitude_vector"
            )
        else:
            saved[saved_name(stored, called)] = handle
    if len(adapters) > 1:
        names = ", ".join(sorted(adapters))
        raise AdapterError(f"{source}: holds {len(adapters)} adapters ({names}); expected one, save them one by one")
    return Contents(tuple(modules.values()), saved, tokens, tuple(training))


def _both(module: str, names: set[str]) -> bool:
    """Whether both factors of an adapter that is called "lora" are there, and no weight would have that name."""
    return {f"{module}_A.weight", f"{module}_B.weight"} <= names and f"{module}.weight" not in names


def is_factor(name: str) -> bool:
    """Whether an unwrapped name is that of a LoRA tensor."""
    return "lora_" in name and LORA.match(name) is not None  # a plain search first: a whole model has many names


def adapter_names(names: Iterable[str]) -> frozenset[str]:
    """What a file calls its adapters: `default`, what stands in the keys of its factors, or beside originals."""
    bare = {unwrap(name) for name in names}
    found = {m["adapter"] for name in bare if (m := LORA.match(name)) and m["adapter"]}
    for kept in filter(None, map(SAVED.match, bare)):
        first, _, rest = kept["rest"].partition(".")
        if f"{kept['module']}.original_module.{rest}" in bare:
            found.add(first)
    return frozenset({"default", *found})


def saved_name(stored: str, adapters: Collection[str] = ("default",)) -> str:
    """The base's name of a tensor that an adapter stores whole (`modules_to_save`, biases, embeddings).

    Args:
        stored: Its name in the file.
        adapters: What the adapters of the file are called. PEFT leaves the name out, and what follows
            `modules_to_save` is then a module: `classifier.modules_to_save.dense.weight`.
    """
    name = unwrap(stored)
    if kept := SAVED.match(name):
        first, _, rest = kept["rest"].partition(".")
        name = f"{kept['module']}.{rest if rest and first in adapters else kept['rest']}"
    return _place(name)[0]


def looks_like_lora(names: Iterable[str]) -> bool:
    """Whether at least half of a file's tensors are LoRA factors, by their names."""
    names = list(names)
    single = re.compile(
        r"\.(lora_down|lora_up|lora_mid|alpha|dora_scale|lora\.(up|down)|lora_linear_layer\.(up|down))(\.weight)?$"
        r"|\.(hada|lokr|oft|glora)_\w+(\.weight)?$|\.(diff|diff_b|w_norm|b_norm)$"
    )
    hits = sum(
        bool(LORA.match(unwrap(n)) or single.search(n) or re.search(r"_lora\.(up|down)\.weight$", n)) for n in names
    )
    return 0 < len(names) <= 2 * hits


def _place(path: str) -> tuple[str, int]:
    """A module's path without `.base_layer`, and how often that was in it."""
    parts = path.split(".")
    kept = [p for p in parts if p != "base_layer"]
    return ".".join(kept), len(parts) - len(kept)
