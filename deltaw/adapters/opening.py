"""What is an adapter, and opening one: its config and the headers of its tensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltaw.adapters import variants
from deltaw.adapters.adapter import Adapter
from deltaw.adapters.companions import names_beside, with_companions
from deltaw.adapters.initial import CONFIG, find_initial, open_initial
from deltaw.adapters.keys import looks_like_lora
from deltaw.adapters.translated import MLX_FILE, Translated, gguf_lora, is_gguf_lora, mlx
from deltaw.adapters.wrapped import as_checkpoint, has_factors, is_wrapped
from deltaw.checkpoints import Checkpoint, locate, open_checkpoint
from deltaw.checkpoints.beside import beside
from deltaw.documents import Document, read_object
from deltaw.errors import AdapterError, CheckpointError
from deltaw.results.sources import FileStamp
from deltaw.tensors.names import PEFT_PREFIX

WEIGHTS = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapter_model.pt",
    "adapter_model.safetensors.index.json",  # in shards
    "adapter_model.bin.index.json",
)
SINGLE = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
INDEX = ".index.json"
FULL = ("model", "pytorch_model", "diffusion_pytorch_model", "consolidated")  # how files of whole models begin
WHOLE = "the state of a whole PEFT model is read as the adapter that it is, and its other weights against the base's"
Open = Callable[[Path], Checkpoint]


def is_adapter(path: Path, opened: Checkpoint | None = None) -> bool:
    """Whether a local path is an adapter: by its config, its file names, or a single file's tensor names.

    Args:
        path: A directory or file.
        opened: What a file holds, where it is open already: a header is parsed once.
    """
    if path.is_dir():
        return any(os.path.isfile(f"{path}/{n}") for n in (CONFIG, *WEIGHTS, *SINGLE))  # noqa: PTH113 (a tenth of Path's time)
    if path.name in {*WEIGHTS, MLX_FILE}:
        return True
    if not path.is_file():
        return False
    try:
        names = (opened or open_checkpoint(path)).tensors
        return is_gguf_lora(names) or (looks_like_lora(names) and not is_wrapped(names))
    except CheckpointError:
        return False  # whoever opens it as a checkpoint says what is wrong with it


def open_adapter(path: Path, open_tensors: Open = open_checkpoint) -> Adapter:
    """Open an adapter: a directory of PEFT or MLX (or the weights in it), or a kohya, diffusers or GGUF file.

    Args:
        path: A local path.
        open_tensors: Opens one file or directory of tensors, headers only.

    Raises:
        AdapterError: It is incomplete, malformed, or of a method that has no ΔW.
        CheckpointError: The tensors cannot be opened.
    """
    if path.is_file() and path.name in {*WEIGHTS, MLX_FILE}:
        path = path.parent
    if (path / MLX_FILE).is_file() and not any((path / n).is_file() for n in WEIGHTS):
        return _open_mlx(path, open_tensors)
    if path.is_dir() and any((path / n).is_file() for n in (CONFIG, *WEIGHTS)):
        return _open_peft(path, open_tensors)
    return _open_single(path, open_tensors)


def open_base(source: Any) -> Checkpoint:
    """Open the base of an analysis or of a merge, which has to be a full checkpoint.

    Raises:
        AdapterError: It is an adapter, which comes second.
        CheckpointError: It cannot be found or opened.
    """
    here = locate(source)[0] if isinstance(source, (str, Path)) else None
    opened = open_checkpoint(source) if here is None or not here.is_dir() else None
    if here is not None and is_adapter(here, opened) and not _holds_model(here):
        found = open_adapter(here)
        trained = f", trained on {found.base_name}" if found.base_name else ""
        raise AdapterError(
            f"{source}: an adapter{trained}, where the base is expected; the full checkpoint comes first, the adapter "
            "second"
        )
    return opened or open_checkpoint(source)


def _holds_model(path: Path) -> bool:
    """Whether a directory with an adapter in it also holds a full checkpoint."""
    names = [p.name for p in path.iterdir()] if path.is_dir() else []
    return any(n.endswith((".index.json", *SUFFIXES)) and n.startswith(FULL) for n in names)


def not_an_adapter(source: Any) -> str:
    """What to say of something that was to be an adapter and is none: what its names look like, and the way out."""
    try:
        names = list(open_checkpoint(source).tensors)
    except CheckpointError as e:
        return str(e)
    foreign = next((n for n in names if re.search(r"lora|lokr|hada|adapter", n, re.IGNORECASE)), None)
    if foreign is None:
        return "give BASE and FT"
    return (
        f"{source}: {foreign!r} looks like an adapter's, in a layout that is not read; expected PEFT's "
        "(adapter_config.json, lora_A), kohya's (lora_down) or diffusers' (lora_A under a component)"
    )


def missing_base(error: CheckpointError, adapter: Adapter) -> str:
    """What to say where the base that an adapter was to be laid on cannot be opened: it names both."""
    trained = f"an adapter trained on {adapter.base_name}" if adapter.base_name else "an adapter"
    return f"{error}; {adapter.source} is {trained}: give the base that it was trained on"


def _open_peft(path: Path, open_tensors: Open) -> Adapter:
    if not (path / CONFIG).is_file():
        have = next(n for n in WEIGHTS if (path / n).is_file())
        raise AdapterError(
            f"{path}: {have} but no {CONFIG}, which says how it is scaled; copy both from the training run"
        )
    weights = next((path / n for n in WEIGHTS if (path / n).is_file()), None)
    config = _config(path)
    if weights is None:
        return _open_whole_in(path, config, open_tensors)
    tensors, more = with_companions(path, open_tensors(weights), open_tensors)
    if weights.name.endswith(INDEX):
        return _peft(path, config, tensors, (), open_tensors)
    read = [weights, *more]
    adapter = _peft(path, config, tensors, beside(path, read, tensors.tensors), open_tensors)
    return replace(adapter, beside=names_beside(path, read))


def _config(folder: Path) -> Document:
    """`adapter_config.json` of a directory.

    Raises:
        AdapterError: It cannot be read, or names no method.
    """
    config = read_object(folder / CONFIG, error=AdapterError)
    if "config" in config and "peft_type" not in config:
        raise AdapterError(
            f"{config.where}: an adapter of the adapters library (AdapterHub), whose layout is not read; merge it "
            "there (merge_adapter), and give the merged checkpoint"
        )
    config.text("peft_type", None)
    return config


def _open_whole_in(path: Path, config: Document, open_tensors: Open) -> Adapter:
    """The whole PEFT model in a directory with a config and without an adapter's own weights.

    Raises:
        AdapterError: There is none.
    """
    missing = f"{path}: {CONFIG} but no weights; expected {WEIGHTS[0]} or {WEIGHTS[1]} beside it"
    try:
        opened = open_tensors(path)
    except CheckpointError as e:
        raise AdapterError(missing) from e
    if not has_factors(opened.tensors):
        raise AdapterError(missing)
    return _peft(path, config, opened, (WHOLE,), open_tensors)


def open_whole(source: Any, opened: Checkpoint) -> Checkpoint | Adapter:
    """A checkpoint as what it is: the state of a whole PEFT model is an adapter, or a model under other names.

    Args:
        source: What it was opened from: a path, or a PEFT model that is in memory.
        opened: The checkpoint.

    Raises:
        AdapterError: It has factors, and no config says how they are scaled.
    """
    if not is_wrapped(opened.tensors):
        return opened
    if not has_factors(opened.tensors):
        return as_checkpoint(opened)
    folder = Path(opened.source)
    configs = getattr(source, "peft_config", None)
    if isinstance(configs, Mapping) and configs:
        kept = next(iter(configs.values())).to_dict()
        values = json.loads(json.dumps(kept, default=lambda value: sorted(value)))
        config = Document(values, f"{opened.source}: peft_config", AdapterError)
    else:
        folder = folder.parent if folder.is_file() else folder
        if not (folder / CONFIG).is_file():
            raise AdapterError(
                f"{opened.source}: the state of a whole PEFT model, with LoRA factors, but there is no {CONFIG}, which "
                "says how they are scaled; copy it from the training run to the same directory"
            )
        config = _config(folder)
    adapter = _peft(folder, config, opened, (WHOLE,), open_checkpoint)
    return replace(adapter, source=opened.source, revision=opened.revision)


def adapter_in_memory(tensors: Checkpoint, config: Document) -> Adapter:
    """An adapter of PEFT that nobody wrote to a file.

    Args:
        tensors: As `adapter_model.safetensors` would name them.
        config: What `adapter_config.json` would say.

    Raises:
        AdapterError: It is of a method that has no ΔW.
    """
    found = _peft(Path(tensors.source), config, tensors, (), open_checkpoint)
    return replace(found, source=tensors.source)


def _peft(path: Path, config: Document, tensors: Checkpoint, others: tuple[str, ...], open_tensors: Open) -> Adapter:
    """An adapter of PEFT, from its config and tensors."""
    kind = config.text("peft_type", None)
    notes, initial = (*tensors.notes, *others), None
    own = (FileStamp.of(path / CONFIG),) if (path / CONFIG).is_file() else ()
    files = (*own, *tensors.files)
    if kind in {"LORA", "ADALORA"}:
        notes += variants.check(config, str(path))
        start = _initial(path, config, open_tensors)
        if start is not None:
            initial, note, more = start
            notes, files = (*notes, note), (*files, *more)
    return Adapter(
        source=str(path),
        format=f"peft {_method(config)}",
        tensors=tensors.tensors,
        config=config,
        base_name=config.text("base_model_name_or_path") or None,
        notes=notes,
        files=files,
        initial=initial,
    )


def _initial(path: Path, config: Document, open_tensors: Open) -> tuple[Any, str, tuple[FileStamp, ...]] | None:
    # The stored initial adapter where ΔW needs one, a note on it, and its files.
    init = variants.changed_init(config, str(path))
    if init is None or init == "loftq":
        return None
    if config.says("use_dora"):
        raise AdapterError(
            f"{path}: use_dora with init_lora_weights {init!r}; its ΔW against the original base is not known"
        )
    found = find_initial(path, init)
    if found is None:
        return None
    note = f"{init} took its initial adapter out of the base: ΔW = B·A − B0·A0, with {found.name} as B0 and A0"
    initial, files = open_initial(found, open_tensors)
    return initial, note, files


def _open_renamed(weights: Path, opened: Checkpoint, open_tensors: Open) -> Adapter:
    """A file of PEFT's under another name: nothing in it says how it is scaled, its config does.

    Raises:
        AdapterError: There is none.
    """
    folder = weights.parent
    if not (folder / CONFIG).is_file():
        raise AdapterError(
            f"{weights}: PEFT's LoRA factors, but no {CONFIG} beside them, which says how they are scaled; copy it "
            "from the training run, or write one with lora_alpha equal to r if whoever loads them takes a scale of 1"
        )
    return replace(_peft(folder, _config(folder), opened, (), open_tensors), source=str(weights))


def _open_mlx(path: Path, open_tensors: Open) -> Adapter:
    """An adapter of MLX: its factors in `adapters.safetensors`, its scale in `adapter_config.json`.

    Raises:
        AdapterError: Its config is missing or does not say its scale.
    """
    if not (path / CONFIG).is_file():
        raise AdapterError(
            f"{path}: {MLX_FILE} but no {CONFIG}, which says how it is scaled; copy both from the training"
        )
    own = read_object(path / CONFIG, error=AdapterError)
    opened = open_tensors(path / MLX_FILE)
    others = beside(path, [path / MLX_FILE], opened.tensors)
    base = own.values.get("model")
    files = (FileStamp.of(path / CONFIG), *opened.files)
    return _translated(mlx(path, opened, own), str(path), (*opened.notes, *others), files, base)


def _translated(
    found: Translated, source: str, notes: tuple[str, ...], files: tuple[FileStamp, ...], base: object = None
) -> Adapter:
    """An adapter that is told in PEFT's words."""
    return Adapter(
        source=source,
        format=found.format,
        tensors=found.tensors,
        config=found.config,
        base_name=base if isinstance(base, str) else None,
        notes=notes,
        files=files,
        permuted=found.permuted,
    )


