"""Which files of a directory are the checkpoint: one file, shards with an index, or a pipeline's components."""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path

from deltaw.checkpoints import parts
from deltaw.checkpoints.beside import NOT_WEIGHTS, beside
from deltaw.checkpoints.checkpoint import Checkpoint
from deltaw.checkpoints.kinds import DISTCP_SUFFIX, PICKLE_SUFFIXES, Foreign, holds_tensors
from deltaw.checkpoints.pipeline import INDEX, open_pipeline
from deltaw.checkpoints.reading import Tensors, read_file, read_files
from deltaw.documents import Document, read_object
from deltaw.errors import CheckpointError
from deltaw.results.sources import FileStamp
from deltaw.types import counted

INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
INDEX_FIRST = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
FILE_FIRST = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model_fsdp.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
DISTCP_FIRST = ("pytorch_model_fsdp_0", "model", "weights")
OPTIMIZER = re.compile("optim", re.IGNORECASE)  # directories of an optimizer's state
SNIFFED = 500  # files of unknown suffix that are looked into


def open_file(path: Path, wanted: str = "") -> Checkpoint:
    """One safetensors or PyTorch file, or the index of several.

    Args:
        path: The file.
        wanted: The mapping to take of a pickle (`ema`); empty for the one that holds the weights.

    Raises:
        CheckpointError: The file cannot be used, is of a kind that is not read, or is a slice of a checkpoint.
    """
    if path.name.endswith(INDEX_SUFFIXES):
        return _open_index(path, _config(path.parent))
    parts.refuse_slice(path)
    tensors, notes, kind = read_file(path, wanted)
    if kind == "gguf":
        return _gguf(path, path, Document(), ())
    parts.refuse_unusable(tensors, str(path))
    numbered = parts.NUMBERED.search(path.name)
    if numbered and int(numbered[2]) > 1:
        notes = (
            *notes,
            f"{path.name} is one of {int(numbered[2])} shards; give the directory to compare the whole model",
        )
    return Checkpoint(str(path), kind, tensors, _config(path.parent), notes=notes, files=(FileStamp.of(path),))


def open_folder(path: Path, wanted: str = "") -> Checkpoint:
    """A directory with a model: the index decides where there is one, then the usual file names.

    Args:
        path: The directory.
        wanted: The mapping to take of a pickle.

    Raises:
        CheckpointError: There is no checkpoint, more than one, or a part of it is missing.
    """
    if (path / INDEX).is_file():
        return open_pipeline(path, _open_plain, is_part)
    return _open_plain(path, wanted)


def is_part(path: Path) -> bool:
    """Whether a file is weights, or an index of them, by its name."""
    return path.name.endswith(INDEX_SUFFIXES) or bool(_kind(path))


def _open_plain(path: Path, wanted: str = "") -> Checkpoint:
    config = _config(path)
    entries = sorted(path.iterdir(), key=attrgetter("name"))
    for suffix, kind in zip(INDEX_SUFFIXES, ("safetensors", "pytorch"), strict=True):
        indices = [p for p in entries if p.name.endswith(suffix)]
        if indices:
            return _open_index(_one(indices, INDEX_FIRST, path), config)
        files = [p for p in entries if _kind(p) == kind]
        if files:
            return _open_files(files, path, config, wanted)
    if any(p.suffix == DISTCP_SUFFIX for p in entries):
        return _open_distcp(path, path, config, wanted)
    inner = [p for p in entries if p.is_dir() and not OPTIMIZER.match(p.name) and any(p.glob(f"*{DISTCP_SUFFIX}"))]
    if inner:
        return _open_distcp(_one(inner, DISTCP_FIRST, path), path, config, wanted)
    files = [p for p in entries[:SNIFFED] if _may_hold(p)]
    found = {p: holds_tensors(p) for p in files}
    known = [p for p, what in found.items() if what is not None and not isinstance(what, Foreign)]
    models = [p for p in known if p.suffix.lower() == ".gguf"]
    if models and len(models) == len(known):
        from deltaw.checkpoints.gguf import open_gguf

        firsts = [p for p in models if (m := parts.NUMBERED.search(p.name)) is None or int(m[1]) == 1]
        file = _one(firsts or models, (), path)
        return _gguf(file, path, config, beside(path, open_gguf(file).files))
    if known:
        return _open_files(known, path, config, wanted)
    raise CheckpointError(f"{path}: {_nothing(path, entries, found)}")


def _nothing(path: Path, entries: list[Path], found: Mapping[Path, object]) -> str:
    """Why a directory is no checkpoint."""
    for file, kind in found.items():
        if isinstance(kind, Foreign):
            return f"it holds {file.name}, {kind.what}; {kind.remedy}"
    dangling = next((p for p in entries if p.is_symlink() and not p.exists()), None)
    if dangling is not None:
        return f"{dangling.name} is a link to {dangling.readlink()}, which is not there; download it again"
    below = next((p for p in entries if p.is_dir() and any(is_part(q) for q in p.iterdir())), None)
    hint = f"; {below.name}/ in it holds one" if below is not None else ""
    return (
        "no checkpoint there; expected model.safetensors, pytorch_model.bin, shards with an index, "
        f"model_index.json or an adapter{hint}"
    )


def _may_hold(path: Path) -> bool:
    """Whether a file whose name says nothing is looked into."""
    return path.is_file() and not path.name.startswith(".") and not NOT_WEIGHTS.search(path.name) and not _kind(path)


