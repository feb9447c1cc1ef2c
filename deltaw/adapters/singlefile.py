"""LoRA in one file: kohya (`lora_unet_….lora_down.weight`, α as a tensor) and diffusers (`unet.….lora_A.weight`).

kohya writes a module's path with `_` for every `.`; only the base's names can undo that. α/r is the scale; a file
without α means 1, as both loaders read it. LoCon's core (`lora_mid`) makes the A of a convolution. What trainers store
as a difference beside the factors (`diff`, `diff_b`, LyCORIS' `w_norm` and `b_norm`) is added as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path

from deltaw.adapters.base import Base, stored_transposed
from deltaw.adapters.dense import Added, Dora
from deltaw.adapters.factored import FactorSource, LowRank, Term, matrix, tucker
from deltaw.adapters.lora import Context
from deltaw.adapters.scaling import scale
from deltaw.checkpoints import why_unread
from deltaw.checkpoints.safetensors import read_metadata
from deltaw.documents import Document, parse_object
from deltaw.errors import AdapterError
from deltaw.types import Handle, Pair, Reason, Skipped, Update, View, is_update, times

LEAF = re.compile(
    r"^(?P<module>.+?)(?:\.lora|\.lora_linear_layer|_lora)?"
    r"\.(?P<leaf>lora_down|lora_up|lora_mid|lora_A|lora_B|lora_magnitude_vector|down|up|alpha|diff|diff_b|w_norm|b_norm)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?P<rest>\.weight|(?<=lora_B)\.bias)?$"
)
ROLE = {
    "lora_down": "A",
    "down": "A",
    "lora_A": "A",
    "lora_up": "B",
    "up": "B",
    "lora_B": "B",
    "lora_B.bias": "B.bias",
    "lora_mid": "mid",
    "lora_magnitude_vector": "magnitude",
    "alpha": "alpha",
    "diff": "weight",
    "w_norm": "weight",
    "diff_b": "bias",
    "b_norm": "bias",
}
BUNDLED = re.compile(r"^bundle_emb\.")  # OneTrainer puts the embeddings of new words into the same file
LYCORIS = (
    (re.compile(r"\.hada_"), "LoHa"),
    (re.compile(r"\.lokr_"), "LoKr"),
    (re.compile(r"\.oft_"), "OFT"),
    (re.compile(r"\.glora_|\.[ab][12]\.weight$"), "GLoRA"),
    (re.compile(r"\.(dora_scale|magnitude)$"), "DoRA with scales of its own"),
)
# kohya's prefixes and the components of a pipeline (or the parts of an original checkpoint) that they mean.
COMPONENTS = {
    "lora_unet": ("unet.", "transformer.", "model.diffusion_model."),
    "lora_transformer": ("transformer.",),
    "lora_te": ("text_encoder.", "cond_stage_model."),
    "lora_te1": ("text_encoder.", "conditioner.embedders.0."),
    "lora_te2": ("text_encoder_2.", "conditioner.embedders.1."),
    "lora_te3": ("text_encoder_3.",),
}
COMFYUI = re.compile(r"^(model\.)?diffusion_model\.")  # its name for whatever makes the pictures: unet, transformer
METADATA = "lora_adapter_metadata"


@dataclass
class Single:
    """The tensors of one module, by `ROLE`: `A` (down), `B` (up), `mid`, `alpha`, and what is added as it is stored."""

    key: str
    parts: dict[str, Handle] = field(default_factory=dict)


def dialect(names: Iterable[str]) -> str:
    """`kohya` where modules are written with underscores, else `diffusers`."""
    return "kohya" if any(n.split(".", 1)[0] in _prefixes(n) for n in names) else "diffusers"


def _prefixes(name: str) -> tuple[str, ...]:
    head = name.split(".", 1)[0]
    return (head,) if re.match(r"lora_(unet|transformer|te\d?)_", head) else ()


def file_config(path: Path) -> Document:
    """What diffusers wrote into the header: LoRA configs by component, empty in older files.

    Raises:
        CheckpointError: The header's entry is no text of JSON.
    """
    if path.suffix != ".safetensors":
        return Document()
    metadata = read_metadata(path)
    if METADATA not in metadata:
        return Document()
    text = metadata.text(METADATA)
    where = f"{path}: {METADATA}"
    out: dict[str, dict[str, object]] = {}  # foreign: the Document that it becomes reads it
    for key, value in parse_object(text, where, error=AdapterError).values.items():
        component, _, name = key.partition(".")
        out.setdefault(component, {})[name] = value
    return Document(out, where, AdapterError)


def single_file_pairs(context: Context, tensors: Mapping[str, Handle]) -> list[Pair | Skipped]:
    """The pairs of a single file; modules of a component that the base lacks are skipped.

    Raises:
        AdapterError: A tensor is not a LoRA factor, a factor is missing, or does not fit the base.
    """
    names = Mangled(context.base) if context.base is not None else None
    out: list[Pair | Skipped] = [
        Skipped(n, Reason.ONLY_IN_FT, "an embedding of new words that is bundled with the LoRA")
        for n in tensors
        if BUNDLED.match(n)
    ]
    for single in _modules(tensors, context.source):
        for have, lack, say in (("A", "B", "lora_up (B)"), ("B", "A", "lora_down (A)")):
            if have in single.parts and lack not in single.parts:
                raise AdapterError(
                    f"{context.source}: {single.key} has no {say}; both factors are needed, the file is incomplete"
                )
        if single.parts.keys().isdisjoint({"A", "weight", "bias"}):
            raise AdapterError(
                f"{context.source}: {single.key} has {', '.join(single.parts)} but no factors; it is incomplete"
            )
        out.extend(_module_pairs(context, single, names))
    return out


def expected_weights(tensors: Mapping[str, Handle], source: str) -> dict[str, tuple[int, ...] | None]:
    """The weights that the modules of a file change, with outputs × inputs where its factors tell.

    Raises:
        AdapterError: A tensor is not a LoRA factor.
    """
    out: dict[str, tuple[int, ...] | None] = {}
    for single in _modules(tensors, source):
        A, B = single.parts.get("A"), single.parts.get("B")
        plain = A is not None and B is not None and "mid" not in single.parts and bool(B.shape)
        out[f"{single.key}.weight"] = (B.shape[0], prod(A.shape[1:])) if plain and A and B else None
    return out


def _modules(tensors: Mapping[str, Handle], source: str) -> list[Single]:
    found: dict[str, Single] = {}
    for name, handle in tensors.items():
        if BUNDLED.match(name):
            continue
        match = LEAF.match(name)
        if match is None:
            method = next((f", it belongs to {what}" for at, what in LYCORIS if at.search(name)), "")
            raise AdapterError(
                f"{source}: {name!r} is not a LoRA factor{method}, and ΔW without it would be wrong; expected "
                "lora_down, lora_up, lora_mid, lora_A, lora_B, alpha and diff (LyCORIS' other methods are not read in "
                "one file: merge it with its own tool, and give the merged checkpoint)"
            )
        key = re.sub(
            r"\.processor\.(to_[qkv]|to_out)$",
            lambda m: "." + m[1] + (".0" if m[1] == "to_out" else ""),
            COMFYUI.sub("", match["module"]),
        )
        leaf = match["leaf"] + (".bias" if match["rest"] == ".bias" else "")
        found.setdefault(key, Single(key)).parts[ROLE[leaf]] = handle
    return list(found.values())


class Mangled:
    """The base's modules by kohya's spelling."""

    def __init__(self, base: Base) -> None:
        self.base = base

    @cached_property
    def _index(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in self.base.checkpoint.tensors:
            if name.endswith(".weight"):
                parts = name.removesuffix(".weight").split(".")
                for drop in range(min(5, len(parts))):
                    index.setdefault("_".join(parts[drop:]), []).append(name)
        return index

    def find(self, key: str) -> str | None:
        """The base tensor of a module: by its dotted path, or by kohya's key where one module alone fits."""
        match = re.match(r"(lora_(?:unet|transformer|te\d?))_(.+)$", key)
        if match is None or "." in key:
            return self.base.weight(key)
        found = self._index.get(match[2], [])
        own = [n for n in found if n.startswith(COMPONENTS.get(match[1], ()))]
        found = own or [n for n in found if not n.startswith(tuple(p for v in COMPONENTS.values() for p in v))]
        if not found:  # the text encoders of transformers 5 have no `text_model.` any more
            older = self._index.get(match[2].removeprefix("text_model_"), [])
            found = [n for n in older if n.startswith(COMPONENTS.get(match[1], ()))]
        return found[0] if len(found) == 1 else None


