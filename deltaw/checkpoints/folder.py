"""Which files of a directory are the checkpoint: one file, shards with an index, or a pipeline's components."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from deltaw.checkpoints import pickles, safetensors
from deltaw.checkpoints.checkpoint import Checkpoint
from deltaw.checkpoints.memory import MemoryHandle
from deltaw.checkpoints.stored import StoredHandle, file_identity, read_json
from deltaw.checkpoints.unread import UnreadHandle, renamed, without_codes
from deltaw.errors import CheckpointError
from deltaw.types import Handle, Skipped

INDEX_FIRST = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
FILE_FIRST = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
)
NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})\.\w+$")
# What trainers leave beside the weights; none of it is weights.
NOT_WEIGHTS = re.compile(r"^(training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*|trainer_state)\.\w+$")

Tensors = dict[str, Handle]


def open_file(path: Path) -> Checkpoint:
    """One safetensors or PyTorch file.

    Raises:
        CheckpointError: The file cannot be used, or its suffix says that it is neither.
    """
    tensors, notes = _read(path)
    kind = "safetensors" if path.suffix == safetensors.SUFFIX else "pytorch"
    config = read_json(path.parent / "config.json") if (path.parent / "config.json").is_file() else {}
    return Checkpoint(str(path), kind, tensors, config, notes=notes, identity=file_identity(path))


def open_folder(path: Path) -> Checkpoint:
    """A directory with a model: the index decides where there is one, then the usual file names.

    Raises:
        CheckpointError: There is no checkpoint, more than one, or a part of it is missing.
    """
    if (path / "model_index.json").is_file():
        return _open_pipeline(path)
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    for suffix, kind in ((".safetensors.index.json", "safetensors"), (".bin.index.json", "pytorch")):
        indices = sorted(p for p in path.iterdir() if p.name.endswith(suffix))
        if indices:
            chosen = _one(indices, INDEX_FIRST, path)
            return _open_index(chosen, f"{kind} (sharded)", config)
        files = sorted(p for p in path.iterdir() if _is_weights(p, kind))
        if files:
            return _open_files(files, kind, path, config)
    raise CheckpointError(
        f"{path}: no checkpoint there; expected model.safetensors, pytorch_model.bin, shards with an index, "
        "model_index.json or an adapter"
    )


def _is_weights(path: Path, kind: str) -> bool:
    suffixes = (safetensors.SUFFIX,) if kind == "safetensors" else pickles.SUFFIXES
    return path.is_file() and path.suffix in suffixes and not NOT_WEIGHTS.match(path.name)


def _is_part(path: Path) -> bool:
    return path.name.endswith(".index.json") or _is_weights(path, "safetensors") or _is_weights(path, "pytorch")


def _read(path: Path) -> tuple[Tensors, tuple[str, ...]]:
    if path.suffix == safetensors.SUFFIX:
        return dict(safetensors.read_header(path)), ()
    if path.suffix in pickles.SUFFIXES:
        return pickles.read_pickle(path)
    known = ", ".join((safetensors.SUFFIX, *pickles.SUFFIXES))
    raise CheckpointError(f"{path}: files of this kind are not read; expected one of {known}, or a directory")


def _one(candidates: list[Path], preferred: tuple[str, ...], folder: Path) -> Path:
    for name in preferred:
        for path in candidates:
            if path.name == name:
                return path
    if len(candidates) == 1:
        return candidates[0]
    names = ", ".join(p.name for p in candidates[:4])
    raise CheckpointError(f"{folder}: {len(candidates)} checkpoints there ({names}); give the path of the one to read")


def _open_files(files: list[Path], kind: str, folder: Path, config: dict[str, object]) -> Checkpoint:
    numbered = [NUMBERED.search(p.name) for p in files]
    if len(files) > 1 and all(numbered):
        totals = {m.group(2) for m in numbered if m}
        if len(totals) == 1 and len(files) == int(totals.pop()):
            return _join(dict.fromkeys(files), f"{kind} (sharded)", folder, config)
        names = ", ".join(p.name for p in files[:4])
        raise CheckpointError(f"{folder}: shards without an index, and not all of them ({names}); download the rest")
    chosen = _one(files, FILE_FIRST, folder)
    ignored = tuple(f"{p.name} beside {chosen.name} was ignored" for p in files if p != chosen)
    tensors, notes = _read(chosen)
    identity = file_identity(chosen)
    return Checkpoint(str(folder), kind, tensors, config, notes=(*notes, *ignored), identity=identity)


def _open_index(index: Path, kind: str, config: dict[str, object]) -> Checkpoint:
    folder = index.parent
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no 'weight_map' from tensor names to shards in it; download it again")
    wanted: dict[Path, list[str] | None] = {}
    for tensor, shard in weight_map.items():
        path = _inside(folder, shard, index)
        if not path.is_file():
            raise CheckpointError(
                f"{index} names shard {shard!r} for {tensor!r}, but {shard!r} is not in {folder}; "
                "download it, or point to a complete copy"
            )
        names = wanted.setdefault(path, [])
        assert names is not None
        names.append(str(tensor))
    return _join(wanted, kind, folder, config, index)


def _inside(folder: Path, shard: object, index: Path) -> Path:
    # A name that leaves the directory could read any file of the machine.
    if not isinstance(shard, str) or not shard:
        raise CheckpointError(f"{index}: a shard's name is {shard!r}; expected a file name")
    leaves = any(p.is_absolute() or ".." in p.parts for p in (PurePosixPath(shard), PureWindowsPath(shard)))
    if leaves:
        raise CheckpointError(f"{index}: shard {shard!r} lies outside {folder}, and is refused; correct the index")
    return folder / shard


def _join(
    shards: dict[Path, list[str] | None], kind: str, folder: Path, config: dict[str, object], index: Path | None = None
) -> Checkpoint:
    # `shards` says which tensors count in each file (None: all of them).
    tensors: Tensors = {}
    notes: list[str] = []
    for path, names in shards.items():
        found, more = _read(path)
        notes.extend(more)
        for name in found if names is None else names:
            if name not in found:
                raise CheckpointError(f"{index} says that {path.name} holds {name!r}, but it does not; download both")
            if name in tensors:
                raise CheckpointError(f"{folder}: {name!r} is in two shards and there is no index; add the index")
            tensors[name] = found[name]
        unnamed = len(found) - len(names) if names is not None else 0
        if unnamed:
            notes.append(f"{path.name} holds {unnamed} tensors that the index does not name; they were ignored")
    beside = {p for p in folder.iterdir() if _is_weights(p, kind.split(maxsplit=1)[0])} - set(shards)
    notes.extend(f"{p.name} is not named by the index and was ignored" for p in sorted(beside))
    identity = file_identity(*([index] if index else []), *shards)
    return Checkpoint(str(folder), kind, tensors, config, notes=tuple(notes), identity=identity)


def _open_pipeline(folder: Path) -> Checkpoint:
    # A diffusers pipeline: every component that has weights, its tensors' names prefixed with its own.
    tensors: Tensors = {}
    notes: list[str] = []
    identity: list[str] = []
    parts: dict[str, object] = {}
    companions: dict[str, Skipped] = {}
    for component, value in read_json(folder / "model_index.json").items():
        place = folder / component
        if component.startswith("_") or not isinstance(value, list) or value[:1] == [None]:
            continue
        if "/" in component or "\\" in component or component == "..":
            raise CheckpointError(f"{folder}/model_index.json: component {component!r} is no plain name; correct it")
        if not place.is_dir() or not any(_is_part(p) for p in place.iterdir()):
            continue  # a scheduler or a tokenizer: nothing trained
        found = without_codes(open_folder(place))
        tensors.update({f"{component}.{name}": _renamed(h, f"{component}.{name}") for name, h in found.tensors.items()})
        notes.extend(f"{component}: {note}" for note in found.notes)
        identity.extend(found.identity)
        companions.update(renamed(found.companions, f"{component}."))
        parts[component] = dict(found.config)
    if not tensors:
        raise CheckpointError(
            f"{folder}: model_index.json names no component with weights; download the pipeline whole"
        )
    return Checkpoint(
        str(folder), "diffusers", tensors, parts, None, tuple(notes), tuple(identity), companions=companions
    )


def _renamed(handle: Handle, name: str) -> Handle:
    assert isinstance(handle, (StoredHandle, MemoryHandle, UnreadHandle))
    return replace(handle, name=name)