def _kind(path: Path) -> str:
    if NOT_WEIGHTS.search(path.name) or not path.is_file():
        return ""
    suffix = path.suffix.lower()
    return "safetensors" if suffix == ".safetensors" else "pytorch" if suffix in PICKLE_SUFFIXES else ""


def _config(folder: Path) -> Document:
    path = folder / "config.json"
    return read_object(path) if path.exists() else Document()


def _one(candidates: list[Path], preferred: tuple[str, ...], folder: Path) -> Path:
    for name in preferred:
        for path in candidates:
            if path.name == name:
                return path
    if len(candidates) == 1:
        return candidates[0]
    names = ", ".join(p.name for p in candidates[:4])
    raise CheckpointError(f"{folder}: {len(candidates)} checkpoints there ({names}); give the path of the one to read")


def _open_files(files: list[Path], folder: Path, config: Document, wanted: str) -> Checkpoint:
    if any(p.name in FILE_FIRST for p in files):
        return _open_single(_one(files, FILE_FIRST, folder), folder, config, wanted)
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(parts.pattern_of(path.name), []).append(path)
    whole = [group for group in groups.values() if len(group) > 1 and parts.complete(group)]
    chosen = whole[0] if len(whole) == 1 else files if len(groups) == 1 else None
    if chosen is None:
        return _open_single(_one(files, (), folder), folder, config, wanted)
    if len(chosen) == 1:
        return _open_single(chosen[0], folder, config, wanted)
    if parts.NUMBERED.search(chosen[0].name) and not parts.complete(chosen):
        names = ", ".join(p.name for p in chosen[:4])
        raise CheckpointError(f"{folder}: shards without an index, and not all of them ({names}); download the rest")
    parts.refuse_slice(chosen[0])
    read = [(path, *of) for path, of in zip(chosen, read_files(chosen, wanted), strict=True)]
    tensors = parts.join([(path, found) for path, found, _, _ in read], folder)
    notes = [note for _, _, more, _ in read for note in more]
    if not parts.complete(chosen):
        notes.append(
            f"{len(chosen)} numbered files ({chosen[0].name}, …) were joined: their tensors' names are disjoint"
        )
    return _checkpoint(folder, f"{read[0][3]} (sharded)", tensors, config, notes, chosen)


def _gguf(file: Path, source: Path, config: Document, others: tuple[str, ...]) -> Checkpoint:
    """A GGUF file with its shards; its metadata say what config.json would, where there is none."""
    from deltaw.checkpoints.gguf import open_gguf

    opened = open_gguf(file)
    return Checkpoint(
        str(source),
        "gguf" if len(opened.files) == 1 else "gguf (sharded)",
        opened.tensors,
        config or opened.config,
        notes=(*opened.notes, *others),
        files=tuple(map(FileStamp.of, opened.files)),
        companions=opened.companions,
    )


def _open_single(path: Path, folder: Path, config: Document, wanted: str) -> Checkpoint:
    parts.refuse_slice(path)
    tensors, notes, kind = read_file(path, wanted)
    return _checkpoint(folder, kind, tensors, config, list(notes), [path])


def _checkpoint(
    folder: Path, kind: str, tensors: Tensors, config: Document, notes: list[str], read: list[Path]
) -> Checkpoint:
    others = beside(folder, read, tensors)
    parts.refuse_unusable(tensors, str(read[0]), [note.split(" ", 1)[0] for note in others])
    return Checkpoint(str(folder), kind, tensors, config, notes=(*notes, *others), files=tuple(map(FileStamp.of, read)))


def _open_distcp(place: Path, folder: Path, config: Document, wanted: str) -> Checkpoint:
    """A directory of torch.distributed.checkpoint, or one with such a directory in it."""
    from deltaw.checkpoints.distcp import read_distcp

    tensors, notes, read = read_distcp(place, wanted)
    parts.refuse_unusable(tensors, str(place))
    files = tuple(map(FileStamp.of, read))
    return Checkpoint(str(folder), "distcp", tensors, config or _config(place), notes=notes, files=files)


def _open_index(index: Path, config: Document) -> Checkpoint:
    folder = index.parent
    wanted: dict[Path, list[str]] = {}
    for tensor, shard in read_object(index).inner("weight_map").values.items():
        path = parts.inside(folder, shard, index)
        if path not in wanted and not path.is_file():
            gone = "is a link to a file that is not there" if path.is_symlink() else f"is not in {folder}"
            raise CheckpointError(
                f"{index} names shard {shard!r} for {tensor[:80]!r}, but {shard!r} {gone}; "
                "download it, or point to a complete copy"
            )
        wanted.setdefault(path, []).append(tensor)
    if not wanted:
        raise CheckpointError(f"{index}: no 'weight_map' from tensor names to shards in it; download it again")
    tensors: Tensors = {}
    notes: list[str] = []
    kind = ""
    for (path, names), read in zip(wanted.items(), read_files(wanted), strict=True):
        found, more, kind = read
        notes.extend(more)
        for name in names:
            if name not in found:
                raise CheckpointError(
                    f"{index} says that {path.name} holds {name[:80]!r}, but it does not; download both"
                )
            tensors[name] = found[name]
        if len(found) > len(names):
            notes.append(
                f"{path.name} holds {counted(len(found) - len(names), 'tensor')} that the index does not name, ignored"
            )
    return _checkpoint(folder, f"{kind} (sharded)", tensors, config, notes, [index, *wanted])