def _module_pairs(context: Context, single: Single, names: Mangled | None) -> Iterator[Pair | Skipped]:
    """The pairs of one module: of its factors, and of what is added to its weight and bias as it is stored.

    Raises:
        AdapterError: They do not fit each other, or the base.
    """
    name: str | None = f"{single.key}.weight"
    if names is not None:
        name = names.find(single.key)
    if name is None:
        yield Skipped(single.key, Reason.ONLY_IN_FT, "no module of the base has this name")
        return
    s = 1.0
    if "A" in single.parts:
        if "weight" in single.parts:
            raise AdapterError(
                f"{context.source}: {single.key} has factors and a difference of its own; expected one of them"
            )
        pair = _pair(context, single, name)
        yield pair
        assert is_update(pair.ft)
        s = pair.ft.scaling or 1.0
    bias = name.removesuffix(".weight") + ".bias"
    for role, at, factor in (("weight", name, 1.0), ("bias", bias, 1.0), ("B.bias", bias, s)):
        if role in single.parts:
            yield _added(context, single.parts[role], at, factor)


def _added(context: Context, handle: Handle, name: str, s: float) -> Pair:
    """What is added to a tensor as it is stored.

    Raises:
        AdapterError: The base has no such tensor, or one of another size.
    """
    base = None
    if context.base is not None:
        if name not in context.base.pieces:
            raise AdapterError(f"{context.source} adds to {name}, but {context.base.source} has no such tensor")
        base = context.base[name]
        if base.shape != handle.shape and why_unread(base) is None:
            raise AdapterError(
                f"{context.source} adds {_size(handle)} numbers to {name}, which is {_size(base)} in "
                f"{context.base.source}; give the base that the adapter was trained on"
            )
    shape = (handle.shape[0] if handle.shape else 1, prod(handle.shape[1:]))
    return Pair(name, base, Added(name, shape, handle, None, s, "lora"))


