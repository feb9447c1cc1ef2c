"""One file of tensors, whatever its suffix says."""

from __future__ import annotations

from pathlib import Path

from deltaw.checkpoints import kinds, pickles, safetensors
from deltaw.checkpoints.gguf import open_gguf
from deltaw.checkpoints.remote import remote_at
from deltaw.errors import CheckpointError
from deltaw.types import Handle

Tensors = dict[str, Handle]


def read_file(path: Path, wanted: str = "") -> tuple[Tensors, tuple[str, ...], kinds.Kind]:
    """The tensors of one file, notes on it, and its kind.

    Args:
        path: The file.
        wanted: The mapping to take of a pickle (`ema`); empty for the one that holds the weights.

    Raises:
        CheckpointError: It is damaged, of a kind that is not read, or cannot be read at all.
    """
    if (elsewhere := remote_at(path)) is not None:
        if path.suffix.lower() != safetensors.SUFFIX:
            raise CheckpointError(
                f"{elsewhere}: only safetensors are read where they lie; analyze --download fetches it whole, or "
                "download it and give the file"
            )
        return *safetensors.read_header(elsewhere), "safetensors"
    try:
        kind = kinds.kind_of(path)
        if kind == "pytorch":
            return *pickles.read_pickle(path, wanted), kind
        if wanted:
            raise CheckpointError(f"{path}: ::{wanted[:80]}: a {kind} file has no mappings to choose from")
        if kind == "gguf":
            opened = open_gguf(path)
            return dict(opened.tensors), opened.notes, kind
        return *safetensors.read_header(path), kind
    except PermissionError as e:
        raise CheckpointError(f"{path}: cannot be read (no permission); ask its owner, or change its mode") from e
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror or e})") from e
