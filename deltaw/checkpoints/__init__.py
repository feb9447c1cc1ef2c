"""Checkpoints: what was given (a path, a Hub id, a module, a state dict) becomes named tensor handles.

A format is one file of this folder that yields handles (name, shape, dtype, `read`). Opening reads headers only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from deltaw.checkpoints import hub
from deltaw.checkpoints.checkpoint import Checkpoint
from deltaw.checkpoints.folder import open_file, open_folder
from deltaw.checkpoints.memory import open_memory
from deltaw.checkpoints.naming import check_names
from deltaw.checkpoints.quantised import QuantisedHandle, ScaledBytes, numeric
from deltaw.checkpoints.remote import is_address, mirrored, named
from deltaw.checkpoints.stored import StoredHandle
from deltaw.checkpoints.unread import UnreadHandle, why_unread, without_codes
from deltaw.errors import CheckpointError
from deltaw.files import expanded, near_path

__all__ = [
    "Checkpoint",
    "QuantisedHandle",
    "ScaledBytes",
    "StoredHandle",
    "UnreadHandle",
    "as_named",
    "hub",
    "locate",
    "numeric",
    "open_checkpoint",
    "why_unread",
    "without_codes",
]


def locate(source: str | Path) -> tuple[Path, str | None]:
    """The file or directory of a path, Hub id or address, and the commit on the Hub.

    What lies elsewhere has a local directory that stands for it, see `remote`. `FILE::NAME` is the file; which of its
    mappings is meant is `open_checkpoint`'s business.

    Raises:
        CheckpointError: There is no such path, and it is no Hub id or address that can be read.
    """
    text = str(source)
    if not text.strip() or "\0" in text:
        raise CheckpointError(f"{text!r} is not a path; expected a checkpoint, an adapter or a Hub id org/name")
    if isinstance(source, str) and is_address(source):
        return mirrored(source)
    path = _file_of(source)[0]
    try:
        if path.exists():
            return path, None
        if path.is_symlink():
            raise CheckpointError(f"{source}: a link to {path.readlink()}, which is not there; download it again")
    except OSError as e:  # a name that is too long, a directory that may not be entered
        raise CheckpointError(f"{text[:200]}: cannot be accessed ({e.strerror or e}); check the path") from e
    if isinstance(source, str) and hub.looks_like_id(source):
        try:
            return mirrored(source)
        except CheckpointError as e:
            raise CheckpointError(f"{e}{'.' if (hint := near_path(path)) else ''}{hint}") from e
    hint = near_path(path)
    raise CheckpointError(
        f"{source}: no such file or directory"
        + (f".{hint}" if hint else "; expected a checkpoint, an adapter or a Hub id org/name")
    )


def open_checkpoint(source: Any) -> Checkpoint:
    """Open a full checkpoint in any supported form; no tensor is read.

    Args:
        source: Path of a file or directory (`FILE::ema` for another mapping of a pickle), Hub id (`gpt2`, `org/name`,
            `org/name@revision`), address (`hf://`, `https://`, `s3://`, …), `nn.Module` or state dict.

    Raises:
        CheckpointError: It cannot be found or opened.
    """
    if isinstance(source, Checkpoint):
        return source
    if not isinstance(source, (str, Path)):
        opened = open_memory(source)
        check_names(opened.tensors, opened.source)
        return without_codes(opened)
    path, revision = locate(source)
    wanted = _file_of(source)[1]
    try:
        opened = open_folder(path, wanted) if path.is_dir() else open_file(path, wanted)
    except PermissionError as e:
        raise CheckpointError(f"{source}: cannot be read (no permission); ask its owner, or change its mode") from e
    except OSError as e:
        raise CheckpointError(f"{source}: cannot be read ({e.strerror or e})") from e
    check_names(opened.tensors, str(source))
    return replace(without_codes(opened), source=as_named(source), revision=revision)


def as_named(source: str | Path) -> str:
    """A path, id or address as results keep it: an address without its query, which may be a signature."""
    return named(source) if isinstance(source, str) and is_address(source) else str(source)


def _file_of(source: str | Path) -> tuple[Path, str]:
    """The path in `FILE::NAME`, and the name; a path that has `::` in it and exists is one."""
    whole = expanded(source)
    head, mark, wanted = str(source).rpartition("::")
    try:
        taken = bool(mark and head and wanted) and not whole.exists()
    except OSError:
        taken = False
    return (expanded(head), wanted) if taken else (whole, "")
