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
from deltaw.checkpoints.stored import StoredHandle
from deltaw.checkpoints.unread import UnreadHandle, unread, without_codes
from deltaw.errors import CheckpointError
from deltaw.files import near_path

__all__ = ["Checkpoint", "StoredHandle", "UnreadHandle", "locate", "open_checkpoint", "unread"]


def locate(source: str | Path) -> tuple[Path, str | None]:
    """The file or directory of a path or Hub id, and the Hub commit if it is one.

    Raises:
        CheckpointError: There is no such path, and it is no Hub id that can be fetched.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path, None
    if isinstance(source, str) and hub.looks_like_id(source):
        try:
            return hub.fetch(source)
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
        source: Path of a file or directory, Hub id (`org/name`, `org/name@revision`), `nn.Module` or state dict.

    Raises:
        CheckpointError: It cannot be found or opened.
    """
    if isinstance(source, Checkpoint):
        return source
    if not isinstance(source, (str, Path)):
        return without_codes(open_memory(source))
    path, revision = locate(source)
    try:
        opened = open_folder(path) if path.is_dir() else open_file(path)
    except OSError as e:
        raise CheckpointError(f"{source}: cannot be read ({e.strerror or e})") from e
    return replace(without_codes(opened), source=str(source), revision=revision)
