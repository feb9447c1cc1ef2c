"""A GGUF file as transformers' tensors: their names, their rows in transformers' order, and a config."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

from deltaw.checkpoints.gguf.arrangement import Shifted, interleaved, unpermuted
from deltaw.checkpoints.gguf.blocks import GRIDS, NUMBERS, dequantise, readable, sizes
from deltaw.checkpoints.gguf.header import Header, TensorInfo, read_header
from deltaw.checkpoints.gguf.names import ARCHITECTURES, NOT_WEIGHTS, ConverterRules, library, renamed
from deltaw.checkpoints.quantised.handle import QuantisedHandle
from deltaw.checkpoints.quantised.module import Codes, stored_as
from deltaw.checkpoints.stored import StoredHandle
from deltaw.checkpoints.unread import UnreadHandle
from deltaw.documents import Document
from deltaw.errors import CheckpointError
from deltaw.results.sources import FileStamp
from deltaw.tensors.slices import Slice
from deltaw.types import Handle, JsonValue, Reason, Skipped, counted

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
MOST_SHARDS = 10_000
OTHER = ConverterRules("")


class GgufContents(NamedTuple):
    """What a GGUF file, with all its shards, holds.

    Attributes:
        tensors: By transformers' names, where they are known.
        notes: What a reader should know.
        config: What its metadata says, in the words of config.json.
        companions: What is no weight.
        files: Its shards.
        adapter: Whether it says that it is an adapter.
        header: That of the first file.
    """

    tensors: dict[str, Handle]
    notes: tuple[str, ...]
    config: Document
    companions: dict[str, Skipped]
    files: tuple[Path, ...]
    adapter: bool
    header: Header


def open_gguf(path: Path) -> GgufContents:
    """A GGUF file and the shards that belong to it; headers only.

    Raises:
        CheckpointError: It is damaged, a shard is missing, or it says what its bytes cannot hold.
        MissingExtraError: The `gguf` package is not installed.
        OSError: It cannot be read.
    """
    library()
    return _opened(tuple(map(FileStamp.of, _shards(path))))


@functools.lru_cache(maxsize=8)
def _opened(stamps: tuple[FileStamp, ...]) -> GgufContents:
    files = tuple(Path(stamp.path) for stamp in stamps)
    headers = [read_header(file) for file in files]
    first = headers[0]
    architecture = first.text("general.architecture")
    changed = ARCHITECTURES.get(architecture, OTHER)
    adapter = first.text("general.type") == "adapter"
    tensors: dict[str, Handle] = {}
    companions: dict[str, Skipped] = {}
    own: list[str] = []
    for header in headers:
        _check(header)
        for info in header.tensors:
            stem = info.name.rpartition(".")[0]
            if stem in NOT_WEIGHTS:
                detail = "no weight: factors of the rotary embedding"
                companions[info.name] = Skipped(info.name, Reason.NOT_A_WEIGHT, detail)
                continue
            name = "" if adapter or not changed.model_type else _named(info, architecture, first)
            if not name:
                own.append(info.name)
                name = info.name
            if name in tensors:
                raise CheckpointError(f"{header.path}: {info.name!r} is there twice; copy or download it again")
            tensors[name] = _arranged(_handle(info, name, header), info.name, changed, first)
    notes = tuple(_notes(architecture, changed, tensors, own, adapter))
    return GgufContents(tensors, notes, _config(first, changed, tensors), companions, files, adapter, first)


def _shards(path: Path) -> tuple[Path, ...]:
    """All files of one model, the first of which holds the metadata.

    Raises:
        CheckpointError: One is missing.
    """
    found = SHARD.search(path.name)
    if found is None or not 1 < int(found[2]) <= MOST_SHARDS:
        return (path,)
    stem = path.name[: found.start()]
    files = tuple(path.with_name(f"{stem}-{i:05d}-of-{found[2]}.gguf") for i in range(1, int(found[2]) + 1))
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise CheckpointError(f"{path}: one of {len(files)} shards, and {missing.name} is not there; download it")
    return files


def _check(header: Header) -> None:
    """Refuse tensors that overlap or leave the file.

    Raises:
        CheckpointError: One does.
    """
    end = 0
    for info in sorted(header.tensors, key=lambda t: t.offset):
        size = _nbytes(info)
        if size is None:
            continue
        if info.offset < end or info.offset + size > header.size:
            what = "overlaps another" if info.offset < end else "ends behind the file"
            raise CheckpointError(
                f"{header.path}: not a complete GGUF file (the tensor {info.name[:80]!r} {what}; {header.size:,} "
                "bytes); copy or download it again"
            )
        end = info.offset + size


def _kind(info: TensorInfo) -> str:
    types = library().GGMLQuantizationType
    return str(types(info.kind).name) if info.kind in set(types) else f"type {info.kind}"


def _nbytes(info: TensorInfo) -> int | None:
    """Stored bytes; None where the type is not known, or its blocks do not fill the rows."""
    kind = _kind(info)
    if kind in NUMBERS:
        return prod(info.shape) * NUMBERS[kind][1]
    if kind.startswith("type "):
        return None
    weights, octets = sizes(kind)
    return prod(info.shape) // weights * octets if info.shape and info.shape[-1] % weights == 0 else None


def _handle(info: TensorInfo, name: str, header: Header) -> Handle:
    kind, size = _kind(info), _nbytes(info)
    if size is None or (kind not in NUMBERS and not readable(kind)):
        said = f"rows of {info.shape[-1]:,} weights" if info.shape and not kind.startswith("type ") else "its layout"
        detail = f"{said} cannot be read by the installed gguf package; convert it with llama-quantize to Q8_0 or F16"
        return UnreadHandle(name, info.shape, kind.lower(), size or 0, Reason.QUANTISED, kind.lower(), detail)
    if kind in NUMBERS:
        dtype, octets = NUMBERS[kind]
        return StoredHandle(name, info.shape, dtype, header.path, info.offset, octets)
    weights, octets = sizes(kind)
    row = info.shape[-1] // weights * octets
    stored = StoredHandle(name, (*info.shape[:-1], row), "uint8", header.path, info.offset, 1)
    label = kind.lower()
    codes = Codes(name, label, info.shape, {"codes": stored}, variant=kind, dequantise=dequantise)
    return QuantisedHandle(name, info.shape, label, codes)


def _named(info: TensorInfo, architecture: str, header: Header) -> str:
    """Transformers' name; GGUF's own where there is none, or where what it stands for is not known."""
    if architecture == "bert" and info.name.startswith("position_embd") and not _is_bert(header):
        return ""  # RoBERTa's first positions were cut off: its rows are others
    name = renamed(info.name, architecture)
    if architecture == "falcon" and any(".attn_norm_2." in t.name for t in header.tensors):
        name = name.replace(".input_layernorm.", ".ln_mlp.")  # of two norms side by side; alone it has the other name
    return name.removesuffix(".weight") if len(info.shape) == 3 and ".experts." in name else name


def _is_bert(header: Header) -> bool:
    return header.text("tokenizer.ggml.model") in {"", "bert"}


def _arranged(handle: Handle, stored: str, changed: ConverterRules, header: Header) -> Handle:
    """The tensor as transformers has it.

    Raises:
        CheckpointError: Its rows are not the heads that the metadata says.
    """
    if isinstance(handle, UnreadHandle):
        return handle
    leaf = stored.split(".")[-2] if "." in stored else ""
    if changed.permuted and leaf in {"attn_q", "attn_k"}:
        heads = _heads(header, keys=leaf == "attn_k")
        return _moved(handle, lambda stored: unpermuted(stored, heads, str(header.path)))
    if changed.interleaved and leaf == "attn_qkv":
        heads, keys = _heads(header, keys=False), _heads(header, keys=True)
        return _moved(handle, lambda stored: interleaved(stored, heads, keys, str(header.path)))
    if changed.norm_offset and stored.endswith("norm.weight"):
        return Shifted(handle, changed.norm_offset)
    if stored.endswith(changed.transposed) and len(handle.shape) == 2 and changed.transposed:
        return Slice(handle.name, handle, transposed=True)
    if leaf == "ffn_gate_inp_shexp" and len(handle.shape) == 1 and isinstance(handle, StoredHandle):
        return StoredHandle(  # the converter dropped a dimension of one
            handle.name, (1, *handle.shape), handle.dtype, handle.path, handle.offset, handle.itemsize
        )
    return handle


def _moved(handle: Handle, rows: Callable[[Handle], Handle]) -> Handle:
    """A tensor with its rows in another order. Rows of bytes are moved as rows of numbers are."""
    if isinstance(handle, QuantisedHandle):
        return handle.over(rows(handle.codes.parts["codes"]))
    return rows(handle)


def _heads(header: Header, *, keys: bool) -> int:
    architecture = header.text("general.architecture")
    own = header.whole(f"{architecture}.attention.head_count_kv") if keys else 0
    return own or header.whole(f"{architecture}.attention.head_count")


def _config(header: Header, changed: ConverterRules, tensors: dict[str, Handle]) -> Document:
    """What the metadata says, in the words of config.json; empty for an architecture that is not known."""
    if not changed.model_type:
        return Document()
    architecture = header.text("general.architecture")
    experts = header.whole(f"{architecture}.expert_count")
    values: dict[str, JsonValue] = {
        "model_type": "mixtral" if architecture == "llama" and experts else changed.model_type,
        "num_hidden_layers": header.whole(f"{architecture}.block_count"),
        "hidden_size": header.whole(f"{architecture}.embedding_length"),
        "num_attention_heads": _heads(header, keys=False),
        "num_key_value_heads": _heads(header, keys=True),
        "new_decoder_architecture": architecture == "falcon" and _heads(header, keys=True) > 1,  # groups of heads
        "head_dim": header.whole(f"{architecture}.attention.key_length"),
        "num_local_experts": experts,
    }
    known = {key: value for key, value in values.items() if value}
    if "model.embed_tokens.weight" in tensors or "transformer.wte.weight" in tensors:
        known["tie_word_embeddings"] = "lm_head.weight" not in tensors
    return Document(known, f"{header.path}: metadata")


def _notes(
    architecture: str, changed: ConverterRules, tensors: dict[str, Handle], own: list[str], adapter: bool
) -> Iterator[str]:
    forms: dict[str, int] = {}
    for handle in tensors.values():
        inner = handle.handle if isinstance(handle, Slice) else handle
        if isinstance(inner, QuantisedHandle):
            forms[inner.dtype] = forms.get(inner.dtype, 0) + 1
    for form, count in forms.items():
        yield stored_as(form, count)
        if form.upper() not in GRIDS:
            yield (
                f"{form} codes several weights together, and how far one of them may be off is not known: all of a "
                "difference counts as its noise, and no rank is claimed"
            )
    if adapter:
        return
    if not changed.model_type:
        said = architecture[:60] or "none"
        yield (
            f"GGUF's architecture {said!r} is not one whose changes are undone here: its tensors keep GGUF's names, "
            "and can be compared with those of another GGUF file"
        )
    elif own:
        shown = ", ".join(own[:3]) + (", …" if len(own) > 3 else "")
        what = counted(len(own), "tensor keeps its GGUF name", "tensors keep their GGUF names")
        yield f"{what}, because transformers has none for it ({shown})"
    undone = [
        "the rows of queries and keys are put back into transformers' order" if changed.permuted else "",
        "fused queries, keys and values are put back group by group" if changed.interleaved else "",
        f"{changed.norm_offset:g} is taken from the weights of norms" if changed.norm_offset else "",
        "Conv1D weights are turned round" if changed.transposed else "",
    ]
    said = "; ".join(filter(None, undone))
    if said:
        yield f"GGUF: {said}, as its converter changed them"