def _method(config: Document) -> str:
    if config.says("use_mora"):
        return "mora"
    return "dora" if config.says("use_dora") else config.text("peft_type").lower()


def _open_single(path: Path, open_tensors: Open) -> Adapter:
    weights = path
    if path.is_dir():
        weights = next((path / n for n in SINGLE if (path / n).is_file()), path)
    if weights.is_dir():
        raise AdapterError(f"{path}: no adapter there; expected {CONFIG} with {WEIGHTS[0]}, or {SINGLE[0]}")
    opened = open_tensors(weights)
    whole = open_whole(path, opened)
    if isinstance(whole, Adapter):
        return whole
    if is_gguf_lora(opened.tensors):
        from deltaw.checkpoints.gguf import open_gguf

        return _translated(gguf_lora(path, open_gguf(weights)), str(path), opened.notes, opened.files)
    if not looks_like_lora(opened.tensors):
        first = next(iter(opened.tensors), "no tensor")
        raise AdapterError(
            f"{weights}: its tensors are not LoRA factors (the first is {first!r}); expected lora_A/B or lora_down/up"
        )
    from deltaw.adapters.singlefile import dialect, file_config

    if any(n.startswith(PEFT_PREFIX) for n in opened.tensors) and not any(n.endswith(".alpha") for n in opened.tensors):
        return _open_renamed(weights, opened, open_tensors)
    kind = dialect(opened.tensors)
    return Adapter(
        source=str(path),
        format=kind,
        tensors=opened.tensors,
        config=file_config(weights) if kind == "diffusers" else Document(),
        notes=opened.notes,
        files=(FileStamp.of(weights),),
    )
