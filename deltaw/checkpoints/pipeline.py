"""A diffusers pipeline: a directory with `model_index.json`; every component, names prefixed with its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from deltaw.checkpoints.checkpoint import Checkpoint
from deltaw.checkpoints.memory import MemoryHandle
from deltaw.checkpoints.quantised import QuantisedHandle
from deltaw.checkpoints.stored import StoredHandle
from deltaw.checkpoints.unread import UnreadHandle, renamed, without_codes
from deltaw.documents import Document, read_object
from deltaw.errors import CheckpointError
from deltaw.results.sources import FileStamp
from deltaw.types import Handle, Skipped

INDEX = "model_index.json"


def open_pipeline(
    folder: Path, open_component: Callable[[Path], Checkpoint], is_part: Callable[[Path], bool]
) -> Checkpoint:
    """Open every component that has weights.

    Args:
        folder: The pipeline's directory.
        open_component: Opens the directory of one component.
        is_part: Whether a file is (a part of) a checkpoint.

    Raises:
        CheckpointError: A component's name is none, or no component has weights.
    """
    tensors: dict[str, Handle] = {}
    notes: list[str] = []
    files: list[FileStamp] = []
    parts: dict[str, Document] = {}
    companions: dict[str, Skipped] = {}
    for component, value in read_object(folder / INDEX).values.items():
        if component.startswith("_") or not isinstance(value, list) or value[:1] == [None]:
            continue
        if "/" in component or "\\" in component or component in {"", ".", ".."} or "\0" in component:
            raise CheckpointError(f"{folder}/{INDEX}: component {component[:80]!r} is not a plain name; correct it")
        place = folder / component
        if not place.is_dir() or not any(is_part(p) for p in place.iterdir()):
            continue  # a scheduler or a tokenizer: nothing trained
        found = without_codes(open_component(place))
        for name, handle in found.tensors.items():
            assert isinstance(handle, (StoredHandle, MemoryHandle, UnreadHandle, QuantisedHandle))
            tensors[f"{component}.{name}"] = replace(handle, name=f"{component}.{name}")
        notes.extend(f"{component}: {note}" for note in found.notes)
        files.extend(found.files)
        companions.update(renamed(found.companions, f"{component}."))
        parts[component] = found.config
    if not tensors:
        raise CheckpointError(f"{folder}: {INDEX} names no component with weights; download the pipeline whole")
    return Checkpoint(
        str(folder),
        "diffusers",
        tensors,
        Document({name: config.values for name, config in parts.items()}, str(folder)),
        None,
        tuple(notes),
        tuple(files),
        companions=companions,
    )