def _pair(context: Context, single: Single, name: str) -> Pair:
    """The pair of a module's factors.

    Raises:
        AdapterError: They do not multiply, or not to the base's weight.
    """
    A, B, mid = single.parts["A"], single.parts["B"], single.parts.get("mid")
    r = B.shape[1] if len(B.shape) > 1 else 0
    if (
        not r
        or len(A.shape) < 2
        or (mid is None and A.shape[0] != r)
        or (mid is not None and mid.shape[:2] != (r, A.shape[0]))
    ):
        raise AdapterError(
            f"{context.source}: the factors of {single.key} are {_size(A)} and {_size(B)}, which do not multiply"
        )
    s = _scale(context, single, r)
    inputs = prod(A.shape[1:]) if mid is None else A.shape[1] * prod(mid.shape[2:])
    right = FactorSource((A,), matrix) if mid is None else FactorSource((mid, A), tucker)
    shape, transposed = (B.shape[0], inputs), False
    base = context.base[name] if context.base is not None else None
    if context.base is not None and base is not None and why_unread(base) is None:
        fits = stored_transposed(base.shape, shape, Document(), context.base.inputs_first(name), True)
        if fits is None:
            raise AdapterError(
                f"{context.source} changes {single.key} as {shape[0]}×{shape[1]}, but {name} is {_size(base)} in "
                f"{context.base.source}; give the base that the adapter was trained on"
            )
        transposed = fits
    update: Update = LowRank(
        name, shape, (Term(s, FactorSource((B,), matrix), right),), "lora", r, s, transposed=transposed
    )
    if magnitude := single.parts.get("magnitude"):  # diffusers hands such a file to PEFT
        assert isinstance(update, LowRank)
        update = Dora(replace(update, adapter_type="dora"), magnitude)
    return Pair(name, base, update, View(transposed=transposed))


def _scale(context: Context, single: Single, r: int) -> float:
    alpha = single.parts.get("alpha")
    if alpha is not None:
        if prod(alpha.shape) != 1:
            raise AdapterError(f"{context.source}: α of {single.key} is {_size(alpha)}; expected one number")
        return float(alpha.read().double()) / r
    component, _, module = single.key.partition(".")
    config = context.config.inner(component)
    return scale(config, module) if "lora_alpha" in config else 1.0


def _size(handle: Handle) -> str:
    return times(handle.shape)
